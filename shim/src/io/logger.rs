//! A logger of the user's that takes both outputs of a process: `binary://` and a path, with arguments as
//! the query, the way containerd's shim for runc starts it.
//!
//! ```text
//!   fd 3: reads standard output      CONTAINER_ID, CONTAINER_NAMESPACE
//!   fd 4: reads standard error       arguments: each key of the query and its first value
//!   fd 5: closes it when it is ready
//! ```

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tracing::{debug, warn};
use url::Url;

use super::Owner;

/// The scheme.
pub(super) const SCHEME: &str = "binary://";
/// How long a logger may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may work on after the end of both outputs, and then after it was asked to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const TERM_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to look whether it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Arguments of a logger.
const MAX_ARGUMENTS: usize = 256;
/// The first descriptor that a logger has no use for.
const FIRST_FREE: i32 = 6;

/// What a URI asks to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) program: String,
    arguments: Vec<String>,
}

/// A running logger. It ends with the outputs; dropping this sees to it.
#[derive(Debug)]
pub(super) struct Logger {
    child: Child,
}

#[derive(Debug, Clone, Copy)]
struct Child(Pid);

/// The shim's ends of both outputs, and the logger.
pub(super) struct Started {
    pub(super) stdout: pipe::Sender,
    pub(super) stderr: pipe::Sender,
    pub(super) logger: Logger,
}

impl Command {
    /// Reads a `binary://` URI.
    ///
    /// # Errors
    /// It names no absolute path, or too much.
    pub(super) fn parse(uri: &str) -> Result<Self, GuestError> {
        let refuse = |cause: &str| {
            let text = format!("{uri}: {cause}");
            GuestError::new(ErrorCode::InvalidArgument, "stdio", text)
        };
        let url = Url::parse(uri).map_err(|error| refuse(&error.to_string()))?;
        let program = url.path();
        let names_host = url.host_str().is_some_and(|host| !host.is_empty());
        if names_host || !Path::new(program).is_absolute() {
            return Err(refuse("a logger is named by an absolute path"));
        }
        if program.contains('%') {
            return Err(refuse(
                "the path has characters that a URI cannot have: rename it",
            ));
        }
        let mut arguments: Vec<String> = Vec::new();
        let mut keys = std::collections::BTreeSet::new();
        for (key, value) in url.query_pairs() {
            if keys.insert(key.clone()) {
                arguments.extend([key.into_owned(), value.into_owned()]);
            }
        }
        if arguments.len() > MAX_ARGUMENTS {
            return Err(refuse("it has too many arguments"));
        }
        Ok(Self {
            program: program.to_owned(),
            arguments,
        })
    }

    /// Starts the logger, and waits until it is ready.
    ///
    /// # Errors
    /// It does not start, or is not ready in time.
    pub(super) async fn start(&self, owner: &Owner) -> Result<Started, GuestError> {
        let failed = |cause: String| {
            let text = format!("logger {}: {cause}", self.program);
            GuestError::new(ErrorCode::Internal, "stdio", text)
        };
        let of_system = |error: std::io::Error| failed(error.to_string());
        let (from_stdout, stdout) = open_pipe().map_err(of_system)?;
        let (from_stderr, stderr) = open_pipe().map_err(of_system)?;
        let (ready, when_ready) = open_pipe().map_err(of_system)?;
        let pid = self
            .spawn(owner, [&from_stdout, &from_stderr, &when_ready])
            .map_err(|error| failed(error.to_string()))?;
        let logger = Logger { child: Child(pid) };
        drop((from_stdout, from_stderr, when_ready));
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(of_system)?;
        // A byte or the end of the pipe: also the logger's own end, which writing to it will show.
        if timeout(READY_TIMEOUT, ready.read(&mut [0; 1]))
            .await
            .is_err()
        {
            let seconds = READY_TIMEOUT.as_secs();
            logger.child.signal(Signal::SIGKILL);
            return Err(failed(format!(
                "it did not close its descriptor 5, or write to it, in {seconds} s"
            )));
        }
        Ok(Started {
            stdout: pipe::Sender::from_owned_fd(stdout).map_err(of_system)?,
            stderr: pipe::Sender::from_owned_fd(stderr).map_err(of_system)?,
            logger,
        })
    }

    fn spawn(&self, owner: &Owner, descriptors: [&OwnedFd; 3]) -> nix::Result<Pid> {
        let mut actions = PosixSpawnFileActions::init()?;
        for (descriptor, number) in descriptors.into_iter().zip(3..FIRST_FREE) {
            actions.add_dup2(descriptor.as_raw_fd(), number)?;
        }
        // Rust's programs ignore it, and others rely on it.
        let mut defaults = SigSet::empty();
        defaults.add(Signal::SIGPIPE);
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_sigdefault(&defaults)?;
        attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
        let text = |text: &str| CString::new(text).map_err(|_| nix::Error::EINVAL);
        let program = text(&self.program)?;
        let words = std::iter::once(&self.program).chain(&self.arguments);
        let words: Vec<_> = words.map(|word| text(word)).collect::<Result<_, _>>()?;
        let environment = [
            text(&format!("CONTAINER_ID={}", owner.id))?,
            text(&format!("CONTAINER_NAMESPACE={}", owner.namespace))?,
        ];
        posix_spawn(
            program.as_c_str(),
            &actions,
            &attributes,
            &words,
            &environment,
        )
    }
}

/// A pipe, above the numbers that a logger's own descriptors have.
fn open_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((
        fcntl_dupfd_cloexec(&reader, FIRST_FREE)?,
        fcntl_dupfd_cloexec(&writer, FIRST_FREE)?,
    ))
}

impl Child {
    fn signal(self, signal: Signal) {
        // Not reaped yet, so that the number is still its own.
        let _ = kill(self.0, signal);
    }

    fn ended_within(self, time: Duration) -> bool {
        let since = Instant::now();
        loop {
            match waitpid(self.0, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if since.elapsed() < time => {
                    std::thread::sleep(LOOK_INTERVAL);
                }
                Ok(WaitStatus::StillAlive) => return false,
                Ok(status) => {
                    debug!(?status, "the logger has ended");
                    return true;
                }
                Err(error) => {
                    debug!(%error, "the logger is gone");
                    return true;
                }
            }
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let child = self.child;
        let reaper = move || {
            if child.ended_within(END_TIMEOUT) {
                return;
            }
            child.signal(Signal::SIGTERM);
            if !child.ended_within(TERM_TIMEOUT) {
                warn!(
                    pid = child.0.as_raw(),
                    "the logger does not end: it is killed"
                );
                child.signal(Signal::SIGKILL);
                child.ended_within(TERM_TIMEOUT);
            }
        };
        // It may take seconds, and a thread is all that it needs.
        let name = "logger-end".to_owned();
        if let Err(error) = std::thread::Builder::new().name(name).spawn(reaper) {
            warn!(%error, "nobody waits for the logger's end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::AsyncWriteExt;

    fn owner() -> Owner {
        Owner {
            namespace: "ns".into(),
            id: "web".into(),
        }
    }

    #[test]
    fn a_uri_is_a_program_and_its_arguments() {
        let command = Command::parse("binary:///bin/log?--to=a%20b&x=&--to=c").unwrap();
        assert_eq!(command.program, "/bin/log");
        assert_eq!(command.arguments, ["--to", "a b", "x", ""]);
        for uri in [
            "binary://log",
            "binary://host/bin/log",
            "binary:///a%20b",
            "binary://",
        ] {
            let error = Command::parse(uri).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{uri}");
        }
    }

    #[tokio::test]
    async fn a_logger_gets_both_outputs_and_knows_whose_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("log");
        let script = "#!/bin/sh\nexec 5>&-\ncat <&3 >\"$2/out\"\ncat <&4 >\"$2/err\"\n\
                      echo \"$1 $CONTAINER_NAMESPACE/$CONTAINER_ID\" >\"$2/who\"\n\
                      mv \"$2/who\" \"$2/done\"\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let place = directory.path().display();
        let command =
            Command::parse(&format!("binary://{}?to={place}", program.display())).unwrap();
        let started = command.start(&owner()).await.unwrap();
        let Started {
            mut stdout,
            mut stderr,
            logger,
        } = started;
        stdout.write_all(b"out").await.unwrap();
        stderr.write_all(b"err").await.unwrap();
        drop((stdout, stderr, logger));
        let done = directory.path().join("done");
        while !done.exists() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("done"), "to ns/web\n");
        assert_eq!((read("out"), read("err")), ("out".into(), "err".into()));
    }

    #[tokio::test]
    async fn a_logger_that_does_not_start_is_an_error_with_its_name() {
        let command = Command::parse("binary:///nonexistent/log").unwrap();
        let error = command.start(&owner()).await.err().unwrap();
        assert!(error.message.contains("/nonexistent/log"), "{error}");
    }
}
