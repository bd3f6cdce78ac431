//! How a pod's VM becomes a confidential one: what the launch binds, and that its files are those of such a
//! launch. What a wrong file would do otherwise is start, and fail without a word.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use evidence::init_data::InitDataDigest;
use evidence::snp::Generation;
use hypervisor::Confidential;
use hypervisor::tee::{Kind, Snp, Tdx, host};
use measure::snp::Igvm;
use measure::tdx::Vmm;
use thiserror::Error;

use crate::config::Config;

/// Where a bzImage says that it is one, and how (Linux `Documentation/arch/x86/boot.rst`).
const BZIMAGE: (usize, &[u8; 4]) = (0x202, b"HdrS");

/// Why a VM cannot be a confidential one.
#[derive(Debug, Error)]
pub enum TeeError {
    /// A file cannot be read.
    #[error("{what} {path:?}: {source}")]
    Read {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The firmware starts no such guest.
    #[error("firmware {path:?} starts no {kind} guest: {reason}; name one that was built for it")]
    Firmware {
        /// The file.
        path: PathBuf,
        /// The technology.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The IGVM file starts no such guest, or not this one.
    #[error("IGVM file {path:?}: {reason}")]
    Igvm {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The kernel is in the form for plain VMs.
    #[error(
        "kernel {path:?} is no bzImage, and firmware starts nothing else: name the vmlinuz beside it"
    )]
    Kernel {
        /// The file.
        path: PathBuf,
    },
    /// The ID block.
    #[error("snp_id_block: {0}")]
    IdBlock(String),
    /// The processor is of no generation with SNP.
    #[error(
        "snp_cpu_model = \"host-generation\": this processor is of none that is known; name a model"
    )]
    Generation,
}

/// What the VM of a pod is launched with; `None` where it is a plain one.
///
/// # Errors
/// [`TeeError`] names the file or key that no such guest can have.
pub fn confidential(
    config: &Config,
    init_data: Option<&InitDataDigest>,
) -> Result<Option<Confidential>, TeeError> {
    let Some(kind) = config.tee.hardware() else {
        return Ok(None);
    };
    if let Some(path) = &config.vm.firmware {
        check_firmware(kind, path)?;
    }
    check_kernel(&config.vm.kernel)?;
    let keys = &config.vm.confidential;
    if let Some(path) = &config.vm.igvm {
        check_igvm(path, keys.policy)?;
    }
    Ok(Some(match kind {
        Kind::Snp => Confidential::Snp(Snp {
            cpu_model: match &keys.cpu_model {
                Some(model) => model.clone(),
                None => model_of_host().ok_or(TeeError::Generation)?,
            },
            policy: keys.policy,
            host_data: init_data.map(measure::host_data).unwrap_or_default(),
            id_block: keys.id().map_err(TeeError::IdBlock)?,
        }),
        Kind::Tdx => Confidential::Tdx(Tdx {
            mrconfigid: init_data.map_or([0; measure::MRCONFIGID_BYTES], measure::mrconfigid),
            mrowner: keys.mrowner,
            mrownerconfig: keys.mrownerconfig,
            quotes: keys.quotes(),
        }),
    }))
}

/// QEMU's CPU model of this processor's generation.
fn model_of_host() -> Option<String> {
    let (family, model) = host::Files::below(Path::new("/")).family_and_model()?;
    let product = Generation::of_cpu(family, model)?.product();
    Some(format!("EPYC-{product}"))
}

fn check_firmware(kind: Kind, path: &Path) -> Result<(), TeeError> {
    let image = read("firmware", path, measure::snp::FIRMWARE_BYTES)?;
    let parsed = match kind {
        Kind::Snp => measure::snp::Firmware::parse(&image)
            .map(drop)
            .map_err(|error| error.to_string()),
        Kind::Tdx => measure::tdx::Firmware::parse(&image, Vmm::Qemu)
            .map(drop)
            .map_err(|error| error.to_string()),
    };
    parsed.map_err(|reason| TeeError::Firmware {
        path: path.to_owned(),
        kind: kind.name(),
        reason,
    })
}

/// QEMU takes the guest policy from the file, some versions after the launch has begun with the configured
/// one: only where both are the same is it known which holds.
fn check_igvm(path: &Path, policy: u64) -> Result<(), TeeError> {
    let refused = |reason| TeeError::Igvm {
        path: path.to_owned(),
        reason,
    };
    // One more, so that a longer file is not taken for its beginning.
    let file = read("IGVM file", path, measure::snp::IGVM_BYTES + 1)?;
    let parsed = Igvm::parse(&file).map_err(|error| refused(error.to_string()))?;
    let said = parsed.policy();
    if said != policy {
        return Err(refused(format!(
            "it has the guest policy {said}, and snp_guest_policy is {policy}: set both to one"
        )));
    }
    Ok(())
}

fn check_kernel(path: &Path) -> Result<(), TeeError> {
    let (at, magic) = BZIMAGE;
    let head = read("kernel", path, at + magic.len())?;
    match head.get(at..) {
        Some(found) if found == magic => Ok(()),
        _ => Err(TeeError::Kernel {
            path: path.to_owned(),
        }),
    }
}

/// The first bytes of a file.
fn read(what: &'static str, path: &Path, most: usize) -> Result<Vec<u8>, TeeError> {
    let mut content = Vec::new();
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    File::open(path)
        .and_then(|file| file.take(most).read_to_end(&mut content))
        .map_err(|source| TeeError::Read {
            what,
            path: path.to_owned(),
            source,
        })?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tee;
    use hypervisor::tee::DEFAULT_CPU_MODEL;

    fn kernel(directory: &Path, magic: &[u8; 4]) -> PathBuf {
        let path = directory.join("kernel");
        let mut image = vec![0; 0x202];
        image.extend(magic);
        std::fs::write(&path, image).unwrap();
        path
    }

    #[test]
    fn a_plain_vm_is_none_and_a_wrong_file_is_named_before_anything_is_launched() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        assert_eq!(confidential(&config, None).unwrap(), None);
        config.tee = Tee::Snp;
        config.vm.kernel = kernel(directory.path(), b"\x7fELF");
        let error = confidential(&config, None).unwrap_err().to_string();
        assert!(error.contains("no bzImage"), "{error}");
        config.vm.kernel = kernel(directory.path(), b"HdrS");
        let firmware = directory.path().join("OVMF.fd");
        std::fs::write(&firmware, vec![0; 1 << 20]).unwrap();
        config.vm.firmware = Some(firmware);
        for (tee, kind) in [(Tee::Snp, "SEV-SNP"), (Tee::Tdx, "TDX")] {
            config.tee = tee;
            let error = confidential(&config, None).unwrap_err().to_string();
            assert!(
                error.contains(&format!("starts no {kind} guest")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_igvm_file_is_read_and_has_the_policy_that_is_configured() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.tee = Tee::Snp;
        config.vm.kernel = kernel(directory.path(), b"HdrS");
        let path = directory.path().join("guest.igvm");
        config.vm.igvm = Some(path.clone());
        let file = |policy| {
            support::igvm::Builder::snp(policy)
                .page(0, 0, 0, None)
                .file()
        };
        std::fs::write(&path, file(0x3_0000)).unwrap();
        assert!(confidential(&config, None).unwrap().is_some());
        for (content, named) in [
            (
                file(0x13_0000),
                "guest policy 1245184, and snp_guest_policy is 196608",
            ),
            (file(0x3_0000)[1..].to_vec(), "no IGVM file"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = confidential(&config, None).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn the_launch_binds_the_digest_of_the_init_data() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.vm.kernel = kernel(directory.path(), b"HdrS");
        let text = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = \"package x\"\n";
        let data = evidence::init_data::InitData::parse(text.as_bytes()).unwrap();
        let digest = data.digest();
        config.tee = Tee::Snp;
        let Some(Confidential::Snp(snp)) = confidential(&config, Some(&digest)).unwrap() else {
            panic!("no SNP guest");
        };
        assert_eq!(snp.host_data, digest.as_bytes()[..32]);
        assert_eq!((snp.policy, snp.id_block), (0x3_0000, None));
        assert_eq!(snp.cpu_model, DEFAULT_CPU_MODEL);
        config.tee = Tee::Tdx;
        let Some(Confidential::Tdx(tdx)) = confidential(&config, Some(&digest)).unwrap() else {
            panic!("no TD");
        };
        assert_eq!(tdx.mrconfigid, digest.as_bytes());
    }
}
