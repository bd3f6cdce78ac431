//! The development root's directory. Keys are readable to their owner alone.
//!
//! ```text
//! snp-root.key  tdx-root.key      the authorities with their keys
//! snp-root.pem  tdx-root.pem      their certificates, and
//! collateral.json                 what they say of platforms: for a broker
//! platform.toml                   what the platform is, and what is wrong with it: for tests
//! firmware.fd   acpi/             what a launch begins with: for `cloister measure`
//! vcek-<TCB>.key                  the chip's key for a firmware, made when it is first used
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use evidence::sim::snp::{Chip, ChipKey, DevelopmentRoot as SnpRoot};
use evidence::sim::tdx::{DevelopmentRoot as TdxRoot, Offer};
use evidence::snp::Tcb;
use serde_json::json;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::tdx::{self, DIALECT};
use super::{firmware, settings};

pub(crate) const FIRMWARE: &str = "firmware.fd";
pub(super) const ACPI: &str = "acpi";
const SNP_KEY: &str = "snp-root.key";
const TDX_KEY: &str = "tdx-root.key";
const SNP_ROOT: &str = "snp-root.pem";
const TDX_ROOT: &str = "tdx-root.pem";
const COLLATERAL: &str = "collateral.json";
const SETTINGS: &str = "platform.toml";

/// How long a development root holds, and what it signs.
const DAYS: i64 = 3650;
const DAY: i64 = 86_400;
/// Bytes of any file of the directory.
const FILE_BYTES: u64 = 64 * 1024;
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// The directory that `init` made.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

/// Makes the directory and all that is in it.
pub(super) fn init(dir: &Path) -> anyhow::Result<()> {
    ensure!(
        !dir.join(SNP_KEY).exists(),
        "{} has a development root already: brokers may know it; remove the directory to make another",
        dir.display()
    );
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.with_context(|| format!("make {}", dir.display()))?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let validity = evidence::sim::Validity {
        from: now - DAY,
        until: now + DAYS * DAY,
    };
    let snp = SnpRoot::generate(validity)?;
    let tdx = TdxRoot::generate(validity)?;
    let lists = [snp.crl(0, validity, &[])?, snp.crl(1, validity, &[])?];
    let lists = lists.map(|list| encoded(&list));
    let offer = tdx.collateral(&Offer::simulated(validity))?;
    let collateral = json!({ "crls": lists, "tdx": [offer] });
    let to = Directory(dir.to_owned());
    to.put(FIRMWARE, &firmware::image(), PUBLIC)?;
    to.put_tables()?;
    to.put(SETTINGS, settings::DEFAULT.as_bytes(), PUBLIC)?;
    to.put(COLLATERAL, collateral.to_string().as_bytes(), PUBLIC)?;
    to.put(SNP_ROOT, snp.certificates_pem()?.as_bytes(), PUBLIC)?;
    to.put(TDX_ROOT, tdx.certificates_pem()?.as_bytes(), PUBLIC)?;
    to.put(TDX_KEY, tdx.to_pem()?.as_bytes(), PRIVATE)?;
    // The last one: with it the directory counts as made.
    to.put(SNP_KEY, snp.to_pem()?.as_bytes(), PRIVATE)?;
    to.tell()
}

fn encoded(bytes: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(bytes)
}

impl Directory {
    /// What `init` made there.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        ensure!(
            dir.join(SNP_KEY).exists(),
            "{} has no development root: make it with `cloister dev-tee init --dir {}`",
            dir.display(),
            dir.display()
        );
        let found = Self(dir.to_owned());
        found.put_tables()?;
        Ok(found)
    }

    /// The tables of the machine, those that are not there: older versions had fewer.
    fn put_tables(&self) -> anyhow::Result<()> {
        for (name, content) in firmware::tables() {
            let name = format!("{ACPI}/{name}");
            if !self.path(&name).exists() {
                self.put(&name, &content, PUBLIC)?;
            }
        }
        Ok(())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn settings(&self) -> anyhow::Result<settings::Settings> {
        let text = self.read(SETTINGS)?;
        let path = self.path(SETTINGS);
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    pub(super) fn tdx_root(&self) -> anyhow::Result<TdxRoot> {
        Ok(TdxRoot::from_pem(&self.read(TDX_KEY)?)?)
    }

    /// The chip's key for its firmware, which is the same at each start, as hardware's is.
    pub(super) fn chip(&self, chip: &Chip) -> anyhow::Result<ChipKey> {
        let name = format!("vcek-{}.key", words(chip.tcb));
        if !self.path(&name).exists() {
            let root = SnpRoot::from_pem(&self.read(SNP_KEY)?)?;
            let key = root.chip(chip)?.to_pem()?;
            let temporary = format!("{name}.{}", std::process::id());
            self.put(&temporary, key.as_bytes(), PRIVATE)?;
            // Of several that start at once the first one's stays.
            let made = fs::hard_link(self.path(&temporary), self.path(&name));
            fs::remove_file(self.path(&temporary))?;
            match made {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        Ok(ChipKey::from_pem(&self.read(&name)?)?)
    }

    fn read(&self, name: &str) -> anyhow::Result<Zeroizing<String>> {
        let path = self.path(name);
        let mut text = Zeroizing::new(String::new());
        File::open(&path)
            .and_then(|file| file.take(FILE_BYTES).read_to_string(&mut text))
            .with_context(|| format!("read {}", path.display()))?;
        Ok(text)
    }

    fn put(&self, name: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
        let path = self.path(name);
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(mode);
            options.open(&path)?.write_all(content)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// What others must be told.
    fn tell(&self) -> anyhow::Result<()> {
        std::io::stdout().write_all(self.told().as_bytes())?;
        Ok(())
    }

    /// DIR is a guest image, FILE the configuration of the pods, and MIB their memory.
    pub(super) fn told(&self) -> String {
        let [snp, tdx, collateral] = [SNP_ROOT, TDX_ROOT, COLLATERAL].map(|name| self.path(name));
        format!(
            "made {dir}\n\
             pods attest with it where configuration.toml has\n  \
               [cloister]\n  tee = \"sim-snp\"\n  dev_tee = {dir:?}\n\
             a broker for development believes it where kbs.toml has\n  \
               [attestation]\n  accept = [\"sim-snp\", \"sim-tdx\"]\n  \
               development = {{ snp_root = {snp:?}, tdx_root = {tdx:?}, collateral = {collateral:?} }}\n\
             and what is measured is predicted, for sim-snp and for sim-tdx, with\n  \
               cloister measure --firmware {firmware} --image DIR --config FILE\n  \
               cloister measure --tee tdx --firmware {firmware} --image DIR --config FILE --dialect {DIALECT} \
               --memory MIB --acpi {acpi} --xfam {xfam}\n\
             where DIR is the guest image, FILE the configuration.toml, and MIB its default_memory\n",
            dir = self.0.display().to_string(),
            firmware = self.path(FIRMWARE).display(),
            acpi = self.path(ACPI).display(),
            xfam = tdx::xfam(),
        )
    }
}

/// A TCB as a name.
fn words(tcb: Tcb) -> String {
    let fmc = tcb
        .fmc
        .map_or_else(|| "none".to_owned(), |fmc| fmc.to_string());
    let Tcb {
        bootloader,
        tee,
        snp,
        microcode,
        ..
    } = tcb;
    format!("{fmc}-{bootloader}-{tee}-{snp}-{microcode}")
}
