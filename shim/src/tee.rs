//! How a pod's VM becomes a confidential one: what the launch binds, and that its files are those of such a
//! launch. What a wrong file would do otherwise is start, and fail without a word.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use evidence::init_data::InitDataDigest;
use evidence::snp::Generation;
use hypervisor::Confidential;
use hypervisor::tee::{Kind, Snp, Tdx, host};
use measure::snp::{self, Igvm, KernelHashes};
use measure::tdx::Vmm;
use thiserror::Error;

use crate::config::Config;
use crate::kernel_line;

/// Where a bzImage says that it is one, and how (Linux `Documentation/arch/x86/boot.rst`).
const BZIMAGE: (usize, &[u8; 4]) = (0x202, b"HdrS");

/// Bytes of a kernel's file that hold its PE headers.
const HEADERS: usize = 4096;
/// Bytes of a whole kernel, and of an initramfs.
const KERNEL_BYTES: usize = 256 << 20;
const INITRAMFS_BYTES: usize = 1 << 30;

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
    /// The firmware has keys, and the kernel no signature.
    #[error(
        "firmware {firmware:?} has Secure Boot on (a platform key, PK, is among its variables), and kernel {kernel:?} is \
         not signed, so that it would not start: name firmware without keys, or take them out (`virt-fw-vars --input \
         FILE --delete PK --output OTHER`)"
    )]
    SecureBoot {
        /// The firmware.
        firmware: PathBuf,
        /// The kernel.
        kernel: PathBuf,
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
    let has_keys = match &config.vm.firmware {
        Some(path) => check_firmware(kind, path)?,
        None => false,
    };
    check_kernel(&config.vm.kernel)?;
    if has_keys {
        check_signed(config)?;
    }
    let keys = &config.vm.confidential;
    if let Some(path) = &config.vm.igvm {
        check_igvm(path, config)?;
    }
    Ok(Some(match kind {
        Kind::Snp => Confidential::Snp(Snp {
            cpu_model: match &keys.cpu_model {
                Some(model) => model.clone(),
                None => {
                    let host = host::Files::below(Path::new("/"));
                    model_of_host(&host).ok_or(TeeError::Generation)?
                }
            },
            policy: keys.policy,
            host_data: init_data.map(measure::host_data).unwrap_or_default(),
            id_block: keys.id().map_err(TeeError::IdBlock)?,
            vcek_disabled: keys.vcek_disabled,
        }),
        Kind::Tdx => Confidential::Tdx(Tdx {
            mrconfigid: init_data.map_or([0; measure::MRCONFIGID_BYTES], measure::mrconfigid),
            mrowner: keys.mrowner,
            mrownerconfig: keys.mrownerconfig,
            quotes: keys.quotes(),
        }),
    }))
}

/// QEMU's CPU model of the generation of a host's processor.
fn model_of_host(host: &host::Files) -> Option<String> {
    let (family, model) = host.family_and_model()?;
    let product = Generation::of_cpu(family, model)?.product();
    Some(format!("EPYC-{product}"))
}

/// Whether the firmware, which starts such guests, has keys of Secure Boot.
fn check_firmware(kind: Kind, path: &Path) -> Result<bool, TeeError> {
    let image = read("firmware", path, measure::snp::FIRMWARE_BYTES)?;
    let parsed = match kind {
        Kind::Snp => snp_firmware(&image).map(|()| false),
        Kind::Tdx => tdx_firmware(&image),
    };
    parsed.map_err(|reason| TeeError::Firmware {
        path: path.to_owned(),
        kind: kind.name(),
        reason,
    })
}

/// QEMU takes the guest policy from the file, some versions after the launch has begun with the configured
/// one: only where both are the same is it known which holds. It adds no hashes of what is booted to such a
/// launch, so that without those in the file any kernel would start under the same measurement.
fn check_igvm(path: &Path, config: &Config) -> Result<(), TeeError> {
    let policy = config.vm.confidential.policy;
    let refused = |reason| TeeError::Igvm {
        path: path.to_owned(),
        reason,
    };
    // One more, so that a longer file is not taken for its beginning.
    let file = read("IGVM file", path, measure::snp::IGVM_BYTES + 1)?;
    let parsed = Igvm::parse(&file, snp::Vmm::Qemu).map_err(|error| refused(error.to_string()))?;
    let said = parsed.policy();
    if said != policy {
        return Err(refused(format!(
            "it has the guest policy {said}, and snp_guest_policy is {policy}: set both to one"
        )));
    }
    let tied = parsed.ties(&booted(config, refused)?);
    tied.map_err(|error| refused(error.to_string()))
}

/// What QEMU is given to boot, by its hashes.
fn booted(config: &Config, refused: impl Fn(String) -> TeeError) -> Result<KernelHashes, TeeError> {
    let kernel = whole("kernel", &config.vm.kernel, KERNEL_BYTES)?;
    let initramfs = config.vm.initrd.as_deref();
    let initramfs = initramfs.map(|path| whole("initramfs", path, INITRAMFS_BYTES));
    let initramfs = initramfs.transpose()?;
    let line = kernel_line::measured(config).map_err(|error| refused(error.to_string()))?;
    let hashes = KernelHashes::new(&kernel, initramfs.as_deref(), &line);
    hashes.map_err(|error| refused(error.to_string()))
}

/// Firmware without a page for hashes would boot the kernel unchecked, and QEMU gives it none.
fn snp_firmware(image: &[u8]) -> Result<(), String> {
    let parsed = measure::snp::Firmware::parse(image).map_err(|error| error.to_string())?;
    match parsed.takes_hashes() {
        true => Ok(()),
        false => Err(measure::snp::LaunchError::NoHashes.to_string()),
    }
}

fn tdx_firmware(image: &[u8]) -> Result<bool, String> {
    let parsed = measure::tdx::Firmware::parse(image, Vmm::Qemu);
    let parsed = parsed.map_err(|error| error.to_string())?;
    parsed.has_platform_key().map_err(|error| error.to_string())
}

/// A kernel that somebody signed may be one that the firmware's keys allow.
fn check_signed(config: &Config) -> Result<(), TeeError> {
    let kernel = &config.vm.kernel;
    match measure::tdx::is_signed(&read("kernel", kernel, HEADERS)?) {
        Ok(true) => Ok(()),
        // What is no EFI image has no signature either.
        Ok(false) | Err(_) => Err(TeeError::SecureBoot {
            firmware: config.vm.firmware.clone().unwrap_or_default(),
            kernel: kernel.clone(),
        }),
    }
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

/// A file of at most so many bytes: the hash of a longer one's beginning is that of nothing.
fn whole(what: &'static str, path: &Path, most: usize) -> Result<Vec<u8>, TeeError> {
    let content = read(what, path, most + 1)?;
    if content.len() <= most {
        return Ok(content);
    }
    Err(TeeError::Read {
        what,
        path: path.to_owned(),
        source: io::Error::other(format!("it has more than {most} bytes: name a smaller one")),
    })
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
#[path = "../../attestation-agent/measure/tests/tdvf/mod.rs"]
mod tdvf;

#[cfg(test)]
mod tests {
    use super::tdvf::{GLOBAL, sections, store};
    use super::*;
    use crate::config::Tee;
    use hypervisor::tee::DEFAULT_CPU_MODEL;
    use measure::snp::CpuModel;

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
    fn the_hosts_generation_has_a_model_whose_signature_is_known() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("proc")).unwrap();
        let host = host::Files::below(directory.path());
        assert_eq!(model_of_host(&host), None, "no /proc/cpuinfo");
        for (family, model, expected) in [
            (25, 1, Some("EPYC-Milan")),
            (25, 17, Some("EPYC-Genoa")),
            // Bergamo and Siena.
            (25, 160, Some("EPYC-Genoa")),
            (26, 2, Some("EPYC-Turin")),
            // Rome, which has no SEV-SNP; a Ryzen of the family; and one that is no byte.
            (23, 49, None),
            (25, 80, None),
            (25, 273, None),
        ] {
            let text = format!("cpu family\t: {family}\nmodel\t\t: {model}\n");
            std::fs::write(directory.path().join("proc/cpuinfo"), text).unwrap();
            let found = model_of_host(&host);
            assert_eq!(found.as_deref(), expected, "{family}, {model}");
            if let Some(name) = found {
                assert_eq!(name.parse::<CpuModel>().unwrap().name(), name);
            }
        }
    }

    #[test]
    fn an_igvm_file_has_the_configured_policy_and_the_hashes_of_what_is_booted() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = igvm_config(directory.path());
        let path = config.vm.igvm.clone().unwrap();
        let bzimage = std::fs::read(&config.vm.kernel).unwrap();
        let line = kernel_line::measured(&config).unwrap();
        let right = hashes(&bzimage, b"initramfs", &line);
        let file = |policy, page: Option<&[u8]>| {
            let image = support::firmware::direct_boot(2);
            let mut builder = support::igvm::Builder::snp(policy);
            builder.pages((1 << 32) - image.len() as u64, &image);
            if let Some(page) = page {
                builder.page(0x81_0000, 0, 0, Some(page));
            }
            builder.file()
        };
        let good = file(0x3_0000, Some(&right));
        std::fs::write(&path, &good).unwrap();
        assert!(confidential(&config, None).unwrap().is_some());
        let mut bare = support::igvm::Builder::snp(0x3_0000);
        let other = |initramfs, line| hashes(&bzimage, initramfs, line);
        for (content, named) in [
            (
                file(0x13_0000, Some(&right)),
                "guest policy 1245184, and snp_guest_policy is 196608",
            ),
            (good[1..].to_vec(), "no IGVM file"),
            (file(0x3_0000, None), "build it with that page"),
            (bare.page(0, 0, 0, None).file(), "no place for hashes"),
            (
                file(0x3_0000, Some(&other(b"another", &line))),
                "of another kernel, initramfs or command line",
            ),
            (
                file(0x3_0000, Some(&other(b"initramfs", "quiet"))),
                "of another kernel, initramfs or command line",
            ),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = confidential(&config, None).unwrap_err().to_string();
            assert!(
                error.contains(named) && error.contains("guest.igvm"),
                "{error}"
            );
        }
        std::fs::write(&path, &good).unwrap();
        config.vm.initrd = Some(directory.path().join("nowhere"));
        let error = confidential(&config, None).unwrap_err().to_string();
        assert!(error.contains("initramfs"), "{error}");
    }

    /// A configuration with an IGVM file that is not there yet.
    fn igvm_config(directory: &Path) -> Config {
        let mut config = Config {
            tee: Tee::Snp,
            ..Config::default()
        };
        config.vm.kernel = kernel(directory, b"HdrS");
        let initramfs = directory.join("initramfs.cpio");
        std::fs::write(&initramfs, b"initramfs").unwrap();
        config.vm.initrd = Some(initramfs);
        config.vm.igvm = Some(directory.join("guest.igvm"));
        config
    }

    /// The page of hashes, of a line that ends with a zero byte as it counts.
    fn hashes(kernel: &[u8], initramfs: &[u8], line: &str) -> Vec<u8> {
        support::igvm::hashes(kernel, initramfs, format!("{line}\0").as_bytes())
    }

    #[test]
    fn generic_firmware_starts_no_snp_guest_with_a_kernel() {
        use support::firmware::{HASHES, SECTIONS, direct_boot, entries, image};
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            tee: Tee::Snp,
            ..Config::default()
        };
        config.vm.kernel = kernel(directory.path(), b"HdrS");
        let firmware = directory.path().join("OVMF.fd");
        config.vm.firmware = Some(firmware.clone());
        std::fs::write(&firmware, direct_boot(4)).unwrap();
        assert!(confidential(&config, None).unwrap().is_some());
        let mut generic = entries();
        generic.retain(|entry| entry.0 != HASHES);
        std::fs::write(&firmware, image(4, &SECTIONS, &generic)).unwrap();
        let error = confidential(&config, None).unwrap_err().to_string();
        assert!(error.contains("no page for the hashes"), "{error}");
    }

    #[test]
    fn firmware_with_keys_starts_a_td_of_a_signed_kernel_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            tee: Tee::Tdx,
            ..Config::default()
        };
        config.vm.kernel = directory.path().join("vmlinuz");
        let firmware = directory.path().join("OVMF.inteltdx.ms.fd");
        config.vm.firmware = Some(firmware.clone());
        let put = |signatures: u32, value: &[u8]| {
            std::fs::write(directory.path().join("vmlinuz"), tdvf::kernel(signatures)).unwrap();
            let keys = store(0x1000, &[(0x3f, GLOBAL, "PK", value)]);
            let sections = sections(0x1000, 0x3000);
            let image = tdvf::image(0x4000, &keys, &sections, &[tdvf::entry()]);
            std::fs::write(&firmware, image).unwrap();
        };
        for (signatures, key) in [(0, &b""[..]), (0x5c0, b""), (0x5c0, b"key")] {
            put(signatures, key);
            assert!(confidential(&config, None).unwrap().is_some());
        }
        put(0, b"key");
        let error = confidential(&config, None).unwrap_err().to_string();
        for named in [
            "Secure Boot",
            "OVMF.inteltdx.ms.fd",
            "vmlinuz",
            "virt-fw-vars",
        ] {
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
