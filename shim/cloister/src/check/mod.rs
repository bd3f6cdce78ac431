//! `cloister check`: what this host can do for a run and for pods, why not the rest, and how to get it.
//!
//! Each finding is looked up without changing anything, and says what to do where it is not as it should
//! be. What a run cannot do without decides the exit code; the rest is told.

mod guest;
mod package;
mod processor;
mod program;
mod snapshotter;
mod tee;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use package::Package;
use shim::config;

/// What to check.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The shim's configuration file; else the one that it would read.
    #[arg(long)]
    config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Also start guests, to prove what only hardware can: KVM, SEV-SNP, TDX (docs/hardware.md).
    #[arg(long)]
    tee: bool,
    /// Also write the report as JSON into this file, to be attached to an issue.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Good,
    /// Not there, and a run does without.
    Absent,
    /// Not there, and nothing runs without.
    Missing,
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    pub(crate) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
    /// The package that has it.
    #[serde(skip)]
    package: Option<Package>,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Good,
            found: found.into(),
            fix: None,
            package: None,
        }
    }

    fn absent(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Absent,
            fix: Some(fix.into()).filter(|fix| !fix.is_empty()),
            ..Self::good(name, found)
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            ..Self::absent(name, found, fix)
        }
    }

    fn of_package(mut self, package: Package) -> Self {
        self.package = Some(package);
        self
    }
}

/// All that was found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    /// Whether a run has all that it needs.
    pub(crate) can_run: bool,
    pub(crate) findings: Vec<Finding>,
    /// The command that installs what is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) install: Option<String>,
}

/// The files of a host, below another root in tests.
#[derive(Debug, Clone)]
struct Host {
    root: PathBuf,
}

impl Host {
    /// The text of a file of the kernel's; empty where there is none.
    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// What of it is for confidential guests.
    fn files(&self) -> hypervisor::tee::host::Files {
        hypervisor::tee::host::Files::below(&self.root)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Check {
    /// Checks; returns the exit code.
    pub(super) async fn run(self) -> Result<u8> {
        let report = report(self.config.as_deref()).await;
        if !self.tee {
            self.show(&report)?;
            return Ok(u8::from(!report.can_run));
        }
        let variable = config::from_environment();
        let path = config::choose(self.config.as_deref(), variable.as_deref());
        let config = config::load(path.as_deref())?;
        let proved = tee::prove(&config, report).await;
        self.show(&proved)?;
        Ok(u8::from(!proved.holds()))
    }

    /// Prints a report, and writes it where it was asked for. Nothing of a run or of a pod is in it.
    fn show<R: Serialize + fmt::Display>(&self, report: &R) -> Result<()> {
        let json = serde_json::to_string_pretty(report)?;
        let redact = crate::collect::Redact::new(crate::run::secrets());
        if let Some(path) = &self.report {
            std::fs::write(path, redact.text(&json) + "\n")
                .with_context(|| format!("write {}", path.display()))?;
        }
        match self.json {
            true => println!("{}", redact.text(&json)),
            false => print!("{}", redact.text(&report.to_string())),
        }
        Ok(())
    }
}

/// Looks at everything.
pub(crate) async fn report(named: Option<&Path>) -> Report {
    let host = Host {
        root: PathBuf::from("/"),
    };
    let variable = config::from_environment();
    let path = config::choose(named, variable.as_deref());
    let loaded = config::load(path.as_deref());
    let mut findings = vec![configuration(path.as_deref(), loaded.as_ref().err())];
    let config = loaded.unwrap_or_default();
    findings.extend(processor::look(&host));
    findings.extend(devices(&host));
    findings.extend(program::look(&config).await);
    findings.extend(guest::look(&config));
    findings.push(snapshotter::look(&host));
    findings.extend(user(&host));
    assemble(findings, &host)
}

fn assemble(findings: Vec<Finding>, host: &Host) -> Report {
    let packages: Vec<Package> = findings.iter().filter_map(|it| it.package).collect();
    Report {
        version: env!("CARGO_PKG_VERSION"),
        can_run: findings.iter().all(|it| it.state != State::Missing),
        install: package::command(&host.text("/etc/os-release"), &packages),
        findings,
    }
}

fn configuration(path: Option<&Path>, error: Option<&config::ConfigError>) -> Finding {
    const NAME: &str = "configuration";
    match (path, error) {
        (path, Some(error)) => {
            let path = path.unwrap_or(Path::new("the built-in defaults"));
            let found = format!("{}: {error}", path.display());
            Finding::missing(
                NAME,
                found,
                "`cloister config check` tells all that is wrong",
            )
        }
        (Some(path), None) => Finding::good(NAME, path.display().to_string()),
        (None, None) => Finding::good(NAME, "none: the built-in defaults hold"),
    }
}

/// What the kernel offers beside KVM.
fn devices(host: &Host) -> Vec<Finding> {
    let open = |path: &str| {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(host.path(path));
        file.map(drop)
    };
    let vsock = match open("/dev/vhost-vsock") {
        Ok(()) => Finding::good("vsock", "vhost-vsock"),
        Err(error) => Finding::absent(
            "vsock",
            format!("/dev/vhost-vsock does not open ({error}): the shim's own device is used"),
            "`modprobe vhost_vsock` where the kernel has it; the way is shorter then",
        ),
    };
    let tun = match open("/dev/net/tun") {
        Ok(()) => Finding::good("pod network", "/dev/net/tun"),
        Err(error) => Finding::absent(
            "pod network",
            format!("/dev/net/tun does not open ({error}): pods have no network; runs have QEMU's"),
            "`modprobe tun`, as root",
        ),
    };
    let kernel = host.text("/proc/sys/kernel/osrelease");
    vec![Finding::good("kernel", kernel.trim()), vsock, tun]
}

/// What a user other than root needs.
fn user(host: &Host) -> Vec<Finding> {
    let state = shim::state_dir::root();
    let mut findings = vec![writable("state", &state)];
    if rustix::process::geteuid().is_root() {
        return findings;
    }
    let number = |path: &str| host.text(path).trim().parse::<u64>().ok();
    let most = number("/proc/sys/user/max_user_namespaces");
    let is_off = number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0);
    let is_bound = number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
    findings.push(match (most, is_off, is_bound) {
        (Some(0), ..) => Finding::missing(
            USER_NAMESPACES,
            "user.max_user_namespaces is 0",
            "`sysctl user.max_user_namespaces=10000` as root, or use `sudo cloister`",
        ),
        (_, true, _) => Finding::missing(
            USER_NAMESPACES,
            "kernel.unprivileged_userns_clone is 0",
            "`sysctl kernel.unprivileged_userns_clone=1` as root, or use `sudo cloister`",
        ),
        (_, _, true) => Finding::absent(
            USER_NAMESPACES,
            "kernel.apparmor_restrict_unprivileged_userns is 1: a profile must allow them",
            "an AppArmor profile with `userns,` for the shim's program, or the sysctl set to 0",
        ),
        _ => Finding::good(USER_NAMESPACES, "allowed"),
    });
    findings
}

const USER_NAMESPACES: &str = "user namespaces";

/// Whether a directory, or what there is above it, can be written to.
fn writable(name: &'static str, path: &Path) -> Finding {
    let there = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::access(there, access) {
        Ok(()) => Finding::good(name, path.display().to_string()),
        Err(error) => Finding::missing(
            name,
            format!("{} cannot be written to: {error}", there.display()),
            format!(
                "set {} to a directory of yours, such as $XDG_RUNTIME_DIR/cloister",
                shim::state_dir::ROOT_VARIABLE
            ),
        ),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match finding.state {
                State::Good => "ok",
                State::Absent => "no",
                State::Missing => "MISSING",
            };
            writeln!(f, "{mark:8} {:16} {}", finding.name, finding.found)?;
            if let Some(fix) = &finding.fix {
                writeln!(f, "{:25} → {fix}", "")?;
            }
        }
        if let Some(install) = &self.install {
            writeln!(f, "\nTo install what is not there: {install}")?;
        }
        let verdict = match self.can_run {
            true => "This host can run containers.",
            false => "This host cannot run containers yet: what is MISSING comes first.",
        };
        writeln!(f, "\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_decides_and_what_is_installed_is_named_once() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/os-release"), "ID=debian\n").unwrap();
        let host = Host {
            root: root.path().to_owned(),
        };
        let qemu = || Finding::missing("qemu", "is not there", "").of_package(Package::Qemu);
        let report = |findings| assemble(findings, &host);
        let bad = report(vec![Finding::good("a", "b"), qemu(), qemu()]);
        assert!(!bad.can_run);
        assert_eq!(
            bad.install.as_deref(),
            Some("sudo apt-get install qemu-system-x86")
        );
        assert!(bad.to_string().contains("MISSING  qemu"), "{bad}");
        let good = report(vec![Finding::absent("tee", "none", "buy one")]);
        assert!(good.can_run && good.install.is_none());
        assert!(good.to_string().contains("can run containers"), "{good}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_is_told_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            writable("state", &root.path().join("a/b")).state,
            State::Good
        );
        let finding = writable("state", Path::new("/proc/1/x"));
        assert_eq!(finding.state, State::Missing);
        assert!(finding.fix.unwrap().contains("CLOISTER_STATE_ROOT"));
    }
}
