//! What of the host is for confidential guests: the processor's flags, which are CPUID's after firmware
//! and kernel had their say, the parameters of KVM's modules, the devices, and CPUID's leaf on memory
//! encryption.
#![cfg_attr(
    target_arch = "x86_64",
    allow(unsafe_code, unused_unsafe, reason = "CPUID is an intrinsic")
)]

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Kind;

/// The oldest kernels that are hosts of such guests.
const SNP_KERNEL: &str = "Linux 6.11";
const TDX_KERNEL: &str = "Linux 6.16";
/// Bytes of a file of the kernel's that are read.
const MAX_TEXT: u64 = 4 << 20;

/// What a host lacks for a kind of guest, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {found}{}{fix}", kind.name(), if fix.is_empty() { "" } else { ": " })]
pub struct Lack {
    /// The kind of guest.
    pub kind: Kind,
    /// What was found.
    pub found: &'static str,
    /// What to do; empty where nothing helps.
    pub fix: String,
}

/// The vendor of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Another one.
    Other,
}

/// How AMD's processor encrypts memory (CPUID 0x8000001F, EBX; AMD 24594).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEncryption {
    /// The bit of a guest's page tables that says that a page is encrypted.
    pub c_bit: u32,
}

/// The files of a host, below another root in tests.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Below a directory.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn text(&self, path: &str) -> String {
        use std::io::Read;
        let mut text = String::new();
        let read = std::fs::File::open(self.root.join(path))
            .and_then(|file| file.take(MAX_TEXT).read_to_string(&mut text));
        read.map(|_| text).unwrap_or_default()
    }

    /// The value of a field of the first processor in `/proc/cpuinfo`; empty where there is none.
    fn processor(&self, key: &str) -> String {
        let text = self.text("proc/cpuinfo");
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let line = lines.find(|(name, _)| name.trim() == key);
        line.map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    }

    /// Whose the processor is.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        match self.processor("vendor_id").as_str() {
            "AuthenticAMD" => Vendor::Amd,
            "GenuineIntel" => Vendor::Intel,
            _ => Vendor::Other,
        }
    }

    /// Whether the processor has a flag.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        self.processor("flags")
            .split_whitespace()
            .any(|it| it == flag)
    }

    /// CPUID's combined family and model.
    #[must_use]
    pub fn family_and_model(&self) -> Option<(u8, u8)> {
        let number = |key| self.processor(key).parse().ok();
        Some((number("cpu family")?, number("model")?))
    }

    /// Whether a parameter of a module is on; `None` where the module is not loaded or does not have it.
    fn parameter(&self, module: &str, name: &str) -> Option<bool> {
        let text = self.text(&format!("sys/module/{module}/parameters/{name}"));
        match text.trim() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        }
    }
}

/// Whether the host can launch guests of this kind.
///
/// # Errors
/// The first [`Lack`].
pub fn look(kind: Kind, host: &Files) -> Result<(), Lack> {
    match kind {
        Kind::Snp => snp(host),
        Kind::Tdx => tdx(host),
    }
}

fn snp(host: &Files) -> Result<(), Lack> {
    let lack = |found, fix: &str| {
        Err(Lack {
            kind: Kind::Snp,
            found,
            fix: fix.to_owned(),
        })
    };
    if host.vendor() != Vendor::Amd {
        return lack("not an AMD processor", "");
    }
    if !host.has_flag("sev_snp") {
        let fix = "an EPYC 7003 or later, with SMEE, SEV-SNP and the RMP table on in its firmware's set-up";
        return lack("the processor's flags have no sev_snp", fix);
    }
    match host.parameter("kvm_amd", "sev_snp") {
        Some(true) if host.root.join("dev/sev").exists() => Ok(()),
        Some(true) => lack("/dev/sev is not there", "`sudo modprobe ccp`"),
        Some(false) => lack(
            "kvm_amd has it off",
            "`options kvm_amd sev=1 sev_es=1 sev_snp=1` in /etc/modprobe.d; the kernel's log says why it stays off",
        ),
        None => lack(
            "kvm_amd is not loaded, or does not know it",
            &format!("`sudo modprobe kvm_amd`, and at least {SNP_KERNEL}"),
        ),
    }
}

fn tdx(host: &Files) -> Result<(), Lack> {
    let lack = |found, fix: &str| {
        Err(Lack {
            kind: Kind::Tdx,
            found,
            fix: fix.to_owned(),
        })
    };
    if host.vendor() != Vendor::Intel {
        return lack("not an Intel processor", "");
    }
    if !host.has_flag("tdx_host_platform") {
        let fix = "a Xeon of the 5th generation or later, with TME-MT and TDX on in its firmware's set-up";
        return lack("the processor's flags have no tdx_host_platform", fix);
    }
    match host.parameter("kvm_intel", "tdx") {
        Some(true) => Ok(()),
        Some(false) => lack(
            "kvm_intel has it off",
            "`kvm_intel.tdx=1` on the kernel's command line",
        ),
        None => lack(
            "kvm_intel is not loaded, or does not know it",
            &format!("`sudo modprobe kvm_intel`, and at least {TDX_KERNEL}"),
        ),
    }
}

/// How this processor encrypts memory; `None` where it does not.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn memory_encryption() -> Option<MemoryEncryption> {
    use core::arch::x86_64::__cpuid;
    const LARGEST: u32 = 0x8000_0000;
    const ENCRYPTION: u32 = 0x8000_001f;
    // SAFETY: every x86-64 processor has CPUID, and it changes nothing but the registers it returns.
    let (largest, leaf) = unsafe { (__cpuid(LARGEST).eax, __cpuid(ENCRYPTION)) };
    if largest < ENCRYPTION {
        return None;
    }
    decode(leaf.eax, leaf.ebx)
}

/// Elsewhere there is no such leaf.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub fn memory_encryption() -> Option<MemoryEncryption> {
    None
}

fn decode(eax: u32, ebx: u32) -> Option<MemoryEncryption> {
    const SEV: u32 = 1 << 1;
    (eax & SEV != 0).then_some(MemoryEncryption { c_bit: ebx & 0x3f })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of these files.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let files = Files::below(directory.path());
        (directory, files)
    }

    const AMD: (&str, &str) = (
        "proc/cpuinfo",
        "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu svm sev sev_es sev_snp\n",
    );
    const INTEL: (&str, &str) = (
        "proc/cpuinfo",
        "vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx tdx_host_platform\n",
    );

    #[test]
    fn confidential_guests_need_processor_module_and_device() {
        let on = ("sys/module/kvm_amd/parameters/sev_snp", "Y\n");
        let (_at, bare) = host(&[AMD]);
        let (_at, off) = host(&[AMD, ("sys/module/kvm_amd/parameters/sev_snp", "N\n")]);
        let (_at, deviceless) = host(&[AMD, on]);
        let (_at, whole) = host(&[AMD, on, ("dev/sev", "")]);
        let (_at, intel) = host(&[INTEL, ("sys/module/kvm_intel/parameters/tdx", "Y\n")]);
        let fix = |host: &Files| look(Kind::Snp, host).unwrap_err().fix;
        assert!(fix(&bare).contains(SNP_KERNEL));
        assert!(fix(&off).contains("modprobe.d"));
        assert!(fix(&deviceless).contains("ccp"));
        assert_eq!(look(Kind::Snp, &whole), Ok(()));
        assert_eq!(whole.family_and_model(), Some((0x19, 0x11)));
        assert_eq!(look(Kind::Tdx, &intel), Ok(()));
        let lack = look(Kind::Snp, &intel).unwrap_err();
        assert_eq!(lack.to_string(), "SEV-SNP: not an AMD processor");
        assert_eq!(
            look(Kind::Tdx, &whole).unwrap_err().to_string(),
            "TDX: not an Intel processor"
        );
    }

    #[test]
    fn the_leaf_of_an_epyc_has_its_c_bit() {
        // As an EPYC 9654 has it.
        let found = decode(0x0101_fd3f, 0x0000_4173).unwrap();
        assert_eq!(found.c_bit, 51);
        assert_eq!(decode(1, 0x4173), None);
    }
}
