//! Standard input and output of a process: containerd's FIFOs on one side, the agent's stream calls
//! on the other.
//!
//! Output is complete before the exit is told: the copies end when the guest's streams do. Two
//! things bound that wait. A stream that a left-over child of the process holds open ends a moment
//! after the process did, and so does one that nobody on the host reads.

use std::future::Future;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, limit};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use crate::guest::{Guest, Output, ProcessId};

/// How long a stream may stay open without a byte after its process ended.
const IDLE_AFTER_EXIT: Duration = Duration::from_secs(1);
/// How long to wait after an answer without bytes: a guest that hides output must not make the host
/// busy.
const HIDDEN_INTERVAL: Duration = Duration::from_millis(50);
/// How long a full FIFO may take no byte after the process ended.
const STALLED_AFTER_EXIT: Duration = Duration::from_secs(10);

/// What containerd asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// The FIFO to read, or empty.
    pub stdin: String,
    /// The FIFO to write, `file://` and a path, or empty.
    pub stdout: String,
    /// As `stdout`; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal, whose output is all on `stdout`.
    pub terminal: bool,
}

/// The open ends of a process's stdio.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<pipe::Receiver>,
    stdout: Sink,
    stderr: Sink,
    terminal: bool,
}

/// The shim's own writing end of a process's input: the reader sees no end before this is dropped,
/// which is when containerd asks for it, however many clients attach and detach.
#[derive(Debug)]
pub struct StdinHolder {
    _writer: Option<pipe::Sender>,
}

#[derive(Debug)]
enum Sink {
    Fifo(pipe::Sender),
    File(File),
    /// Nobody wants it, and yet it must be read: a full pipe would stop the process.
    Nowhere,
}

impl Sink {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Fifo(fifo) => fifo.write(bytes).await,
            Self::File(file) => {
                let count = file.write(bytes).await?;
                // What is told to be written must be there for who reads the file next.
                file.flush().await?;
                Ok(count)
            }
            Self::Nowhere => Ok(bytes.len()),
        }
    }
}

/// Checks what containerd asks for, before anything is done for the process.
///
/// # Errors
/// Where a path is missing, or of a kind that is not supported.
pub fn check(stdio: &Stdio) -> Result<(), GuestError> {
    for uri in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let path = match place(uri)? {
            Place::Nowhere | Place::NewFile(_) => continue,
            Place::Existing(path) => path,
        };
        std::fs::metadata(path).map_err(|error| refuse(path, &error))?;
    }
    Ok(())
}

/// Opens what containerd asks for. The input is opened when the process starts and not before: a
/// client sees the end of its own input only once there is a reader, and then expects to be able to
/// tell a task of it (`CloseIO`).
///
/// # Errors
/// Where a path cannot be opened, or is of a kind that is not supported.
pub async fn open(stdio: &Stdio) -> Result<(Streams, StdinHolder), GuestError> {
    let (stdin, holder) = match stdio.stdin.as_str() {
        "" => (None, None),
        path => {
            let failed = |error| refuse(path, &error);
            let reader = pipe::OpenOptions::new()
                .open_receiver(path)
                .map_err(failed)?;
            // Opening for both never waits and never fails for want of a reader.
            let holder = pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(path)
                .map_err(failed)?;
            (Some(reader), Some(holder))
        }
    };
    let stdout = open_sink(&stdio.stdout).await?;
    let stderr = if stdio.terminal {
        Sink::Nowhere
    } else {
        open_sink(&stdio.stderr).await?
    };
    let streams = Streams {
        stdin,
        stdout,
        stderr,
        terminal: stdio.terminal,
    };
    Ok((streams, StdinHolder { _writer: holder }))
}

async fn open_sink(uri: &str) -> Result<Sink, GuestError> {
    let (path, is_new) = match place(uri)? {
        Place::Nowhere => return Ok(Sink::Nowhere),
        Place::Existing(path) => (path, false),
        Place::NewFile(path) => (path, true),
    };
    let failed = |error| refuse(path, &error);
    let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if is_fifo {
        // Open for both, so that a reader that goes away and comes back loses nothing.
        let fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .map_err(failed)?;
        return Ok(Sink::Fifo(fifo));
    }
    if let Some(parent) = Path::new(path).parent().filter(|_| is_new) {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    let file = File::options().append(true).create(is_new).open(path).await;
    file.map(Sink::File).map_err(failed)
}

/// Where a stream of containerd's leads.
enum Place<'a> {
    Nowhere,
    Existing(&'a str),
    NewFile(&'a str),
}

fn place(uri: &str) -> Result<Place<'_>, GuestError> {
    match uri.split_once("://") {
        _ if uri.is_empty() => Ok(Place::Nowhere),
        None => Ok(Place::Existing(uri)),
        Some(("fifo", path)) => Ok(Place::Existing(path)),
        Some(("file", path)) => Ok(Place::NewFile(path.split('?').next().unwrap_or(path))),
        Some((scheme, _)) => {
            let text =
                format!("stdio of the kind {scheme}:// is not supported: use a FIFO or file://");
            Err(GuestError::new(ErrorCode::Unimplemented, "stdio", text))
        }
    }
}

fn refuse(path: &str, error: &std::io::Error) -> GuestError {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Internal,
    };
    GuestError::new(code, "stdio", format!("open {path}: {error}"))
}

/// The copies of one process. Dropping them ends them.
#[derive(Debug)]
pub struct Copies {
    outputs: JoinSet<()>,
    _input: JoinSet<()>,
    exited: watch::Sender<bool>,
}

impl Copies {
    /// Starts the copies of a process that exists in the guest.
    #[must_use]
    pub fn start(streams: Streams, guest: &Guest, id: &ProcessId) -> Self {
        let exited = watch::Sender::new(false);
        let mut outputs = JoinSet::new();
        let mut copy = |output, sink| {
            outputs.spawn(copy_output(
                guest.clone(),
                id.clone(),
                output,
                sink,
                exited.subscribe(),
            ));
        };
        copy(Output::Stdout, streams.stdout);
        if !streams.terminal {
            copy(Output::Stderr, streams.stderr);
        }
        let mut input = JoinSet::new();
        match streams.stdin {
            Some(stdin) => {
                input.spawn(copy_input(guest.clone(), id.clone(), stdin));
            }
            // A terminal without input stays as quiet as one that no one types at.
            None if streams.terminal => {}
            None => {
                input.spawn(end_input(guest.clone(), id.clone()));
            }
        }
        Self {
            outputs,
            _input: input,
            exited,
        }
    }

    /// Waits, after the process has ended, until all its output is written.
    pub async fn finish(mut self) {
        self.exited.send_replace(true);
        while self.outputs.join_next().await.is_some() {}
    }
}

async fn copy_output(
    guest: Guest,
    id: ProcessId,
    output: Output,
    mut sink: Sink,
    exited: watch::Receiver<bool>,
) {
    loop {
        let read = guest.read_output(&id, output);
        let data = match unless_overdue(read, &exited, IDLE_AFTER_EXIT).await {
            Some(Ok(Some(data))) => data,
            Some(Ok(None)) => return,
            Some(Err(error)) => {
                return debug!(%error, ?output, container = id.container, exec = id.exec, "output ended");
            }
            None => {
                return debug!(
                    ?output,
                    container = id.container,
                    exec = id.exec,
                    "output is held open"
                );
            }
        };
        if data.is_empty() {
            sleep(HIDDEN_INTERVAL).await;
        }
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            match unless_overdue(sink.write(rest), &exited, STALLED_AFTER_EXIT).await {
                Some(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                Some(Err(error)) => {
                    return debug!(%error, ?output, container = id.container, "write of output");
                }
                None => {
                    return debug!(?output, container = id.container, "nobody reads the output");
                }
            }
        }
    }
}

/// The future's outcome, or `None` where it takes longer than `grace` after the process ended.
async fn unless_overdue<T>(
    future: impl Future<Output = T>,
    exited: &watch::Receiver<bool>,
    grace: Duration,
) -> Option<T> {
    let mut exited = exited.clone();
    let overdue = async {
        // The sender goes with the copies.
        let _ = exited.wait_for(|exited| *exited).await;
        sleep(grace).await;
    };
    tokio::select! {
        biased;
        outcome = future => Some(outcome),
        () = overdue => None,
    }
}

async fn copy_input(guest: Guest, id: ProcessId, mut stdin: pipe::Receiver) {
    let mut buffer = vec![0; limit::MAX_STREAM_READ];
    loop {
        let count = match stdin.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return debug!(%error, "read of input"),
        };
        let mut rest = buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match guest.write_stdin(&id, rest).await {
                Ok(0) => return debug!("the process takes no input"),
                Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                Err(error) => return debug!(%error, "write of input"),
            }
        }
    }
    end_input(guest, id).await;
}

async fn end_input(guest: Guest, id: ProcessId) {
    if let Err(error) = guest.close_stdin(&id).await {
        debug!(%error, "end of input");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A FIFO that nobody has opened, as the path for a [`Stdio`].
    pub(crate) fn fifo(directory: &Path) -> String {
        let path = directory.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    #[tokio::test]
    async fn loggers_are_refused_by_name() {
        let stdio = Stdio {
            stdout: "binary:///bin/logger".into(),
            ..Stdio::default()
        };
        assert!(open(&stdio).await.is_err());
        let error = check(&stdio).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unimplemented);
        assert!(error.message.contains("binary://"), "{error}");
    }

    #[tokio::test]
    async fn a_fifo_needs_no_reader_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio {
            stdout: fifo(dir.path()),
            ..Stdio::default()
        };
        let (streams, _) = open(&stdio).await.unwrap();
        assert!(matches!(streams.stdout, Sink::Fifo(_)));
        let stdio = Stdio {
            stdout: "/nonexistent/x".into(),
            ..Stdio::default()
        };
        assert_eq!(open(&stdio).await.unwrap_err().code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn input_ends_only_after_the_holder_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio {
            stdin: fifo(dir.path()),
            ..Stdio::default()
        };
        let (mut streams, holder) = open(&stdio).await.unwrap();
        let mut writer = pipe::OpenOptions::new().open_sender(&stdio.stdin).unwrap();
        writer.write_all(b"x").await.unwrap();
        drop(writer);
        let stdin = streams.stdin.as_mut().unwrap();
        assert_eq!(stdin.read_u8().await.unwrap(), b'x');
        assert!(
            tokio::time::timeout(Duration::from_millis(50), stdin.read_u8())
                .await
                .is_err()
        );
        drop(holder);
        assert!(stdin.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn a_future_is_cut_short_only_after_the_exit() {
        let exited = watch::Sender::new(false);
        let receiver = exited.subscribe();
        let slow = || async { sleep(Duration::from_millis(60)).await };
        assert!(
            unless_overdue(slow(), &receiver, Duration::ZERO)
                .await
                .is_some()
        );
        exited.send_replace(true);
        assert!(
            unless_overdue(slow(), &receiver, Duration::ZERO)
                .await
                .is_none()
        );
    }
}
