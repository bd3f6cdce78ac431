//! `cloister measure`: what the hardware will report of a guest, before it is launched, in a form that
//! a broker takes.
//!
//! Nothing is guessed: what decides the digest is given by the caller or is a default that `--help`
//! tells, and a file of a guest image is measured only when it is the one in the image's manifest.

pub(super) mod artifact;
mod exchange;
mod explain;
mod line;
mod output;
mod prediction;
mod recorded;
mod references;
mod reported;
mod shape;
mod sign;
mod start;
pub(super) mod tdx;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use ::measure::Binding;
use ::measure::snp::{CpuModel, GuestFeatures, IdBlock, IdKey, LaunchDigest};
use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use evidence::init_data::InitDataDigest;
use guest_image::manifest::Manifest;
use policies::corim::Draft;
use serde_json::Value;

use self::artifact::Artifacts;
pub(crate) use self::artifact::{INITRAMFS_BYTES, KERNEL_BYTES, read as read_file};
pub(crate) use self::exchange::{Input, Measurements, Said};
pub(crate) use self::line::Configured;
use self::output::{Booted, Format, json_lines};
use self::prediction::Prediction;
pub(crate) use self::recorded::File;
use self::references::References;
use self::reported::Reported;
pub(crate) use self::shape::Vcpus;
pub(crate) use self::sign::Signer;
use self::start::With;
pub(crate) use self::tdx::TdxArgs;
use super::init_data;

#[derive(Debug, Clone, Args)]
pub(crate) struct Measure {
    /// The kind of TEE: snp unless it is said, and all launches of an image that has some in its manifest.
    #[arg(long, value_enum)]
    tee: Option<Kind>,
    #[command(flatten)]
    artifacts: Artifacts,
    /// Numbers of vCPUs that a pod may have, such as 1-4,8.
    #[arg(long, value_name = "LIST", default_value = "1", requires = "start")]
    vcpus: Vcpus,
    /// QEMU's CPU models that hosts may launch with, with a comma between them.
    #[arg(
        long,
        value_name = "MODEL",
        value_delimiter = ',',
        default_value = "EPYC-v4",
        requires = "start"
    )]
    cpu_model: Vec<CpuModel>,
    /// SEV_FEATURES of the guest, such as 0x1.
    #[arg(long, value_name = "BITS", default_value = "0x1", requires = "start", value_parser = features)]
    guest_features: GuestFeatures,
    /// The init-data that the launch binds: its digest is printed as the hardware will have it.
    #[arg(long, value_name = "FILE")]
    init_data: Option<PathBuf>,
    /// Say why this is another measurement than the predicted ones: 96 hex digits, or a file with a report,
    /// as it is or in evidence in JSON; of a TD a quote, its evidence in JSON, or its event log.
    #[arg(long, value_name = "HEX|FILE", conflicts_with_all = ["format", "sign_key", "id_key", "output"])]
    explain: Option<String>,
    #[command(flatten)]
    id_block: IdBlockArgs,
    #[command(flatten)]
    tdx: TdxArgs,
    /// What is printed.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// The private key in PEM, on P-256 or P-384, that signs the CoRIM.
    #[arg(long, value_name = "PEM")]
    sign_key: Option<PathBuf>,
    /// Who has that key, as the CoRIM says it.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cloister measure",
        requires = "sign_key"
    )]
    signer: String,
    /// The CoRIM's id, which names it among others of the same signer.
    #[arg(long, value_name = "ID", default_value = "cloister-guest")]
    corim_id: String,
    /// Write to this file and not to the standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A kind of TEE whose measurements can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// SEV-SNP, and the simulated one, which reports the same.
    Snp,
    /// TDX, and the simulated one.
    Tdx,
}

/// The ID block, with which the hardware starts nothing else.
#[derive(Debug, Clone, Args)]
struct IdBlockArgs {
    /// The private key in PEM, on P-384, that signs an ID block for each digest (--format text or launch).
    #[arg(long, value_name = "PEM", conflicts_with = "dialect")]
    id_key: Option<PathBuf>,
    /// Another such key that vouches for the ID key.
    #[arg(long, value_name = "PEM", requires = "id_key")]
    author_key: Option<PathBuf>,
    /// The guest policy that the launch will have.
    #[arg(long, value_name = "BITS", default_value = "0x30000", requires = "id_key", value_parser = number)]
    policy: u64,
    /// The owner's number of this guest, below which the owner accepts none.
    #[arg(long, value_name = "NUMBER", default_value = "0", requires = "id_key")]
    guest_svn: u32,
    /// The owner's name for a family of guests, 32 hex digits.
    #[arg(long, value_name = "HEX", requires = "id_key", value_parser = id)]
    family_id: Option<[u8; 16]>,
    /// The owner's name for this guest, 32 hex digits.
    #[arg(long, value_name = "HEX", requires = "id_key", value_parser = id)]
    image_id: Option<[u8; 16]>,
}

/// Keys of the ID block.
struct IdKeys {
    id: IdKey,
    author: Option<IdKey>,
}

impl Measure {
    /// The directory of the guest image that is measured.
    pub(crate) fn image(&self) -> Option<&Path> {
        self.artifacts.image()
    }

    /// The manifest of that image.
    pub(crate) fn manifest(&self) -> anyhow::Result<Option<Manifest>> {
        let image = self.image();
        image.map(|dir| self.artifacts.manifest(dir)).transpose()
    }

    /// From now on this is the image's manifest, whatever becomes of the file.
    pub(crate) fn trust(&mut self, manifest: Manifest) {
        self.artifacts.trust(manifest);
    }

    /// Whether flags say what is launched, and the image's manifest does not.
    pub(crate) fn is_given(&self) -> bool {
        self.artifacts.is_given()
    }

    /// A JSON map of reference values, as a broker takes it.
    pub(crate) fn reference_values(&self) -> anyhow::Result<Value> {
        self.check()?;
        ensure!(
            self.explain.is_none() && self.sign_key.is_none() && self.output.is_none(),
            "--explain, --sign-key and --output are of `cloister measure`"
        );
        ensure!(
            self.id_block.id_key.is_none(),
            "--id-key makes what a launch needs and a broker does not: use `cloister measure`"
        );
        let all = self.predicted()?;
        let mut booted = all.iter().filter_map(Prediction::booted);
        match booted.find(|booted| *booted != Booted::Tied) {
            None | Some(Booted::Tied) => {}
            Some(Booted::Unsaid) => bail!(
                "--no-kernel: with such values a broker releases keys to any kernel: say what is booted, with --image \
                 or --kernel"
            ),
            Some(Booted::Unseen) => bail!("{}", output::UNSEEN),
        }
        Ok(Self::references(&all)?.json())
    }

    fn kind(&self) -> Kind {
        self.tee.unwrap_or(Kind::Snp)
    }

    /// Whether what is asked for goes together.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.kind() == Kind::Tdx || !self.tdx.asked(),
            "--dialect is of a TD: add --tee tdx"
        );
        self.artifacts.check(self.kind())
    }

    pub(super) fn run(self) -> anyhow::Result<()> {
        self.check()?;
        let corim = self.format == Format::Corim;
        ensure!(
            corim || self.sign_key.is_none(),
            "--sign-key signs a CoRIM: add --format corim"
        );
        let shown = matches!(self.format, Format::Text | Format::Launch);
        ensure!(
            shown || self.id_block.id_key.is_none(),
            "--id-key makes what a launch needs and a broker does not: use --format text or launch"
        );
        if let Some(said) = &self.explain {
            return self.explain_all(said);
        }
        let all = self.predicted()?;
        let bytes = match self.format {
            Format::Text => all.iter().map(Prediction::text).collect::<String>().into(),
            Format::Launch => {
                let shapes = all.iter().flat_map(Prediction::shapes);
                json_lines(&Value::Array(shapes.collect()))?
            }
            Format::Json => json_lines(&Self::references(&all)?.json())?,
            Format::Corim => self.corim(&Self::references(&all)?.draft(&self.corim_id)?)?,
        };
        self.write(&bytes)
    }

    /// What each launch leads to.
    fn predicted(&self) -> anyhow::Result<Vec<Prediction>> {
        let predict = |launch: Self| match launch.kind() {
            Kind::Snp => Ok(Prediction::Snp(launch.predict()?)),
            Kind::Tdx => {
                let inputs = tdx::Inputs::read(&launch.tdx, &launch.artifacts)?;
                let digest = launch.init_data_digest()?;
                Ok(Prediction::Tdx(inputs.predict(digest.as_ref())?))
            }
        };
        self.launches()?.into_iter().map(predict).collect()
    }

    /// What a broker is told to expect; what it is not told goes to the standard error.
    fn references(all: &[Prediction]) -> anyhow::Result<References> {
        let mut references = References::default();
        for predicted in all {
            predicted.refer(&mut references);
            predicted.warn()?;
        }
        Ok(references)
    }

    /// Prints that a report is of one of the launches, or fails with what each would have been.
    fn explain_all(&self, said: &str) -> anyhow::Result<()> {
        let launches = self.launches()?;
        let mut others = Vec::new();
        for launch in &launches {
            let explained = match launch.kind() {
                Kind::Snp => Reported::read(said).and_then(|it| launch.explain(&it)),
                Kind::Tdx => launch.explain_tdx(said),
            };
            match explained {
                Err(error) if launches.len() > 1 => {
                    let firmware = launch.artifacts.firmware_path()?.display();
                    others.push(format!("as launched by {firmware}: {error:#}"));
                }
                one => return one,
            }
        }
        bail!("{}", others.join("\n"))
    }

    fn explain_tdx(&self, said: &str) -> anyhow::Result<()> {
        let inputs = tdx::Inputs::read(&self.tdx, &self.artifacts)?;
        let found = tdx::Found::read(said)?;
        inputs.explain(&found, self.init_data_digest()?.as_ref())
    }

    /// The document, signed where there is a key.
    fn corim(&self, draft: &Draft) -> anyhow::Result<Vec<u8>> {
        let Some(path) = &self.sign_key else {
            return Ok(draft.unsigned()?);
        };
        let signer = Signer::read(path)?;
        let sign = |message: &[u8]| anyhow::Ok(signer.sign(message));
        draft.signed(signer.algorithm(), &signer.key_id()?, &self.signer, sign)
    }

    fn init_data_digest(&self) -> anyhow::Result<Option<InitDataDigest>> {
        self.init_data.as_deref().map(init_data::digest).transpose()
    }

    fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match &self.output {
            Some(path) => {
                fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
            }
            None => Ok(std::io::stdout().write_all(bytes)?),
        }
    }

    fn predict(&self) -> anyhow::Result<output::Predicted> {
        let (start, kernel) = self.artifacts.read()?;
        let digest = self.init_data_digest()?;
        let keys = self.id_block.keys()?;
        let mut shapes = Vec::new();
        let has_models = self.artifacts.has_models();
        let models = if has_models { self.cpu_model.len() } else { 1 };
        for model in self.cpu_model.iter().take(models) {
            let with = With {
                kernel: kernel.as_ref(),
                cpu: model,
                features: self.guest_features,
            };
            for (vcpus, measurement) in start.digests(with, &self.vcpus)? {
                shapes.push(output::Shape {
                    vcpus,
                    cpu_model: has_models.then(|| model.name().to_owned()),
                    measurement,
                    id_block: keys
                        .as_ref()
                        .map(|keys| self.id_block.sign(measurement, keys)),
                });
            }
        }
        Ok(output::Predicted {
            shapes,
            guest_features: self.guest_features,
            booted: match kernel {
                None => Booted::Unsaid,
                Some(_) if start.looks_for_hashes() => Booted::Tied,
                Some(_) => Booted::Unseen,
            },
            binding: Binding::of(evidence::Tee::Snp, digest.as_ref()),
            id_key: keys.as_ref().map(|keys| keys.id.digest()),
            author_key: keys.and_then(|keys| keys.author).map(|key| key.digest()),
        })
    }
}

impl IdBlockArgs {
    fn keys(&self) -> anyhow::Result<Option<IdKeys>> {
        let read = |path: &PathBuf| {
            let pem = super::key::read_text(path)?;
            IdKey::from_pem(&pem).with_context(|| path.display().to_string())
        };
        let Some(id) = self.id_key.as_ref().map(read).transpose()? else {
            return Ok(None);
        };
        let author = self.author_key.as_ref().map(read).transpose()?;
        Ok(Some(IdKeys { id, author }))
    }

    fn sign(&self, digest: LaunchDigest, keys: &IdKeys) -> output::SignedBlock {
        let block = IdBlock {
            family_id: self.family_id.unwrap_or_default(),
            image_id: self.image_id.unwrap_or_default(),
            guest_svn: self.guest_svn,
            ..IdBlock::new(digest, self.policy)
        };
        let auth = block.sign(&keys.id, keys.author.as_ref());
        output::SignedBlock { block, auth }
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = text
        .strip_prefix("0x")
        .map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    parsed.map_err(|_| "a number, or 0x and hex digits".to_owned())
}

pub(crate) fn features(text: &str) -> Result<GuestFeatures, String> {
    GuestFeatures::new(number(text)?).map_err(|error| error.to_string())
}

fn id(text: &str) -> Result<[u8; 16], String> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).map_err(|_| "32 hex digits".to_owned())?;
    Ok(id)
}
