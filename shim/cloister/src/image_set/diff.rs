//! `cloister image-set diff`: what an upgrade changes. Files by their digests, what they were made of, and
//! measurements: of each launch that a manifest says, and of one that is said by flags; with the input that makes
//! them others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{ArgGroup, Args};
use guest_image::launch;
use guest_image::manifest::{Digest, Manifest};
use measure::snp::{CpuModel, GuestFeatures};
use serde::Serialize;
use serde_json::Value;

use crate::measure::{Configured, Input, Measure, Measurements, Said, TdxArgs, Vcpus, features};

/// How many vCPUs and which CPU model a launch has where nobody says it, as `cloister measure` has them.
const VCPUS: u32 = 1;
const CPU_MODEL: &str = "EPYC-v4";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("start").multiple(true))]
pub(super) struct Diff {
    /// The directory of one image.
    old: PathBuf,
    /// The directory of the other.
    new: PathBuf,
    /// Also compare a launch that the manifests do not say: the firmware of both.
    #[arg(long, value_name = "FILE", group = "start", requires = "line")]
    firmware: Option<PathBuf>,
    /// The firmware of the other, where it is another one.
    #[arg(long, value_name = "FILE", requires = "start")]
    new_firmware: Option<PathBuf>,
    /// The kernel's command line, to the letter.
    #[arg(long, value_name = "TEXT", group = "line", requires = "firmware")]
    append: Option<String>,
    /// The configuration of the shim, Kata's or Cloister's, whose pods are launched: their command line is
    /// measured, and firmware, vCPUs, CPU model and memory are its own where no flag says others.
    #[arg(long, value_name = "FILE", groups = ["start", "line"])]
    config: Option<Configured>,
    /// Numbers of vCPUs that a pod may have, such as 1-4,8.
    #[arg(long, value_name = "LIST", requires = "start")]
    vcpus: Option<Vcpus>,
    /// QEMU's CPU model: EPYC-v4 unless the configuration or this says another.
    #[arg(long, value_name = "NAME", requires = "start")]
    cpu_model: Option<CpuModel>,
    /// SEV_FEATURES of the guest, such as 0x1.
    #[arg(long, value_name = "BITS", default_value = "0x1", requires = "start", value_parser = features)]
    guest_features: GuestFeatures,
    #[command(flatten)]
    tdx: TdxArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One thing that is not the same; `None` where one set has it not.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    what: String,
    old: Option<String>,
    new: Option<String>,
    /// Of a measurement: the inputs each of which makes it another one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    because: Vec<&'static str>,
}

/// One image, whose files are those of its manifest.
struct Image<'a> {
    dir: &'a Path,
    manifest: Manifest,
    measure: Measure,
}

impl Diff {
    /// Prints what differs; returns the exit code.
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let (old, new) = (Image::read(&self.old)?, Image::read(&self.new)?);
        let mut all = changes(&facts(&old.manifest)?, &facts(&new.manifest)?);
        let recorded = [old.launches()?, new.launches()?];
        for number in 0..recorded.iter().map(Vec::len).max().unwrap_or_default() {
            let [old, new] = recorded.each_ref().map(|all| all.get(number));
            all.extend(compared(&format!("launch {number}: "), old, new)?);
        }
        if let Some(firmware) = self.firmware()? {
            let other = self.new_firmware.as_deref().unwrap_or(firmware);
            let (old, new) = (self.said(&old, firmware)?, self.said(&new, other)?);
            all.extend(compared("", Some(&old), Some(&new))?);
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            all.iter().for_each(|change| println!("{}", change.text()));
        }
        Ok(u8::from(!all.is_empty()))
    }

    /// The firmware of both, where flags say a launch.
    fn firmware(&self) -> anyhow::Result<Option<&Path>> {
        let Some(config) = &self.config else {
            return Ok(self.firmware.as_deref());
        };
        let own = config.firmware.as_deref();
        let firmware = self.firmware.as_deref().or(own);
        let firmware = firmware.context("--config: it names no firmware, so give --firmware too");
        firmware.map(Some)
    }

    /// The launch of an image that flags say.
    fn said(&self, image: &Image<'_>, firmware: &Path) -> anyhow::Result<Measure> {
        let config = self.config.as_ref();
        let vcpus = config.map_or(VCPUS, |config| config.vcpus).to_string();
        let vcpus = self.vcpus.clone().map_or_else(|| vcpus.parse(), Ok);
        let line = config.map(|config| config.line.as_str());
        Ok(image.measure.said(Said {
            firmware,
            line: self.append.as_deref().or(line).unwrap_or_default(),
            vcpus: vcpus.map_err(anyhow::Error::msg)?,
            cpu_model: self.cpu_model()?,
            guest_features: self.guest_features,
            tdx: self.tdx()?,
        }))
    }

    fn cpu_model(&self) -> anyhow::Result<CpuModel> {
        match (&self.cpu_model, &self.config) {
            (Some(model), _) => Ok(model.clone()),
            (None, Some(config)) => {
                let model = config.cpu_model.as_deref();
                let model = model.context(
                    "--config: its snp_cpu_model is each host's own: name one with --cpu-model",
                )?;
                Ok(model.parse()?)
            }
            (None, None) => Ok(CPU_MODEL.parse()?),
        }
    }

    /// What is said of a TD; nothing where none is launched.
    fn tdx(&self) -> anyhow::Result<TdxArgs> {
        let Some(config) = &self.config else {
            return Ok(self.tdx.clone());
        };
        match (config.is_td(), self.tdx.asked()) {
            (true, true) => self.tdx.clone().with_memory(config.memory_mib),
            (true, false) => bail!(
                "--config launches TDs, of which no file tells the firmware's generation and the ACPI tables: give \
                 --dialect and --acpi"
            ),
            (false, true) => {
                bail!("--dialect is of a TD, and --config launches none: leave one out")
            }
            (false, false) => Ok(self.tdx.clone()),
        }
    }
}

impl<'a> Image<'a> {
    fn read(dir: &'a Path) -> anyhow::Result<Self> {
        let manifest = Manifest::read(dir)?;
        manifest.verify(dir)?;
        let measure = Measure::of_dir(dir, manifest.clone())?;
        Ok(Self {
            dir,
            manifest,
            measure,
        })
    }

    /// The launches that the manifest says, in its order.
    fn launches(&self) -> anyhow::Result<Vec<Measure>> {
        if self.manifest.launches.is_empty() {
            return Ok(Vec::new());
        }
        let launches = self.measure.launches()?;
        let (found, listed) = (launches.len(), self.manifest.launches.len());
        ensure!(
            found == listed,
            "{} has {listed} launches, and {found} are known",
            self.dir.display()
        );
        Ok(launches)
    }
}

impl Change {
    fn text(&self) -> String {
        let side = |it: &Option<String>| it.clone().unwrap_or_else(|| "none".to_owned());
        let (old, new) = (side(&self.old), side(&self.new));
        let mut text = format!("{}\n  - {old}\n  + {new}", self.what);
        if !self.because.is_empty() {
            text += &format!("\n  because of: {}", self.because.join(", "));
        }
        text
    }
}

/// What the hardware will report otherwise of one launch, and why.
fn compared(
    launch: &str,
    old: Option<&Measure>,
    new: Option<&Measure>,
) -> anyhow::Result<Vec<Change>> {
    let of = |side: Option<&Measure>| {
        side.map_or_else(|| Ok(Measurements::new()), Measure::measurements)
    };
    let mut changed = changes(&of(old)?, &of(new)?);
    if let (Some(old), Some(new), false) = (old, new, changed.is_empty()) {
        explain(&mut changed, old, new);
    }
    for change in &mut changed {
        change.what.insert_str(0, launch);
    }
    Ok(changed)
}

/// Says of each value that is another one which inputs alone make it so.
fn explain(changed: &mut [Change], old: &Measure, new: &Measure) {
    for input in Input::ALL {
        // A mixture that nobody launches may be none that could be launched.
        let Ok(mixed) = old.exchanged(input, new).measurements() else {
            continue;
        };
        let both = |change: &&mut Change| change.old.is_some() && change.new.is_some();
        for change in changed.iter_mut().filter(both) {
            let found = mixed.get(&change.what);
            if found.is_some() && found != change.old.as_ref() {
                change.because.push(input.name());
            }
        }
    }
}

/// All that a manifest says, each by a name.
fn facts(manifest: &Manifest) -> anyhow::Result<BTreeMap<String, String>> {
    let kernel = &manifest.kernel;
    let mut facts = BTreeMap::from([
        ("kernel release".to_owned(), kernel.release.clone()),
        ("kernel flavour".to_owned(), kernel.flavour.to_string()),
    ]);
    if manifest.number != 0 {
        facts.insert("number".to_owned(), manifest.number.to_string());
    }
    for package in &kernel.packages {
        facts.insert(format!("package {}", package.name), package.version.clone());
    }
    for (number, launch) in manifest.launches.iter().enumerate() {
        facts.extend(said(number, launch)?);
    }
    let mut put = |kind: &str, digest: &Digest| {
        let text = format!("sha256 {}, {} bytes", digest.sha256, digest.size);
        facts.insert(format!("{kind} {}", digest.name), text);
    };
    put("program", &manifest.agent);
    for module in &manifest.modules {
        put("module", module);
    }
    for output in &manifest.outputs {
        put("file", output);
    }
    Ok(facts)
}

/// What a launch says, each by the name of the member.
fn said(number: usize, launch: &launch::Launch) -> anyhow::Result<BTreeMap<String, String>> {
    let Value::Object(members) = serde_json::to_value(launch).context("write JSON")? else {
        bail!("launch {number} has no members");
    };
    let said = members.into_iter().map(|(member, value)| {
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        (format!("launch {number} {member}"), text)
    });
    Ok(said.collect())
}

fn changes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Change> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differs = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name));
    differs
        .map(|name| Change {
            what: name.clone(),
            old: old.get(name).cloned(),
            new: new.get(name).cloned(),
            because: Vec::new(),
        })
        .collect()
}
