//! Reports of starts, from shims to the node's monitor: a datagram each, on a socket in the directory of all
//! sandboxes.
//!
//! A pod that failed is gone before anybody asks its shim, so it tells by itself. Sending never waits; where
//! nobody listens, nobody counts.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use agent_api::ErrorCode;
use serde::{Deserialize, Serialize};

use crate::state_dir::StateDir;
use crate::timeline::PHASES;

/// The socket below the directory of all sandboxes; no namespace of containerd has this name.
const SOCKET: &str = "@monitor.sock";
/// The file whose lock the monitor holds.
const LOCK: &str = "@monitor.lock";
/// The largest report, in bytes.
pub const MAX_REPORT: usize = 1024;

/// A phase takes no longer: a sum that one report could spoil would say nothing of the others.
const MAX_PHASE_MS: u64 = 24 * 60 * 60 * 1000;

/// What became of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "outcome", rename_all = "kebab-case")]
pub enum Report {
    /// A container runs.
    Started {
        /// Milliseconds of each phase.
        phases: BTreeMap<String, u64>,
    },
    /// It does not.
    Failed {
        /// Why.
        code: ErrorCode,
    },
}

impl Report {
    /// Reads one. Each phase in it took a day at most.
    ///
    /// # Errors
    /// Where it is none, or names a phase that there is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut report = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if let Self::Started { phases } = &report
            && let Some(phase) = phases.keys().find(|name| !PHASES.contains(&name.as_str()))
        {
            return Err(format!("there is no phase {phase:?}"));
        }
        if let Self::Started { phases } = &mut report {
            let all = phases.values_mut();
            all.for_each(|ms| *ms = MAX_PHASE_MS.min(*ms));
        }
        Ok(report)
    }
}

/// Sends reports.
#[derive(Debug)]
pub(super) struct Reporter(PathBuf);

impl Reporter {
    /// To the monitor of the node that the sandbox is on.
    pub(super) fn beside(directory: &StateDir) -> Self {
        let root = directory.path().parent().and_then(Path::parent);
        Self(root.map(Path::to_owned).unwrap_or_default())
    }

    pub(super) fn send(&self, report: &Report) {
        let sent = || -> io::Result<()> {
            let root = File::open(&self.0)?;
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.send_to(&serde_json::to_vec(report)?, at(&root))?;
            Ok(())
        };
        if let Err(error) = sent() {
            tracing::debug!(%error, "no monitor takes a report");
        }
    }
}

/// Where the monitor of a node gets reports. There is one: it holds a lock for as long as it has this.
#[derive(Debug)]
pub struct Reports {
    /// Where they arrive.
    pub socket: UnixDatagram,
    _lock: File,
}

/// Takes the reports of a node.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] where another monitor has them, else as bind(2) fails.
pub fn listen(root: &Path) -> io::Result<Reports> {
    let directory = File::open(root)?;
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(root.join(LOCK))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(
            io::ErrorKind::AddrInUse,
            "another monitor runs on this node",
        ),
        TryLockError::Error(error) => error,
    })?;
    // Whoever had it is dead, or would hold the lock.
    match std::fs::remove_file(root.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(at(&directory))?;
    Ok(Reports {
        socket,
        _lock: lock,
    })
}

/// The socket by an open directory: a socket's address is short (unix(7)), and a path may be long.
fn at(root: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", root.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_and_without_a_monitor_nothing_waits() {
        let root = tempfile::tempdir().unwrap();
        // Longer than an address of a socket may be.
        let root = root.path().join("x".repeat(120));
        let directory = StateDir::at(&root.join("ns/pod"));
        directory.create().unwrap();
        let reporter = Reporter::beside(&directory);
        let report = Report::Failed {
            code: ErrorCode::VmmExited,
        };
        reporter.send(&report);
        let reports = listen(&root).unwrap();
        // A second one takes nothing away.
        let second = listen(&root).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        // A full socket takes no more, and the sender goes on.
        for _ in 0..5000 {
            reporter.send(&report);
        }
        let mut bytes = [0; MAX_REPORT];
        let length = reports.socket.recv(&mut bytes).unwrap();
        assert_eq!(Report::parse(&bytes[..length]).unwrap(), report);
        drop(reports);
        drop(listen(&root).unwrap());
        reporter.send(&report);
    }

    #[test]
    fn a_phase_of_ages_is_a_day() {
        let text = "{\"outcome\":\"started\",\"phases\":{\"vmm\":18446744073709551615,\"pull\":7}}";
        let Ok(Report::Started { phases }) = Report::parse(text.as_bytes()) else {
            unreachable!("it reads")
        };
        assert_eq!((phases["vmm"], phases["pull"]), (MAX_PHASE_MS, 7));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let good = "{\"outcome\":\"started\",\"phases\":{\"vmm\":1}}";
        assert!(Report::parse(good.as_bytes()).is_ok());
        for bad in [
            "",
            "{}",
            "{\"outcome\":\"started\",\"phases\":{\"lunch\":1}}",
            "{\"outcome\":\"failed\",\"code\":\"x\"}",
            "{\"outcome\":\"failed\",\"code\":\"internal\",\"x\":1}",
            "{\"outcome\":\"started\",\"phases\":{\"vmm\":-1}}",
        ] {
            assert!(Report::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
