//! One QEMU process from its start to its end.
//!
//! A thread starts the process and then waits for it, and does nothing else. That the thread which
//! starts it lives as long as the process is what makes the parent-death signal right: Linux sends
//! the signal when the *thread* that forked ends, and a worker of the async runtime may end early.
//! So a killed shim takes its VM down, and nothing has to be found by a pid file afterwards.
//!
//! ```text
//!   caller ── spawn() ──► thread: fork, PDEATHSIG, exec ──► waitid ──► Status
//!      └─ Process: pid, pidfd (kill is sent through it, so never to a recycled pid)
//! ```
#![expect(
    unsafe_code,
    reason = "what runs between fork and exec has no safe interface"
)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};
use rustix::thread::{CapabilitySet, UnshareFlags, unshare_unsafe};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It returned a code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Someone else in this process took its status first.
    Unknown,
}

/// Why the VM is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset, which ends the VM.
    Reset,
    /// The guest's kernel panicked; the line of the panic.
    Panic(String),
    /// We ended it.
    Stopped,
    /// QEMU ended by itself: its error output says why.
    Vmm,
}

/// The end of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How the process ended.
    pub status: Status,
    /// Why, as far as it is known.
    pub cause: Cause,
    /// The last of what QEMU wrote to its error output, at most 16 KiB.
    pub stderr_tail: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            Cause::PoweredOff => write!(f, "the guest powered off")?,
            Cause::Reset => write!(f, "the guest asked for a reset")?,
            Cause::Panic(line) => write!(f, "the guest's kernel panicked ({line})")?,
            Cause::Stopped => write!(f, "the VM was stopped")?,
            Cause::Vmm => write!(f, "QEMU ended by itself")?,
        }
        match self.status {
            Status::Code(0) | Status::Unknown => {}
            Status::Code(code) => write!(f, ", QEMU's exit code is {code}")?,
            Status::Signal(signal) => write!(f, ", QEMU was ended by signal {signal}")?,
        }
        match self.stderr_tail.trim() {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        }
    }
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) directory: PathBuf,
    /// Descriptors that the process inherits under the same numbers.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// In a network namespace of its own, in which nothing is.
    pub(crate) without_network: bool,
}

/// A running process. Dropping it kills the process; the thread reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    pid: u32,
}

/// A process just started, with the streams that someone must read.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) stderr: ChildStderr,
    pub(crate) ended: oneshot::Receiver<Status>,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGKILL. That the process has ended already is no error.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a process. Must not be called from a runtime's thread that may not block for a fork.
pub(crate) async fn spawn(launch: Launch) -> io::Result<Started> {
    let (started, result) = oneshot::channel();
    thread::Builder::new()
        .name("vmm".to_owned())
        .spawn(move || run(launch, started))?;
    result
        .await
        .map_err(|_| io::Error::other("the thread that starts QEMU ended early"))?
}

fn run(launch: Launch, started: oneshot::Sender<io::Result<Started>>) {
    let (ended, receiver) = oneshot::channel();
    let mut child = match fork_exec(launch) {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    match adopt(&mut child) {
        // When the caller is gone, what was sent is dropped, which kills the process.
        Ok((process, stderr)) => drop(started.send(Ok(Started {
            process,
            stderr,
            ended: receiver,
        }))),
        Err(error) => {
            let _ = child.kill();
            drop(started.send(Err(error)));
        }
    }
    let status = child.wait().map_or(Status::Unknown, |status| {
        match (status.code(), status.signal()) {
            (Some(code), _) => Status::Code(code),
            (None, Some(signal)) => Status::Signal(signal),
            (None, None) => Status::Unknown,
        }
    });
    let _ = ended.send(status);
}

fn adopt(child: &mut Child) -> io::Result<(Process, ChildStderr)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the process has no pid"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let stderr = child
        .stderr
        .take()
        .ok_or_else(|| io::Error::other("no error output"))?;
    Ok((
        Process {
            pidfd,
            pid: child.id(),
        },
        stderr,
    ))
}

/// Whether a process of ours may be put into a network namespace of its own.
pub(crate) fn may_unshare() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn fork_exec(launch: Launch) -> io::Result<Child> {
    let parent = getpid();
    let inherited: Vec<RawFd> = launch.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let without_network = launch.without_network;
    if inherited.iter().any(|&fd| fd <= 2) {
        return Err(io::Error::other(
            "a descriptor for QEMU has the number of a standard stream",
        ));
    }
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .current_dir(&launch.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: the closure runs in the child of a fork of a threaded process, where only
    // async-signal-safe calls are allowed: it makes plain system calls, and allocates nothing. The
    // descriptors stay open until `spawn` has returned, as `launch` lives until the end.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above: then no signal comes any more.
            if getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if without_network {
                unshare_unsafe(UnshareFlags::NEWNET)?;
            }
            for &fd in &inherited {
                fcntl_setfd(BorrowedFd::borrow_raw(fd), FdFlags::empty())?;
            }
            Ok(())
        });
    }
    let child = command.spawn();
    drop(launch);
    child
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: "/".into(),
            descriptors: Vec::new(),
            without_network: false,
        }
    }

    #[tokio::test]
    async fn the_exit_code_is_reported() {
        let started = spawn(shell("exit 3")).await.unwrap();
        assert_eq!(started.ended.await.unwrap(), Status::Code(3));
    }

    #[tokio::test]
    async fn dropping_a_process_kills_it() {
        let started = spawn(shell("sleep 60")).await.unwrap();
        drop(started.process);
        assert_eq!(started.ended.await.unwrap(), Status::Signal(9));
    }

    #[tokio::test]
    async fn a_program_that_is_absent_is_an_error_at_once() {
        let mut launch = shell("");
        launch.program = "/nonexistent/qemu".into();
        assert_eq!(
            spawn(launch).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[tokio::test]
    async fn only_the_named_descriptors_are_inherited() {
        let (kept, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (other, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let script = format!(
            "test -e /proc/self/fd/{} && ! test -e /proc/self/fd/{}",
            kept.as_raw_fd(),
            other.as_raw_fd()
        );
        let mut launch = shell(&script);
        launch.descriptors.push(kept.into());
        assert_eq!(
            spawn(launch).await.unwrap().ended.await.unwrap(),
            Status::Code(0)
        );
    }

    #[tokio::test]
    async fn a_process_without_network_is_in_a_namespace_of_its_own() {
        if !may_unshare() {
            eprintln!("skipped: a network namespace needs CAP_SYS_ADMIN");
            return;
        }
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let script = format!("test $(readlink /proc/self/ns/net) = '{}'", ours.display());
        for (without_network, code) in [(false, 0), (true, 1)] {
            let mut launch = shell(&script);
            launch.without_network = without_network;
            let ended = spawn(launch).await.unwrap().ended.await.unwrap();
            assert_eq!(ended, Status::Code(code));
        }
    }

    /// This test starts itself: as the child it is the shim that gets killed.
    #[tokio::test]
    async fn a_killed_shim_takes_its_process_down() {
        const ROLE: &str = "CLOISTER_TEST_KILLED_SHIM";
        if std::env::var_os(ROLE).is_some() {
            let started = spawn(shell("exec sleep 300")).await.unwrap();
            std::io::Write::write_all(
                &mut io::stderr(),
                format!("pid={}\n", started.process.pid()).as_bytes(),
            )
            .unwrap();
            let _ = started.ended.await;
            return;
        }
        let mut shim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "supervise::tests::a_killed_shim_takes_its_process_down",
                "--nocapture",
            ])
            .env(ROLE, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = io::BufRead::lines(io::BufReader::new(shim.stderr.take().unwrap()));
        let pid = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("pid=")?.parse().ok());
        let pid = Pid::from_raw(pid.unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        shim.kill().unwrap();
        shim.wait().unwrap();
        let mut ended = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        let second = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        assert_eq!(
            rustix::event::poll(&mut ended, Some(&second)).unwrap(),
            1,
            "it outlived the shim"
        );
    }
}
