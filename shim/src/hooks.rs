//! The host's programs that a specification names for moments of a container's life (OCI hooks), as nerdctl
//! has them to give a container its network.
//!
//! ```text
//!   create: a process that holds the network namespace ─► prestart, createRuntime ─► VM
//!   start: the container's process ─► poststart          delete: VM ─► poststop
//! ```
//!
//! A hook is told a process id, by which it finds the container's namespaces. The VMM's would lead it into the
//! host's network, so a process is put into the pod's namespace before: this program, waiting for its
//! input to end. `poststop` undoes what was done on the host, so it is on record before anything else runs,
//! and runs once, by this process or by the one that cleans up after it.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::warn;

use crate::network;
use crate::spec::Spec;
use crate::spec::oci::Hook;
use crate::state_dir::StateDir;

/// The verb by which this program holds a namespace.
pub const HOLD: &str = "hold";
/// How long a hook may take that names no time.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often to look whether it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What a hook said that is in an error, in bytes.
const MAX_SAID: usize = 1024;
/// The largest record, in bytes.
const MAX_RECORD: u64 = 1 << 20;
/// How a record's name begins, in the sandbox's directory.
const RECORD: &str = "poststop-";
const PHASE: &str = "hook";

/// What a hook is told of its container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    id: String,
    bundle: PathBuf,
    annotations: std::collections::BTreeMap<String, String>,
}

/// What is to be run when a container is gone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    told: Told,
    poststop: Vec<Program>,
}

/// A hook, as a record has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<u64>,
}

impl Program {
    fn of(hook: &Hook) -> Self {
        Self {
            path: PathBuf::from(&hook.path),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout: hook.timeout,
        }
    }
}

/// A process that is in a network namespace and does nothing. It ends with this value, or with this process.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Puts one into the namespace at a path, or into a new one.
    ///
    /// # Errors
    /// There is no such namespace, or it cannot be entered.
    pub fn start(path: Option<&Path>, directory: &StateDir) -> Result<Self, GuestError> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(HOLD)
            // By it a dead shim's is found.
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        network::spawn_in(path, command)
            .map(Self)
            .map_err(GuestError::from)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its network namespace, for as long as it is there.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether hooks run before the container is there.
#[must_use]
pub fn any_before(spec: &Spec) -> bool {
    let hooks = spec.hooks.as_ref();
    hooks.is_some_and(|hooks| !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty())
}

/// Whether there is any at all.
#[must_use]
pub fn any(spec: &Spec) -> bool {
    let hooks = spec.hooks.as_ref();
    any_before(spec)
        || hooks.is_some_and(|all| !all.poststart.is_empty() || !all.poststop.is_empty())
}

/// Runs those that come before the container, for a process that is in its namespaces.
///
/// # Errors
/// The hook that failed, and what it said. What it has done, [`after`] undoes.
pub fn before(
    directory: &StateDir,
    id: &str,
    bundle: &Path,
    spec: &Spec,
    pid: u32,
) -> Result<(), GuestError> {
    let Some(hooks) = &spec.hooks else {
        return Ok(());
    };
    let told = Told {
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        annotations: spec.annotations.clone(),
    };
    let record = Record {
        told: told.clone(),
        poststop: hooks.poststop.iter().map(Program::of).collect(),
    };
    directory
        .write_json(&record_name(id), &record)
        .map_err(|error| failed(&format!("the record of poststop: {error}")))?;
    for hook in hooks.prestart.iter().chain(&hooks.create_runtime) {
        run(directory, &Program::of(hook), &told, "creating", pid)?;
    }
    Ok(())
}

/// Runs those that follow the start of a container. One that fails is told to nobody but the log, as the
/// specification of runtimes has it.
pub fn started(directory: &StateDir, told: &Told, hooks: &[Hook], pid: u32) {
    for hook in hooks {
        if let Err(error) = run(directory, &Program::of(hook), told, "running", pid) {
            warn!(%error, "poststart");
        }
    }
}

/// What the hooks of a container are told.
#[must_use]
pub fn told(id: &str, bundle: &Path, spec: &Spec) -> Told {
    Told {
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        annotations: spec.annotations.clone(),
    }
}

/// Runs those that follow the end of a container, if they have not run yet.
pub fn after(directory: &StateDir, id: &str) {
    let name = record_name(id);
    let Some(record) = directory.read_json::<Record>(&name, MAX_RECORD) else {
        return;
    };
    // Before they run: none runs twice.
    let _ = std::fs::remove_file(directory.path().join(name));
    for program in &record.poststop {
        if let Err(error) = run(directory, program, &record.told, "stopped", 0) {
            warn!(%error, container = id, "poststop");
        }
    }
}

/// Runs those of all containers of a sandbox whose shim is dead.
pub fn after_all(directory: &StateDir) {
    let entries = std::fs::read_dir(directory.path());
    let names = entries.into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if let Some(id) = name.strip_prefix(RECORD) {
            after(directory, id);
        }
    }
}

fn record_name(id: &str) -> String {
    format!("{RECORD}{id}")
}

fn failed(text: &str) -> GuestError {
    GuestError::new(ErrorCode::FailedPrecondition, PHASE, text)
}

/// Runs one. What goes in and what it says are files: one that leaves a program behind holds up nobody.
fn run(
    directory: &StateDir,
    program: &Program,
    told: &Told,
    status: &str,
    pid: u32,
) -> Result<(), GuestError> {
    let state = json!({
        "ociVersion": "1.0.2",
        "id": told.id,
        "status": status,
        "pid": pid,
        "bundle": told.bundle,
        "annotations": told.annotations,
    });
    let explain =
        |cause: String| failed(&format!("{} ({status}): {cause}", program.path.display()));
    let input = directory.path().join("hook.json");
    let output = directory.path().join("hook.log");
    let ended = start(program, &told.bundle, &state.to_string(), &input, &output)
        .and_then(|child| wait(child, program.timeout))
        .map_err(|error| explain(error.to_string()))?;
    if ended.success() {
        return Ok(());
    }
    let said = std::fs::read(&output).unwrap_or_default();
    let last = &said[said.len().saturating_sub(MAX_SAID)..];
    Err(explain(format!(
        "{ended}: {}",
        String::from_utf8_lossy(last).trim()
    )))
}

fn start(
    program: &Program,
    bundle: &Path,
    state: &str,
    input: &Path,
    output: &Path,
) -> io::Result<Child> {
    std::fs::write(input, state)?;
    let output = File::create(output)?;
    let (name, arguments) = match program.args.split_first() {
        Some((name, rest)) => (name.clone(), rest),
        None => (program.path.display().to_string(), [].as_slice()),
    };
    let pairs = program.env.iter().filter_map(|pair| pair.split_once('='));
    Command::new(&program.path)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(pairs)
        .current_dir(bundle)
        .stdin(File::open(input)?)
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
}

fn wait(mut child: Child, timeout: Option<u64>) -> io::Result<ExitStatus> {
    let within = timeout.map_or(TIMEOUT, Duration::from_secs);
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if since.elapsed() >= within {
            let _ = child.kill();
            let _ = child.wait();
            let text = format!("did not end in {} s", within.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests;
