//! The bundle of a container that is run without containerd: `config.json`, FIFOs for its streams, and
//! one for the shim's log, which nobody reads.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use evidence::init_data::annotation;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::init_data;

/// What an image's process may do where nothing else is said: what other runtimes give it.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What the container is to be.
pub(super) struct Wanted<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) args: &'a [String],
    pub(super) init_data: Option<&'a Path>,
    pub(super) has_input: bool,
}

/// A bundle, which goes with the value.
#[derive(Debug)]
pub(super) struct Bundle {
    directory: TempDir,
    id: String,
    has_input: bool,
}

impl Bundle {
    pub(super) fn write(wanted: &Wanted<'_>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("run-").tempdir()?;
        let id = match wanted.name {
            Some(name) => name.to_owned(),
            // As random as the directory.
            None => {
                let name = directory.path().file_name().unwrap_or_default();
                name.to_string_lossy().into_owned()
            }
        };
        super::check_name(&id)?;
        let bundle = Self {
            directory,
            id,
            has_input: wanted.has_input,
        };
        std::fs::create_dir(bundle.path().join("rootfs"))?;
        let spec = spec(wanted.args, &annotations(wanted.init_data)?);
        std::fs::write(bundle.path().join("config.json"), spec.to_string())?;
        for fifo in ["stdin", "stdout", "stderr"] {
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, bundle.path().join(fifo), FileType::Fifo, mode, 0)
                .with_context(|| format!("make the FIFO {fifo}"))?;
        }
        Ok(bundle)
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The FIFO for its input, where it has one.
    pub(super) fn stdin(&self) -> Option<PathBuf> {
        self.has_input.then(|| self.path().join("stdin"))
    }

    pub(super) fn stdout(&self) -> PathBuf {
        self.path().join("stdout")
    }

    pub(super) fn stderr(&self) -> PathBuf {
        self.path().join("stderr")
    }

    /// Copies our input into its own, in a thread that nobody waits for: a read of a terminal ends when
    /// its user likes. The future is ready when our input has ended.
    pub(super) fn feed_input(&self) -> impl Future<Output = Result<(), oneshot::error::RecvError>> {
        let (sender, ended) = oneshot::channel();
        let fifo = self.path().join("stdin");
        std::thread::spawn(move || {
            let copied = std::fs::File::options()
                .write(true)
                .open(fifo)
                .and_then(|mut fifo| io::copy(&mut io::stdin(), &mut fifo));
            // A process that reads no more breaks the pipe, which is its own affair.
            drop(copied);
            let _ = sender.send(());
        });
        ended
    }
}

fn annotations(init_data: Option<&Path>) -> Result<Value> {
    let Some(path) = init_data else {
        return Ok(json!({}));
    };
    let value = annotation::encode(&init_data::read(path)?)?;
    Ok(json!({ annotation::KEY: value }))
}

/// The specification: what is not in it, the guest takes from the image.
fn spec(args: &[String], annotations: &Value) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "cgroup", "network"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "args": args,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "annotations": annotations,
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::spec::group::{self, Role};

    fn wanted(name: Option<&str>) -> Wanted<'_> {
        Wanted {
            name,
            args: &[],
            init_data: None,
            has_input: false,
        }
    }

    #[test]
    fn a_bundle_is_one_that_the_shim_takes_and_goes_with_its_value() {
        let bundle = Bundle::write(&wanted(None)).unwrap();
        let spec = shim::spec::read(bundle.path()).unwrap();
        assert_eq!(group::role(&spec.annotations).unwrap(), Role::Single);
        let process = spec.process.unwrap();
        assert!(process.args.is_empty() && process.env.is_empty() && process.cwd.is_empty());
        assert!(bundle.id().starts_with("run-"), "{}", bundle.id());
        let path = bundle.path().to_owned();
        drop(bundle);
        assert!(!path.exists());
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        assert_eq!(Bundle::write(&wanted(Some("web"))).unwrap().id(), "web");
        assert!(Bundle::write(&wanted(Some("../web"))).is_err());
    }
}
