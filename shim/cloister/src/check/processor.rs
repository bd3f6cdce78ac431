//! KVM and what of it is for confidential guests: from the processor's flags, which are CPUID's after firmware
//! and kernel had their say, the modules' parameters and the devices.

use std::io;
use std::os::unix::fs::MetadataExt;

use hypervisor::tee::host::Vendor;
use hypervisor::tee::{self, Kind};

use super::{Finding, Host};

const KVM: &str = "kvm";
const SNP: &str = "sev-snp";
const TDX: &str = "tdx";

/// All of it.
pub(super) fn look(host: &Host) -> Vec<Finding> {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open(host.path("/dev/kvm"));
    vec![
        kvm(host, opened.map(drop)),
        confidential(SNP, Kind::Snp, host),
        confidential(TDX, Kind::Tdx, host),
    ]
}

fn kvm(host: &Host, opened: io::Result<()>) -> Finding {
    let absent = |found: String, fix: String| {
        Finding::absent(
            KVM,
            format!("{found}: guests are emulated, which is slow"),
            fix,
        )
    };
    let files = host.files();
    let can_virtualize = files.has_flag("vmx") || files.has_flag("svm");
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
            let module = match files.vendor() {
                Vendor::Amd => "kvm_amd",
                Vendor::Intel | Vendor::Other => "kvm_intel",
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

/// What there is for one kind of confidential guest.
fn confidential(name: &'static str, kind: Kind, host: &Host) -> Finding {
    let found = match kind {
        Kind::Snp => "kvm_amd and /dev/sev serve it",
        Kind::Tdx => "kvm_intel serves it",
    };
    match tee::host::look(kind, &host.files()) {
        Ok(()) => Finding::good(name, found),
        Err(lack) => Finding::absent(name, lack.found, lack.fix),
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
        let of = |kind| kvm(&host, Err(io::Error::from(kind)));
        assert_eq!(kvm(&host, Ok(())).state, State::Good);
        let module = of(io::ErrorKind::NotFound);
        assert!(module.fix.unwrap().contains("modprobe kvm_amd"));
        let denied = of(io::ErrorKind::PermissionDenied);
        assert!(denied.fix.unwrap().contains("usermod -aG root"));
        assert_eq!(group_name(&host, 993), "kvm");
        let old = super::super::Host {
            root: std::path::PathBuf::from("/nonexistent"),
        };
        for opened in [Ok(()), Err(io::ErrorKind::NotFound.into())] {
            let finding = kvm(&old, opened);
            assert_eq!(finding.state, State::Absent);
            assert!(finding.fix.unwrap().contains("firmware"));
        }
    }

    #[test]
    fn what_a_confidential_guest_lacks_is_told_with_the_way_to_it() {
        let (_at, bare) = host(&[AMD]);
        let finding = confidential(SNP, Kind::Snp, &bare);
        assert_eq!(finding.state, State::Absent);
        assert!(finding.fix.unwrap().contains("modprobe kvm_amd"));
        let (_at, intel) = host(&[INTEL, ("/sys/module/kvm_intel/parameters/tdx", "Y\n")]);
        assert_eq!(confidential(TDX, Kind::Tdx, &intel).state, State::Good);
    }
}
