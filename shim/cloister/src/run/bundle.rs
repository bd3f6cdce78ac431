//! The bundle of a container that is run without containerd: `config.json`, and FIFOs for its streams and
//! the shim's log, which nobody reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use evidence::init_data::annotation;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::store::Run;
use crate::init_data;
use shim::spec::amend::GUEST_DNS;

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

/// The shares of a processor's time that a limit is counted in (microseconds).
const CPU_PERIOD: u64 = 100_000;
/// The most processors that a limit may name.
const MAX_CPUS: f64 = 1024.0;
/// The least memory that a container can live with, in bytes.
const MIN_MEMORY: u64 = 4 << 20;

/// What a process is to be, in `run` and `exec`.
#[derive(Debug, Default, Args)]
pub(crate) struct Process {
    /// A variable of its environment, as NAME=VALUE; NAME alone takes ours.
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Its working directory.
    #[arg(long, short, value_name = "DIRECTORY")]
    workdir: Option<String>,
    /// The user, as the image or a number knows it: USER, UID, USER:GROUP, UID:GID.
    #[arg(long, short)]
    user: Option<String>,
}

/// What a container is to be.
#[derive(Debug, Default, Args)]
pub(crate) struct Container {
    /// A directory or file of the host in the container: SOURCE:DESTINATION, or SOURCE:DESTINATION:ro.
    ///
    /// In a plain VM with virtio-fs only: nothing of the host is shared with a confidential guest.
    #[arg(long, short, value_name = "SOURCE:DESTINATION[:ro]")]
    volume: Vec<String>,
    /// The most processors that it may use; the VM gets as many.
    #[arg(long)]
    cpus: Option<f64>,
    /// The most memory that it may use, as 512m or 2g; the VM gets that in addition to its own.
    #[arg(long, short)]
    memory: Option<String>,
    /// The program in place of the image's own; the arguments follow it.
    #[arg(long)]
    entrypoint: Option<String>,
    /// Its network. The default is `user` in a plain VM, and `none` in a confidential one or with init-data.
    #[arg(long)]
    network: Option<Network>,
}

/// The network of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// None: the guest reaches what the relay dials, and nothing else.
    None,
    /// QEMU's user network, which needs no root: out by the host's addresses, nothing in. The host's loopback
    /// is at 10.0.2.2.
    User,
}

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub(super) args: &'a [String],
    pub(super) process: &'a Process,
    pub(super) container: &'a Container,
    pub(super) init_data: Option<&'a Path>,
    /// Whether the guest is a confidential one.
    pub(super) is_confidential: bool,
    pub(super) terminal: bool,
}

/// A bundle in the directory of its run.
#[derive(Debug)]
pub(super) struct Bundle;

impl Bundle {
    /// Writes it, for its owner alone: the environment is in it.
    pub(super) fn write(run: &Run, spec: &Value) -> Result<()> {
        let path = run.bundle();
        std::fs::create_dir_all(path.join("rootfs"))
            .with_context(|| format!("make {}", path.display()))?;
        shim::state_dir::write_whole(&path.join("config.json"), spec.to_string().as_bytes())
            .context("write the specification")?;
        for fifo in ["stdin", "stdout", "stderr"] {
            make_fifo(&path.join(fifo))?;
        }
        Ok(())
    }
}

/// Makes a FIFO for its owner alone.
pub(super) fn make_fifo(path: &Path) -> Result<()> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .with_context(|| format!("make the FIFO {}", path.display()))
}

impl Process {
    /// As the specification has it: what is not in it, the guest takes from the image or the container.
    pub(super) fn spec(&self, args: &[String], terminal: bool) -> Result<Value> {
        let mut process = json!({
            "terminal": terminal,
            "args": args,
            "env": self.environment(|name| std::env::var(name).ok())?,
            "cwd": self.workdir.as_deref().unwrap_or_default(),
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
        });
        if let Some(cwd) = self.workdir.as_deref().filter(|cwd| !cwd.starts_with('/')) {
            bail!("--workdir {cwd:?} is not an absolute path in the container");
        }
        if let Some(user) = &self.user {
            process["user"] = json!({"uid": 0, "gid": 0, "username": user});
        }
        if terminal && let Some((columns, rows)) = super::terminal::size() {
            process["consoleSize"] = json!({"width": columns, "height": rows});
        }
        Ok(process)
    }

    fn environment(&self, ours: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
        let mut environment = Vec::new();
        for entry in &self.env {
            let name = entry.split('=').next().unwrap_or_default();
            if name.is_empty() {
                bail!("--env: an entry has no name; write NAME=VALUE");
            }
            match (entry.contains('='), ours(name)) {
                (true, _) => environment.push(entry.clone()),
                (false, Some(value)) => environment.push(format!("{name}={value}")),
                // As docker: a variable that we do not have is none there either.
                (false, None) => {}
            }
        }
        Ok(environment)
    }
}

impl Container {
    /// The arguments of its first process.
    fn args(&self, args: &[String]) -> Vec<String> {
        self.entrypoint.iter().chain(args).cloned().collect()
    }

    fn resources(&self) -> Result<Value> {
        let mut resources = json!({});
        if let Some(cpus) = self.cpus {
            if !(cpus > 0.0 && cpus <= MAX_CPUS) {
                bail!("--cpus {cpus}: use a number above 0, at most {MAX_CPUS}");
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked above to be a small positive number"
            )]
            let quota = (cpus * CPU_PERIOD as f64).ceil() as u64;
            resources["cpu"] = json!({"quota": quota.max(1000), "period": CPU_PERIOD});
        }
        if let Some(memory) = &self.memory {
            resources["memory"] = json!({"limit": bytes(memory)?});
        }
        Ok(resources)
    }

    /// The mounts of what it has of the host.
    fn volumes(&self) -> Result<Vec<Value>> {
        self.volume.iter().map(|volume| mount_of(volume)).collect()
    }
}

/// A size as people write it: bytes, or a number with k, m, g and maybe b.
fn bytes(text: &str) -> Result<u64> {
    let lower = text.to_ascii_lowercase();
    let number = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, shift) = match number.as_bytes().last() {
        Some(b'k') => (&number[..number.len() - 1], 10),
        Some(b'm') => (&number[..number.len() - 1], 20),
        Some(b'g') => (&number[..number.len() - 1], 30),
        _ => (number, 0),
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if (MIN_MEMORY..=i64::MAX.unsigned_abs()).contains(&bytes) => Ok(bytes),
        Some(_) => bail!("--memory {text:?}: use at least {}m", MIN_MEMORY >> 20),
        None => bail!("--memory {text:?} is not a size: write bytes, or a number with k, m or g"),
    }
}

fn mount_of(volume: &str) -> Result<Value> {
    let mut parts = volume.split(':');
    let (source, destination) = (parts.next().unwrap_or_default(), parts.next());
    let access = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => "rw",
        (Some("ro"), None) => "ro",
        _ => bail!("--volume {volume:?}: write SOURCE:DESTINATION or SOURCE:DESTINATION:ro"),
    };
    let Some(destination) = destination.filter(|path| path.starts_with('/')) else {
        bail!("--volume {volume:?}: the destination is to be an absolute path in the container");
    };
    if !source.contains('/') && source != "." && source != ".." {
        bail!(
            "--volume {volume:?}: there are no named volumes; write a path, such as ./{source}:{destination}"
        );
    }
    let source = PathBuf::from(source);
    let source = source
        .canonicalize()
        .with_context(|| format!("--volume {}", source.display()))?;
    Ok(json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", access, "nosuid", "nodev"],
    }))
}

fn annotations(init_data: Option<&Path>) -> Result<Value> {
    let Some(path) = init_data else {
        return Ok(json!({}));
    };
    let value = annotation::encode(&init_data::read(path)?)?;
    Ok(json!({ annotation::KEY: value }))
}

/// Which network it gets.
fn network(wanted: &Wanted<'_>) -> Network {
    let is_plain = !wanted.is_confidential && wanted.init_data.is_none();
    wanted.container.network.unwrap_or(match is_plain {
        true => Network::User,
        false => Network::None,
    })
}

/// The specification: what is not in it, the guest takes from the image.
pub(super) fn spec(wanted: &Wanted<'_>) -> Result<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let network = network(wanted);
    namespaces.push(match network {
        Network::None => json!({"type": "network"}),
        Network::User => json!({"type": "network", "path": shim::network::USER}),
    });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    if network == Network::User {
        mounts.push(mount("/etc/resolv.conf", GUEST_DNS, &[]));
    }
    mounts.extend(wanted.container.volumes()?);
    let args = wanted.container.args(wanted.args);
    Ok(json!({
        "ociVersion": "1.1.0",
        "process": wanted.process.spec(&args, wanted.terminal)?,
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "annotations": annotations(wanted.init_data)?,
        "linux": {
            "namespaces": namespaces,
            "resources": wanted.container.resources()?,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::spec::Spec;
    use shim::spec::group::{self, Role};

    fn made(container: &Container, process: &Process, args: &[&str]) -> Result<Spec> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let spec = spec(&Wanted {
            args: &args,
            process,
            container,
            init_data: None,
            is_confidential: false,
            terminal: false,
        })?;
        Ok(serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_is_not_asked_for_is_the_images() {
        let spec = made(&Container::default(), &Process::default(), &[]).unwrap();
        assert_eq!(group::role(&spec.annotations).unwrap(), Role::Single);
        let process = spec.process.unwrap();
        assert!(process.args.is_empty() && process.env.is_empty() && process.cwd.is_empty());
        assert!(process.user.is_none());
    }

    #[test]
    fn what_is_asked_for_is_in_the_specification() {
        let container = Container {
            volume: vec!["/tmp:/data:ro".into()],
            cpus: Some(1.5),
            memory: Some("64m".into()),
            entrypoint: Some("/bin/sh".into()),
            network: Some(Network::None),
        };
        let process = Process {
            env: vec!["A=b=c".into()],
            workdir: Some("/w".into()),
            user: Some("web:web".into()),
        };
        let spec = made(&container, &process, &["-c", "x"]).unwrap();
        let process = spec.process.unwrap();
        assert_eq!(process.args, ["/bin/sh", "-c", "x"]);
        assert_eq!(
            (process.env[0].as_str(), process.cwd.as_str()),
            ("A=b=c", "/w")
        );
        assert_eq!(process.user.unwrap().username, "web:web");
        let mount = spec.mounts.last().unwrap();
        assert_eq!(
            (mount.source.as_str(), mount.destination.as_str()),
            ("/tmp", "/data")
        );
        assert!(mount.options.contains(&"ro".to_owned()));
        let resources = spec.linux.unwrap().resources.unwrap();
        assert_eq!(resources.memory.unwrap().limit, Some(64 << 20));
        assert_eq!(resources.cpu.unwrap().quota, Some(150_000));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for memory in ["", "x", "1", "12q", "99999999999g", "-1m"] {
            assert!(bytes(memory).is_err(), "{memory}");
        }
        assert_eq!(bytes("1Gb").unwrap(), 1 << 30);
        for volume in [
            "/tmp",
            "data:/x",
            "/tmp:x",
            "/tmp:/x:rx",
            "/tmp:/x:ro:z",
            "/nonexistent-1:/x",
        ] {
            assert!(mount_of(volume).is_err(), "{volume}");
        }
        for cpus in [0.0, -1.0, f64::NAN, 1e9] {
            let container = Container {
                cpus: Some(cpus),
                ..Container::default()
            };
            assert!(container.resources().is_err(), "{cpus}");
        }
    }

    #[test]
    fn a_variable_without_a_value_is_ours() {
        let process = Process {
            env: ["A", "B", "C=1"].map(str::to_owned).to_vec(),
            ..Process::default()
        };
        let ours = |name: &str| (name == "A").then(|| "mine".to_owned());
        assert_eq!(process.environment(ours).unwrap(), ["A=mine", "C=1"]);
        let nameless = Process {
            env: vec!["=x".into()],
            ..Process::default()
        };
        assert!(nameless.environment(|_| None).is_err());
    }

    #[test]
    fn the_network_is_the_users_only_in_a_plain_vm() {
        let of = |network, is_confidential| {
            let container = Container {
                network,
                ..Container::default()
            };
            super::network(&Wanted {
                args: &[],
                process: &Process::default(),
                container: &container,
                init_data: None,
                is_confidential,
                terminal: false,
            })
        };
        assert_eq!(of(None, false), Network::User);
        assert_eq!(of(None, true), Network::None);
        assert_eq!(of(Some(Network::None), false), Network::None);
    }
}
