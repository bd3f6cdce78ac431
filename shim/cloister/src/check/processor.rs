//! KVM and what of it is for confidential guests: from the processor's flags, which are CPUID's after firmware
//! and kernel had their say, the modules' parameters and the devices.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::{Finding, Host};

const KVM: &str = "kvm";
const SNP: &str = "sev-snp";
const TDX: &str = "tdx";
/// The oldest kernels that are hosts of such guests.
const SNP_KERNEL: &str = "Linux 6.11";
const TDX_KERNEL: &str = "Linux 6.16";

/// The vendor's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Amd,
    Intel,
    None,
}

/// What the processor is and has.
#[derive(Debug)]
struct Processor {
    vendor: Vendor,
    flags: Vec<String>,
}

impl Processor {
    fn of(host: &Host) -> Self {
        let text = host.text("/proc/cpuinfo");
        let first = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            let line = lines.find(|(name, _)| name.trim() == key);
            line.map(|(_, value)| value.trim()).unwrap_or_default()
        };
        Self {
            vendor: match first("vendor_id") {
                "AuthenticAMD" => Vendor::Amd,
                "GenuineIntel" => Vendor::Intel,
                _ => Vendor::None,
            },
            flags: first("flags")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|it| it == flag)
    }
}

/// All of it.
pub(super) fn look(host: &Host) -> Vec<Finding> {
    let processor = Processor::of(host);
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open(host.path("/dev/kvm"));
    vec![
        kvm(host, &processor, opened.map(drop)),
        snp(host, &processor),
        tdx(host, &processor),
    ]
}

fn kvm(host: &Host, processor: &Processor, opened: io::Result<()>) -> Finding {
    let absent = |found: String, fix: String| {
        Finding::absent(
            KVM,
            format!("{found}: guests are emulated, which is slow"),
            fix,
        )
    };
    let can_virtualize = processor.has("vmx") || processor.has("svm");
    match opened.map_err(|error| error.kind()) {
        Ok(()) if can_virtualize => Finding::good(KVM, "/dev/kvm opens"),
        Ok(()) | Err(io::ErrorKind::NotFound) if !can_virtualize => absent(
            "the processor shows neither vmx nor svm".to_owned(),
            "turn virtualization on in the firmware's set-up; in a VM, nested virtualization on its host"
                .to_owned(),
        ),
        Err(io::ErrorKind::PermissionDenied) => {
            let group = std::fs::metadata(host.path("/dev/kvm")).map(|it| it.gid());
            let group = group_name(host, group.unwrap_or_default());
            absent(
                "/dev/kvm is there and not for this user".to_owned(),
                format!("`sudo usermod -aG {group} $USER`, and log in again"),
            )
        }
        Err(io::ErrorKind::NotFound) => {
            let module = match processor.vendor {
                Vendor::Amd => "kvm_amd",
                Vendor::Intel | Vendor::None => "kvm_intel",
            };
            let state = match host.has(&format!("/sys/module/{module}")) {
                true => "is loaded, and /dev/kvm is not there",
                false => "is not loaded",
            };
            absent(format!("the module {module} {state}"), format!("`sudo modprobe {module}`"))
        }
        Ok(()) | Err(_) => absent("/dev/kvm does not open".to_owned(), String::new()),
    }
}

/// The name of a group; its number where it has none.
fn group_name(host: &Host, gid: u32) -> String {
    let groups = host.text("/etc/group");
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| gid.to_string())
}

/// Whether a parameter of a module is on; `None` where the module is not loaded or does not have it.
fn parameter(host: &Host, module: &str, name: &str) -> Option<bool> {
    let text = host.text(&format!("/sys/module/{module}/parameters/{name}"));
    match text.trim() {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

fn snp(host: &Host, processor: &Processor) -> Finding {
    let absent = |found: &str, fix: &str| Finding::absent(SNP, found, fix);
    if processor.vendor != Vendor::Amd {
        return absent("not an AMD processor", "");
    }
    if !processor.has("sev_snp") {
        let fix = "an EPYC 7003 or later, with SMEE, SEV-SNP and the RMP table on in its firmware's set-up";
        return absent("the processor's flags have no sev_snp", fix);
    }
    match parameter(host, "kvm_amd", "sev_snp") {
        Some(true) if host.has("/dev/sev") => Finding::good(SNP, "kvm_amd and /dev/sev serve it"),
        Some(true) => absent("/dev/sev is not there", "`sudo modprobe ccp`"),
        Some(false) => absent(
            "kvm_amd has it off",
            "`options kvm_amd sev=1 sev_es=1 sev_snp=1` in /etc/modprobe.d; the kernel's log says why it stays off",
        ),
        None => {
            let found = "kvm_amd is not loaded, or does not know it";
            absent(
                found,
                &format!("`sudo modprobe kvm_amd`, and at least {SNP_KERNEL}"),
            )
        }
    }
}

fn tdx(host: &Host, processor: &Processor) -> Finding {
    let absent = |found: &str, fix: &str| Finding::absent(TDX, found, fix);
    if processor.vendor != Vendor::Intel {
        return absent("not an Intel processor", "");
    }
    if !processor.has("tdx_host_platform") {
        let fix = "a Xeon of the 5th generation or later, with TME-MT and TDX on in its firmware's set-up";
        return absent("the processor's flags have no tdx_host_platform", fix);
    }
    match parameter(host, "kvm_intel", "tdx") {
        Some(true) => Finding::good(TDX, "kvm_intel serves it"),
        Some(false) => absent(
            "kvm_intel has it off",
            "`kvm_intel.tdx=1` on the kernel's command line",
        ),
        None => {
            let found = "kvm_intel is not loaded, or does not know it";
            absent(
                found,
                &format!("`sudo modprobe kvm_intel`, and at least {TDX_KERNEL}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    /// A host of these files.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host {
            root: directory.path().to_owned(),
        };
        for (path, text) in files {
            let path = host.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        (directory, host)
    }

    const AMD: (&str, &str) = (
        "/proc/cpuinfo",
        "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm sev sev_es sev_snp\n",
    );
    const INTEL: (&str, &str) = (
        "/proc/cpuinfo",
        "vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx tdx_host_platform\n",
    );

    #[test]
    fn each_reason_against_kvm_has_its_own_fix() {
        let (_at, host) = host(&[AMD, ("/etc/group", "root:x:0:\nkvm:x:993:me\n")]);
        let processor = Processor::of(&host);
        let of = |kind| kvm(&host, &processor, Err(io::Error::from(kind)));
        assert_eq!(kvm(&host, &processor, Ok(())).state, State::Good);
        let module = of(io::ErrorKind::NotFound);
        assert!(module.fix.unwrap().contains("modprobe kvm_amd"));
        let denied = of(io::ErrorKind::PermissionDenied);
        assert!(denied.fix.unwrap().contains("usermod -aG root"));
        assert_eq!(group_name(&host, 993), "kvm");
        let old = Processor {
            vendor: Vendor::None,
            flags: Vec::new(),
        };
        for opened in [Ok(()), Err(io::ErrorKind::NotFound.into())] {
            let finding = kvm(&host, &old, opened);
            assert_eq!(finding.state, State::Absent);
            assert!(finding.fix.unwrap().contains("firmware"));
        }
    }

    #[test]
    fn confidential_guests_need_processor_module_and_device() {
        let sev_snp = ("/sys/module/kvm_amd/parameters/sev_snp", "Y\n");
        let (_at, bare) = host(&[AMD]);
        let (_at, off) = host(&[AMD, ("/sys/module/kvm_amd/parameters/sev_snp", "N\n")]);
        let (_at, deviceless) = host(&[AMD, sev_snp]);
        let (_at, whole) = host(&[AMD, sev_snp, ("/dev/sev", "")]);
        let (_at, intel) = host(&[INTEL, ("/sys/module/kvm_intel/parameters/tdx", "Y\n")]);
        let fix = |host: &Host| snp(host, &Processor::of(host)).fix.unwrap_or_default();
        assert!(fix(&bare).contains(SNP_KERNEL));
        assert!(fix(&off).contains("modprobe.d"));
        assert!(fix(&deviceless).contains("ccp"));
        assert_eq!(snp(&whole, &Processor::of(&whole)).state, State::Good);
        assert_eq!(snp(&intel, &Processor::of(&intel)).state, State::Absent);
        assert_eq!(tdx(&intel, &Processor::of(&intel)).state, State::Good);
        assert_eq!(tdx(&whole, &Processor::of(&whole)).state, State::Absent);
    }
}
