//! The programs that a VM needs: QEMU with its devices and objects, the virtio-fs daemon, the shim.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::package::Package;
use super::{Finding, State};
use crate::run::shim_program;
use shim::config::{Config, SharedFs};
use shim::virtiofs;

/// How long a program may take to say what it is.
const SAY_TIMEOUT: Duration = Duration::from_secs(10);
const QEMU: &str = "qemu";
/// The oldest QEMU that the command line is written for.
const OLDEST: (u32, u32) = (7, 2);
/// What every VM has, and what is for confidential ones.
const DEVICES: [&str; 4] = [
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-rng-pci",
    "vhost-user-vsock-pci",
];
const OBJECTS: [(&str, &str); 2] = [("sev-snp-guest", "9.1"), ("tdx-guest", "10.1")];

/// All of them.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let mut findings = qemu(&config.vm.qemu).await;
    findings.push(virtiofsd(config));
    findings.push(shim().await);
    findings
}

/// What a program says; `None` where it does not run or says that it failed.
async fn said(program: &Path, words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(SAY_TIMEOUT, command.output()).await {
        Err(_) => Err("does not answer".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if !output.status.success() => Err(format!("ends with {}", output.status)),
        Ok(Ok(output)) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}

async fn qemu(program: &Path) -> Vec<Finding> {
    let text = match said(program, &["--version"]).await {
        Ok(text) => text,
        Err(error) => {
            let found = format!("{} {error}", program.display());
            let fix = "install it, or name its path in [hypervisor.qemu]";
            return vec![Finding::missing(QEMU, found, fix).of_package(Package::Qemu)];
        }
    };
    let line = text.lines().next().unwrap_or_default();
    let mut findings = vec![match version(line) {
        Some(version) if version >= OLDEST => Finding::good(QEMU, line),
        Some(_) => Finding::missing(
            QEMU,
            line,
            format!(
                "at least {}.{}: a newer distribution has it",
                OLDEST.0, OLDEST.1
            ),
        ),
        None => Finding::missing(
            QEMU,
            format!("says {line:?}"),
            "name the program of QEMU in [hypervisor.qemu]",
        ),
    }];
    let devices = said(program, &["-device", "help"])
        .await
        .unwrap_or_default();
    let backends = said(program, &["-netdev", "help"])
        .await
        .unwrap_or_default();
    let objects = said(program, &["-object", "help"])
        .await
        .unwrap_or_default();
    findings.push(parts(&devices));
    findings.push(user_network(&backends));
    findings.extend(OBJECTS.map(|(name, since)| object(name, since, &objects)));
    findings
}

/// The numbers of `QEMU emulator version 10.0.2 (…)`.
fn version(line: &str) -> Option<(u32, u32)> {
    let (_, rest) = line.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn parts(devices: &str) -> Finding {
    const NAME: &str = "qemu devices";
    let absent: Vec<_> = DEVICES
        .into_iter()
        .filter(|device| !devices.contains(&format!("\"{device}\"")))
        .collect();
    match absent.is_empty() {
        true => Finding::good(NAME, "all that a VM has"),
        false => Finding::missing(
            NAME,
            format!("this QEMU has no {}", absent.join(", ")),
            "a QEMU that was not stripped of them",
        ),
    }
}

fn user_network(backends: &str) -> Finding {
    const NAME: &str = "user network";
    match backends.lines().any(|line| line.trim() == "user") {
        true => Finding::good(NAME, "in QEMU"),
        false => Finding::absent(
            NAME,
            "this QEMU has none: runs have no network",
            "a QEMU built with libslirp; till then `cloister run --network none`",
        ),
    }
}

fn object(name: &'static str, since: &str, objects: &str) -> Finding {
    match objects.lines().any(|line| line.trim() == name) {
        true => Finding::good(name, "QEMU has the object"),
        false => Finding::absent(
            name,
            "this QEMU has no such object",
            format!("QEMU {since} or later"),
        ),
    }
}

fn virtiofsd(config: &Config) -> Finding {
    const NAME: &str = "virtiofsd";
    if config.vm.shared_fs == SharedFs::None {
        return Finding::good(NAME, "not needed: shared_fs is \"none\"");
    }
    match virtiofs::find(&config.vm) {
        Some(path) if path.exists() => Finding::good(NAME, path.display().to_string()),
        _ => Finding::absent(
            NAME,
            "is not there: nothing of the host can be shared with guests",
            "install it, or name virtio_fs_daemon in [hypervisor.qemu]",
        )
        .of_package(Package::Virtiofsd),
    }
}

async fn shim() -> Finding {
    const NAME: &str = "shim";
    let program = match shim_program() {
        Ok(program) => program,
        Err(error) => return Finding::missing(NAME, error.to_string(), ""),
    };
    match said(&program, &["-v"]).await {
        Ok(text) => Finding::good(NAME, format!("{} ({})", program.display(), text.trim())),
        Err(error) => Finding {
            state: State::Missing,
            ..Finding::absent(
                NAME,
                format!("{} {error}", program.display()),
                "install it beside `cloister`, or in PATH",
            )
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(
            version("QEMU emulator version 10.0.2 (Debian 1:10.0.2)"),
            Some((10, 0))
        );
        assert!(version("QEMU emulator version 10.0") >= Some(OLDEST));
        assert!(version("QEMU emulator version 7.1.9") < Some(OLDEST));
        assert_eq!(version("BusyBox v1.36"), None);
    }

    #[test]
    fn what_a_qemu_lacks_is_named() {
        let listed = |devices: &[&str]| {
            devices
                .iter()
                .map(|device| format!("name \"{device}\", bus PCI\n"))
                .collect::<String>()
        };
        assert_eq!(parts(&listed(&DEVICES)).state, State::Good);
        let some = parts(&listed(&DEVICES[..3]));
        assert!(
            some.found.ends_with("no vhost-user-vsock-pci"),
            "{}",
            some.found
        );
        assert_eq!(user_network("tap\nuser\n").state, State::Good);
        assert_eq!(user_network("tap\nvhost-user\n").state, State::Absent);
        assert_eq!(object("tdx-guest", "1", "  tdx-guest\n").state, State::Good);
    }
}
