//! The host's programs that a specification names for moments of a container's life (OCI hooks), as nerdctl
//! has them to give a container its network.
//!
//! ```text
//!   create: a process that holds the network namespace ─► prestart, createRuntime ─► VM
//!   start: the container's process ─► poststart          delete: VM ─► poststop
//! ```
//!
//! A hook is told a process id, by which it finds the container's namespaces. The VMM's would lead it into the
//! host's, so a process is put into the pod's before: this program, waiting for its input to end. It is in
//! the pod's network namespace, has the shim's mounts, and a host name and IPC that nobody uses. `poststop`
//! undoes what was done on the host, so it is on record before anything else runs, and the record goes when
//! it has ended: it runs by this process or by the one that cleans up after it, again if it was cut off.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::warn;

use crate::lock::lock;
use crate::network;
use crate::own_namespace;
use crate::spec::oci::Hook;
use crate::spec::{self, Spec};
use crate::state_dir::StateDir;

/// The verb by which this program holds a namespace.
pub const HOLD: &str = "hold";
/// How long a hook may take that names no time.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often to look whether it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What a hook said that is in an error, in bytes.
const MAX_SAID: usize = 1024;
/// How much of it is read at a time, and how long after its end the last of it may take.
const CHUNK: usize = 4096;
const LAST_WORDS: Duration = Duration::from_millis(100);
/// What a holder says when it is where it is to be.
const HELD: &[u8] = b"held";
/// The largest record, in bytes: it holds a part of a specification.
const MAX_RECORD: u64 = spec::MAX_SPEC;
/// How a record's name begins, in the sandbox's directory, before and while its hooks run.
const RECORD: &str = "poststop-";
const UNDOING: &str = "undoing-";
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

/// A process that is in a network namespace and in others of its own, and does nothing. It ends with this value, or with this process.
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
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut holder = network::spawn_in(path, command)
            .map(Self)
            .map_err(GuestError::from)?;
        // Before that it still is in the host's.
        let mut said = Vec::new();
        if let Some(output) = holder.0.stdout.take() {
            let most = HELD.len() as u64;
            let read = output.take(most).read_to_end(&mut said);
            read.map_err(|error| failed(&format!("the holder of namespaces: {error}")))?;
        }
        match said == HELD {
            true => Ok(holder),
            false => Err(failed("the holder of namespaces ended")),
        }
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

/// What a holder does: it leaves what it has of the host's, says so, and waits for the end of its input.
///
/// # Errors
/// As the kernel refuses namespaces.
pub fn hold() -> io::Result<()> {
    own_namespace::leave_host()?;
    let mut output = io::stdout();
    output.write_all(HELD)?;
    output.flush()?;
    // Whoever started it lets go when the pod is gone, or is dead itself.
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
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
    let told = told(id, bundle, spec);
    let record = Record {
        told: told.clone(),
        poststop: hooks.poststop.iter().map(Program::of).collect(),
    };
    directory
        .write_json(&record_name(id), &record)
        .map_err(|error| failed(&format!("the record of poststop: {error}")))?;
    for hook in hooks.prestart.iter().chain(&hooks.create_runtime) {
        run(&Program::of(hook), &told, "creating", pid, None)?;
    }
    Ok(())
}

/// Runs those that follow the start of a container. One that fails is told to nobody but the log, as the
/// specification of runtimes has it.
pub fn started(told: &Told, hooks: &[Hook], pid: u32) {
    for hook in hooks {
        if let Err(error) = run(&Program::of(hook), told, "running", pid, None) {
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
    let undoing = format!("{UNDOING}{id}");
    let (from, to) = (record_name(id), directory.path().join(&undoing));
    // One of two that ask for it at once has it.
    if std::fs::rename(directory.path().join(from), to).is_ok() {
        undo(directory, &undoing, None);
    }
}

/// Runs those of all containers of a sandbox whose shim is dead. Answers whether all have ended in that time.
#[must_use]
pub fn after_all(directory: &StateDir, within: Duration) -> bool {
    let until = Instant::now() + within;
    let entries = std::fs::read_dir(directory.path());
    let names = entries.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let records: Vec<_> = names.filter(|name| is_record(name)).collect();
    // Each is tried, whatever became of the others.
    let left = records
        .iter()
        .filter(|name| !undo(directory, name, Some(until)));
    left.count() == 0
}

/// Whether a file of the sandbox's directory says what hooks are to run.
#[must_use]
pub fn is_record(name: &str) -> bool {
    name.starts_with(RECORD) || name.starts_with(UNDOING)
}

/// Runs the hooks of a record, and forgets each that has ended. Answers whether none is left.
fn undo(directory: &StateDir, name: &str, until: Option<Instant>) -> bool {
    let Some(mut record) = directory.read_json::<Record>(name, MAX_RECORD) else {
        // Nothing that reads it later finds more in it.
        return true;
    };
    while let Some(program) = record.poststop.first() {
        let within = until.map(|until| until.saturating_duration_since(Instant::now()));
        if within.is_some_and(|within| within.is_zero()) {
            return false;
        }
        if let Err(error) = run(program, &record.told, "stopped", 0, within) {
            warn!(%error, container = record.told.id, "poststop");
        }
        record.poststop.remove(0);
        // It would run again, which does no harm that its failure would not do.
        let _ = directory.write_json(name, &record);
    }
    let _ = std::fs::remove_file(directory.path().join(name));
    true
}

fn record_name(id: &str) -> String {
    format!("{RECORD}{id}")
}

fn failed(text: &str) -> GuestError {
    GuestError::new(ErrorCode::FailedPrecondition, PHASE, text)
}

/// Runs one, for its own time where it names one, and for no longer than that.
fn run(
    program: &Program,
    told: &Told,
    status: &str,
    pid: u32,
    within: Option<Duration>,
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
    let own = program.timeout.map_or(TIMEOUT, Duration::from_secs);
    let within = within.map_or(own, |within| own.min(within));
    let (ended, said) = start(program, &told.bundle, &state.to_string())
        .and_then(|(child, said)| Ok((wait(child, within)?, said)))
        .map_err(|error| explain(error.to_string()))?;
    if ended.success() {
        return Ok(());
    }
    let last = said.last();
    Err(explain(format!(
        "{ended}: {}",
        String::from_utf8_lossy(&last).trim()
    )))
}

fn start(program: &Program, bundle: &Path, state: &str) -> io::Result<(Child, Said)> {
    let input = rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut input = File::from(input);
    input.write_all(state.as_bytes())?;
    input.rewind()?;
    let (reader, output) = io::pipe()?;
    let (name, arguments) = match program.args.split_first() {
        Some((name, rest)) => (name.clone(), rest),
        None => (program.path.display().to_string(), [].as_slice()),
    };
    let pairs = program.env.iter().filter_map(|pair| pair.split_once('='));
    let child = Command::new(&program.path)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(pairs)
        .current_dir(bundle)
        .stdin(input)
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    Ok((child, Said::listen(reader)?))
}

/// The last of what a hook says. It is read by a thread for as long as anybody speaks: one that leaves a
/// program behind holds up nobody, and that program goes on to have an output.
struct Said {
    last: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Said {
    fn listen(mut reader: io::PipeReader) -> io::Result<Self> {
        let (last, (tell, ended)) = (Arc::new(Mutex::new(Vec::new())), mpsc::channel());
        let kept = Arc::clone(&last);
        let thread = std::thread::Builder::new().name("hook".to_owned());
        thread.spawn(move || {
            let mut chunk = [0; CHUNK];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                let mut kept = lock(&kept);
                kept.extend_from_slice(chunk.get(..count).unwrap_or_default());
                let excess = kept.len().saturating_sub(MAX_SAID);
                kept.drain(..excess);
            }
            drop(tell);
        })?;
        Ok(Self { last, ended })
    }

    fn last(&self) -> Vec<u8> {
        let _ = self.ended.recv_timeout(LAST_WORDS);
        lock(&self.last).clone()
    }
}

fn wait(mut child: Child, within: Duration) -> io::Result<ExitStatus> {
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
