//! `kbs collateral`: fill the cache before guests need it, and carry it to brokers that may ask nobody.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use evidence::{
    Tee,
    snp::{Generation, Tcb},
};
use verifier::tdx::{self, Ca};

use super::out::say;
use crate::{
    collateral::{self, BUNDLE_BYTES, CollateralError, Document, Needed, show},
    config::Config,
    file,
};

/// The longest that a service which limits its rate is waited for.
const PATIENCE: Duration = Duration::from_secs(3600);

#[derive(Debug, Subcommand)]
pub(super) enum Collateral {
    /// Show what is in the cache, and until when it holds.
    List(Cache),
    /// Fetch what a machine's guests will need.
    Prefetch {
        #[command(flatten)]
        cache: Cache,
        #[command(flatten)]
        machine: Machine,
    },
    /// Write all that is in the cache into one signed file.
    Export {
        #[command(flatten)]
        cache: Cache,
        /// The private key to sign with, in PKCS#8 PEM: Ed25519 or P-256.
        #[arg(long)]
        key: PathBuf,
        /// The file to write.
        #[arg(long, short)]
        output: PathBuf,
    },
    /// Take documents from a file that one of `bundle_keys` signed.
    Import {
        #[command(flatten)]
        cache: Cache,
        /// What `export` wrote.
        bundle: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct Cache {
    /// The broker's configuration file.
    #[arg(long, short, env = "KBS_CONFIG_FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Machine {
    /// SEV-SNP: a chip's identity in hex, as in its reports. May be repeated.
    #[arg(long, requires = "product", requires = "tcb")]
    snp_chip: Vec<String>,
    /// SEV-SNP: milan, genoa, bergamo-siena or turin.
    #[arg(long, value_parser = generation)]
    product: Option<Generation>,
    /// SEV-SNP: the firmware that the chips report, as
    /// `bootloader=3,tee=0,snp=8,microcode=115` and on Turin `,fmc=1`.
    #[arg(long)]
    tcb: Option<Firmware>,
    /// TDX: a kind of platform in hex, as in its certificates. May be repeated.
    #[arg(long, requires = "ca")]
    fmspc: Vec<String>,
    /// TDX: who issued the platforms' certificates, processor or platform.
    #[arg(long, value_parser = ca)]
    ca: Option<Ca>,
}

/// A TCB on the command line.
#[derive(Debug, Clone, Copy)]
struct Firmware(Tcb);

impl FromStr for Firmware {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = [None; 5];
        const NAMES: [&str; 5] = ["bootloader", "tee", "snp", "microcode", "fmc"];
        for part in text.split(',') {
            let named = part.split_once('=').and_then(|(name, level)| {
                let at = NAMES.iter().position(|known| *known == name.trim())?;
                Some((at, level.trim().parse::<u8>().ok()?))
            });
            let (at, level) = named.ok_or_else(|| format!("`{part}` is not NAME=0..255"))?;
            if parts[at].replace(level).is_some() {
                return Err(format!("`{}` is given twice", NAMES[at]));
            }
        }
        let [Some(bootloader), Some(tee), Some(snp), Some(microcode), fmc] = parts else {
            return Err("give bootloader, tee, snp and microcode".to_owned());
        };
        Ok(Self(Tcb {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        }))
    }
}

impl Collateral {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(cache) => list(&cache.open()?.0).await,
            Self::Prefetch { cache, machine } => {
                let (collateral, _) = cache.open()?;
                for needed in machine.needs()? {
                    for document in prefetch(&collateral, &needed).await? {
                        say!("{document}");
                    }
                }
                Ok(())
            }
            Self::Export { cache, key, output } => export(&cache.open()?.0, &key, &output).await,
            Self::Import { cache, bundle } => {
                let (collateral, keys) = cache.open()?;
                import(&collateral, &keys, &bundle).await
            }
        }
    }
}

impl Cache {
    fn open(&self) -> anyhow::Result<(collateral::Collateral, Vec<PathBuf>)> {
        let config = Config::read(&self.config)?.collateral;
        Ok((collateral::Collateral::open(&config)?, config.bundle_keys))
    }
}

impl Machine {
    fn needs(self) -> anyhow::Result<Vec<Needed>> {
        let mut needs = Vec::new();
        if let (Some(generation), Some(Firmware(tcb))) = (self.product, self.tcb) {
            if generation.has_fmc() != tcb.fmc.is_some() {
                anyhow::bail!("--tcb: `fmc` is a part of it on Turin and nowhere else");
            }
            for chip in &self.snp_chip {
                let chip_id = hex::decode(chip).context("--snp-chip is not hex")?;
                let (found, least) = (chip_id.len(), generation.chip_id_bytes());
                if found != least && found != 64 {
                    anyhow::bail!("--snp-chip has {found} bytes: {generation} has {least}");
                }
                needs.push(Needed::Chip {
                    kind: Tee::Snp,
                    generation,
                    chip_id,
                    tcb,
                });
            }
        }
        if let Some(ca) = self.ca {
            for fmspc in &self.fmspc {
                let bytes = hex::decode(fmspc).context("--fmspc is not hex")?;
                let fmspc = bytes.try_into().ok().context("--fmspc is not six bytes")?;
                needs.push(Needed::Platform {
                    kind: Tee::Tdx,
                    needs: tdx::Needs { fmspc, ca },
                });
            }
        }
        if needs.is_empty() {
            anyhow::bail!(
                "say what to fetch: --snp-chip with --product and --tcb, or --fmspc with --ca"
            );
        }
        Ok(needs)
    }
}

/// Fetches, and waits where a service limits its rate.
async fn prefetch(
    collateral: &collateral::Collateral,
    needed: &Needed,
) -> Result<Vec<Document>, CollateralError> {
    loop {
        let now = SystemTime::now();
        let error = match collateral.prefetch(needed, now).await {
            Ok(documents) => return Ok(documents),
            Err(error) => error,
        };
        let wait = error.retry_at().and_then(|at| at.duration_since(now).ok());
        let Some(wait) = wait.filter(|wait| *wait <= PATIENCE) else {
            return Err(error);
        };
        eprintln!("{error}: waiting");
        tokio::time::sleep(wait).await;
    }
}

async fn list(collateral: &collateral::Collateral) -> anyhow::Result<()> {
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let now = i64::try_from(now)?;
    for listed in collateral.list().await? {
        let state = match listed.state {
            Ok((from, until)) => {
                let ended = if (from..=until).contains(&now) {
                    ""
                } else {
                    ", which is not now"
                };
                format!("from {} until {}{ended}", show(from), show(until))
            }
            Err(cause) => format!("not usable: {cause}"),
        };
        say!("{}  {state}", listed.document);
    }
    Ok(())
}

async fn export(
    collateral: &collateral::Collateral,
    key: &Path,
    output: &Path,
) -> anyhow::Result<()> {
    let (text, summary) = collateral.export(key, SystemTime::now()).await?;
    file::replace(output, &text).with_context(|| format!("write {}", output.display()))?;
    for document in &summary.documents {
        say!("{document}");
    }
    for (document, cause) in &summary.left_out {
        eprintln!("left out {document}: {cause}");
    }
    say!("the first of them ends {}", show(summary.expires));
    Ok(())
}

async fn import(
    collateral: &collateral::Collateral,
    keys: &[PathBuf],
    bundle: &Path,
) -> anyhow::Result<()> {
    let path = bundle.display();
    let text = file::read(bundle, BUNDLE_BYTES).with_context(|| format!("read {path}"))?;
    let imported = collateral
        .import(&text, keys, SystemTime::now())
        .await
        .with_context(|| path.to_string())?;
    say!("made {}", show(imported.made_at));
    for document in &imported.taken {
        say!("took {document}");
    }
    for document in &imported.known {
        say!("had {document}");
    }
    for (document, cause) in &imported.refused {
        eprintln!("refused {document}: {cause}");
    }
    if imported.refused.is_empty() {
        return Ok(());
    }
    anyhow::bail!("{} documents were refused", imported.refused.len())
}

fn generation(name: &str) -> Result<Generation, String> {
    let mut all = Generation::ALL.into_iter();
    all.find(|generation| generation.name() == name.to_ascii_lowercase())
        .ok_or_else(|| "milan, genoa, bergamo-siena or turin".to_owned())
}

fn ca(name: &str) -> Result<Ca, String> {
    let mut all = [Ca::Processor, Ca::Platform].into_iter();
    all.find(|ca| ca.name() == name)
        .ok_or_else(|| "processor or platform".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcb_is_read_by_its_names() {
        let Firmware(tcb) = "tee=0,bootloader=3, snp=8,microcode=115".parse().unwrap();
        assert_eq!((tcb.fmc, tcb.bootloader, tcb.microcode), (None, 3, 115));
        for wrong in [
            "",
            "3,0,8,115",
            "bootloader=3,tee=0,snp=8",
            "bootloader=3,tee=0,snp=8,microcode=256",
            "bootloader=3,bootloader=3,tee=0,snp=8,microcode=1",
        ] {
            assert!(wrong.parse::<Firmware>().is_err(), "{wrong}");
        }
    }
}
