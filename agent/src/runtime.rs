//! The agent's side of [`crate::jail`]: starts the sub-command, reads its pid file and report.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};

use crate::causes::of_report;
use crate::fault::OrFail;
use crate::jail::identity::Identity;
use crate::path::STATE;
use crate::process::Process;
use crate::reaper::{Child, Reaper};
use crate::stream::{ConsoleSocket, ProcessEnds, pipes};
use crate::users::{self, Map};

/// libcontainer's own state.
pub const CONTAINERS: &str = "/run/cloister/containers";
/// Pid files, reports and sockets of running sub-commands.
const SCRATCH: &str = "/run/cloister/scratch";
/// Part of the report that is shown.
const MAX_REPORT: u64 = 8 * 1024;
/// To make or start a container; minutes would be an error too, under emulation as well.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Makes and starts containers.
#[derive(Debug)]
pub struct Runtime {
    reaper: Arc<Reaper>,
    next: AtomicU64,
}

/// The files of one run of the sub-command, removed at its end.
struct Scratch {
    directory: PathBuf,
}

impl Runtime {
    /// A runtime whose processes this reaper waits for.
    #[must_use]
    pub fn new(reaper: Arc<Reaper>) -> Self {
        Self {
            reaper,
            next: AtomicU64::new(0),
        }
    }

    /// Makes a container; its first process waits to be started.
    ///
    /// # Errors
    ///
    /// What libcontainer said, whole.
    pub async fn create(
        &self,
        id: &str,
        bundle: &Path,
        terminal: bool,
    ) -> Result<Process, GuestError> {
        self.make("create", id, bundle, terminal).await
    }

    /// Makes a container whose process only waits; its root may be empty.
    ///
    /// # Errors
    ///
    /// What libcontainer said, whole.
    pub async fn pause(&self, id: &str, bundle: &Path) -> Result<Process, GuestError> {
        self.make("pause", id, bundle, false).await
    }

    /// Starts a further process of a container, from OCI's process object as a JSON text.
    ///
    /// # Errors
    ///
    /// What libcontainer said, whole.
    pub async fn exec(
        &self,
        id: &str,
        json: &str,
        identity: Option<&Identity>,
        terminal: bool,
    ) -> Result<Process, GuestError> {
        let scratch = self.scratch("exec")?;
        let file = scratch.path("process.json");
        fs::write(&file, json).or_internal("exec", "write process.json")?;
        if let Some(identity) = identity {
            identity.write_beside(&file)?;
        }
        self.make("exec", id, &file, terminal).await
    }

    /// Lets a container's first process go.
    ///
    /// # Errors
    ///
    /// What libcontainer said, whole.
    pub async fn start(&self, id: &str) -> Result<(), GuestError> {
        let scratch = self.scratch("start")?;
        let mut command = self_command("start", id);
        command.arg(scratch.path("report"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.run("start", command, &scratch).await
    }

    /// Makes a user namespace with these mappings, and keeps it by a mount on the file `path`.
    ///
    /// # Errors
    ///
    /// The kernel refuses the mappings.
    pub async fn user_namespace(&self, map: Map, path: PathBuf) -> Result<(), GuestError> {
        let scratch = self.scratch("users")?;
        let mut command = self_command("users", "-");
        command.arg(scratch.path("report"));
        let pair = || pipe_with(PipeFlags::CLOEXEC).or_internal("users", "make pipes");
        let ((held, hold), (told, tell)) = (pair()?, pair()?);
        command.stdin(held).stdout(tell).stderr(Stdio::null());
        let child = self.reaper.spawn(&mut command);
        let child = child.or_internal("users", "start the runtime")?;
        drop(command);
        let pid = child.pid();
        let work = move || users::establish(pid, told, &map, &path);
        let established = tokio::task::spawn_blocking(work).await;
        drop(hold);
        self.finish(&child).await;
        established.or_internal("users", "the task ended")?.or_fail(
            ErrorCode::InvalidArgument,
            "users",
            format!("make a user namespace {}", scratch.report()),
        )
    }

    /// Sends a signal to a process, unless it has ended.
    ///
    /// # Errors
    ///
    /// Those of kill(2).
    pub fn signal(&self, process: &Process, signal: Signal) -> std::io::Result<bool> {
        self.reaper.signal(process.child(), signal)
    }

    async fn make(
        &self,
        verb: &'static str,
        id: &str,
        argument: &Path,
        terminal: bool,
    ) -> Result<Process, GuestError> {
        let scratch = self.scratch(verb)?;
        let pid_file = scratch.path("pid");
        let mut command = self_command(verb, id);
        command.args([argument, &pid_file, &scratch.path("report")]);
        let expectation = self.reaper.expect();
        if terminal {
            let socket = ConsoleSocket::listen(scratch.path("console"))
                .or_internal(verb, "listen for the terminal")?;
            command.arg(socket.path());
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            self.run(verb, command, &scratch).await?;
            let child = expectation.claim(read_pid(verb, &pid_file)?);
            let console = socket
                .receive()
                .await
                .or_internal(verb, "receive the terminal")?;
            return Ok(Process::with_terminal(child, console));
        }
        let (ours, theirs) = pipes().or_internal(verb, "make pipes")?;
        let ProcessEnds {
            stdin,
            stdout,
            stderr,
        } = theirs;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        self.run(verb, command, &scratch).await?;
        let child = expectation.claim(read_pid(verb, &pid_file)?);
        Ok(Process::with_pipes(child, ours))
    }

    /// Takes the command, because it holds the process's ends of the pipes open.
    async fn run(
        &self,
        verb: &'static str,
        mut command: Command,
        scratch: &Scratch,
    ) -> Result<(), GuestError> {
        let child = self
            .reaper
            .spawn(&mut command)
            .or_internal(verb, "start the runtime")?;
        drop(command);
        let status = self.finish(&child).await;
        if status == Some(0) {
            return Ok(());
        }
        let report = scratch.report();
        let message = match status {
            None => format!(
                "the runtime did not end within {} s: {report}",
                TIMEOUT.as_secs()
            ),
            Some(_) if !report.is_empty() => report,
            Some(status) => format!("the runtime ended with status {status} and no report"),
        };
        Err(GuestError::new(code_of(&message), verb, message))
    }

    async fn finish(&self, child: &Child) -> Option<i32> {
        match tokio::time::timeout(TIMEOUT, child.wait()).await {
            Ok(status) => Some(status),
            Err(_) => {
                let _ = self.reaper.signal(child, Signal::KILL);
                None
            }
        }
    }

    fn scratch(&self, verb: &str) -> Result<Scratch, GuestError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(format!("{SCRATCH}/{number}"));
        fs::create_dir_all(&directory).or_internal(verb, directory.display())?;
        Ok(Scratch { directory })
    }
}

/// Makes the directories that the runtime needs.
///
/// # Errors
///
/// Those of mkdir(2).
pub fn prepare() -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    for directory in [STATE, CONTAINERS, SCRATCH] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    Ok(())
}

fn self_command(verb: &str, id: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["container", verb, id])
        .env_clear()
        .current_dir("/");
    command
}

fn read_pid(verb: &str, file: &Path) -> Result<Pid, GuestError> {
    let text = fs::read_to_string(file).or_internal(verb, "read the pid file")?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| GuestError::new(ErrorCode::Internal, verb, "the pid file holds no pid"))
}

/// What went wrong is the request's fault where libcontainer says that of the specification.
fn code_of(report: &str) -> ErrorCode {
    let text = report.to_ascii_lowercase();
    let is = |part: &str| text.contains(part);
    if is("no space left on device") || is("enospc") {
        ErrorCode::GuestDiskFull
    } else if is("executable") && (is("not found") || is("no such file")) {
        ErrorCode::NotFound
    } else if is("invalid spec") || is("permission denied") && is("executable") {
        ErrorCode::InvalidArgument
    } else {
        ErrorCode::Internal
    }
}

impl Scratch {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn report(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(self.path("report"))
            .and_then(|file| file.take(MAX_REPORT).read_to_end(&mut text));
        read.map(|_| of_report(&String::from_utf8_lossy(&text)))
            .unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_tells_the_requests_fault_from_ours() {
        assert_eq!(
            code_of("executable '/x' not found in $PATH"),
            ErrorCode::NotFound
        );
        assert_eq!(
            code_of("write: No space left on device"),
            ErrorCode::GuestDiskFull
        );
        assert_eq!(code_of("failed to fork"), ErrorCode::Internal);
    }
}
