//! One process of a container: its end, its stdio.
//!
//! A stream is read or written by single calls, as Kata's clients do, or lent to a connection of its own
//! ([`crate::stdio`]), and meanwhile to nobody else.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::{ErrorCode, GuestError, limit};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::Notify;

use crate::fault::{OrFail, invalid};
use crate::reaper::Child;
use crate::stream::{Pipes, Stream};

const PHASE: &str = "stdio";

/// A process, running or ended.
#[derive(Debug)]
pub struct Process {
    child: Child,
    terminal: bool,
    stdin: Input,
    stdout: Output,
    stderr: Output,
    waited: AtomicBool,
}

/// Which of the two a call reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error; a terminal has none.
    Stderr,
}

#[derive(Debug)]
struct Input {
    /// Until it is closed.
    stream: Mutex<Option<Arc<Stream>>>,
    lent: AtomicBool,
    closed: Notify,
}

#[derive(Debug)]
struct Output {
    stream: Option<Arc<Stream>>,
    lent: AtomicBool,
    ended: AtomicBool,
}

/// A process's input, for as long as a connection has it.
#[derive(Debug)]
pub struct LentInput {
    process: Arc<Process>,
    stream: Arc<Stream>,
}

/// One of a process's outputs, for as long as a connection has it, and then for nobody.
#[derive(Debug)]
pub struct LentOutput {
    process: Arc<Process>,
    kind: OutputKind,
    stream: Arc<Stream>,
}

impl Input {
    fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream: Mutex::new(Some(stream)),
            lent: AtomicBool::new(false),
            closed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Stream>>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn new(stream: Option<Arc<Stream>>) -> Self {
        Self {
            ended: AtomicBool::new(stream.is_none()),
            lent: AtomicBool::new(false),
            stream,
        }
    }
}

fn lent() -> GuestError {
    GuestError::new(
        ErrorCode::FailedPrecondition,
        PHASE,
        "a connection of its own has the stream",
    )
}

impl Process {
    /// A process with three pipes.
    #[must_use]
    pub fn with_pipes(child: Child, pipes: Pipes) -> Self {
        Self {
            child,
            terminal: false,
            stdin: Input::new(Arc::new(pipes.stdin)),
            stdout: Output::new(Some(Arc::new(pipes.stdout))),
            stderr: Output::new(Some(Arc::new(pipes.stderr))),
            waited: AtomicBool::new(false),
        }
    }

    /// A process on a terminal.
    #[must_use]
    pub fn with_terminal(child: Child, console: Stream) -> Self {
        let console = Arc::new(console);
        Self {
            child,
            terminal: true,
            stdin: Input::new(Arc::clone(&console)),
            stdout: Output::new(Some(console)),
            stderr: Output::new(None),
            waited: AtomicBool::new(false),
        }
    }

    /// The process that the kernel knows.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Waits for the end.
    pub async fn wait(&self) -> i32 {
        let status = self.child.wait().await;
        self.waited.store(true, Ordering::Release);
        status
    }

    /// Nobody needs it any more: somebody has its status, and both outputs were read to the end.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.waited.load(Ordering::Acquire)
            && self.stdout.ended.load(Ordering::Acquire)
            && self.stderr.ended.load(Ordering::Acquire)
    }

    /// Writes to stdin.
    ///
    /// # Errors
    ///
    /// stdin is closed, or the process reads it no more.
    pub async fn write(&self, data: &[u8]) -> Result<(), GuestError> {
        if data.len() > limit::MAX_STREAM_WRITE {
            let cap = limit::MAX_STREAM_WRITE;
            return Err(invalid(
                PHASE,
                format!("{} bytes at once, at most {cap}", data.len()),
            ));
        }
        if self.stdin.lent.load(Ordering::Acquire) {
            return Err(lent());
        }
        let stdin = self.open_stdin()?;
        stdin
            .write_all(data)
            .await
            .or_fail(ErrorCode::FailedPrecondition, PHASE, "write stdin")
    }

    fn open_stdin(&self) -> Result<Arc<Stream>, GuestError> {
        let closed = || GuestError::new(ErrorCode::FailedPrecondition, PHASE, "stdin is closed");
        self.stdin.lock().clone().ok_or_else(closed)
    }

    /// Closes stdin, also one that is lent. A terminal has no half to close: it stays open until the
    /// process ends.
    pub fn close_stdin(&self) {
        if !self.terminal {
            self.stdin.lock().take();
            self.stdin.closed.notify_one();
        }
    }

    /// Lends stdin to a connection.
    ///
    /// # Errors
    ///
    /// It is closed, or lent.
    pub fn lend_stdin(self: &Arc<Self>) -> Result<LentInput, GuestError> {
        let stream = self.open_stdin()?;
        if self.stdin.lent.swap(true, Ordering::AcqRel) {
            return Err(lent());
        }
        Ok(LentInput {
            process: Arc::clone(self),
            stream,
        })
    }

    /// Lends an output to a connection, for good.
    ///
    /// # Errors
    ///
    /// It is lent, or was, or a terminal has none of this kind.
    pub fn lend_output(self: &Arc<Self>, kind: OutputKind) -> Result<LentOutput, GuestError> {
        let output = self.output(kind);
        let none = || {
            let message = "a terminal has one output, which is stdout";
            GuestError::new(ErrorCode::FailedPrecondition, PHASE, message)
        };
        let stream = output.stream.clone().ok_or_else(none)?;
        if output.lent.swap(true, Ordering::AcqRel) {
            return Err(lent());
        }
        Ok(LentOutput {
            process: Arc::clone(self),
            kind,
            stream,
        })
    }

    fn output(&self, kind: OutputKind) -> &Output {
        match kind {
            OutputKind::Stdout => &self.stdout,
            OutputKind::Stderr => &self.stderr,
        }
    }

    /// Waits for output, at most `max` bytes and [`limit::MAX_STREAM_READ`].
    ///
    /// # Errors
    ///
    /// [`ErrorCode::EndOfStream`] at the end, as Kata ends it.
    pub async fn read(&self, kind: OutputKind, max: u32) -> Result<Vec<u8>, GuestError> {
        let output = self.output(kind);
        if output.lent.load(Ordering::Acquire) {
            return Err(lent());
        }
        let end = || GuestError::new(ErrorCode::EndOfStream, PHASE, "read meet eof");
        let stream = output.stream.as_ref().ok_or_else(end)?;
        let max = usize::try_from(max)
            .unwrap_or(usize::MAX)
            .clamp(1, limit::MAX_STREAM_READ);
        let data = stream.read(max).await.or_internal(PHASE, "read")?;
        if data.is_empty() {
            output.ended.store(true, Ordering::Release);
            return Err(end());
        }
        Ok(data)
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    ///
    /// There is no terminal, or the size is not one.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<(), GuestError> {
        let size = |n: u32| u16::try_from(n).map_err(|_| invalid(PHASE, format!("{n} cells")));
        let size = Winsize {
            ws_row: size(rows)?,
            ws_col: size(columns)?,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = self.stdout.stream.as_ref().filter(|_| self.terminal);
        let none = || GuestError::new(ErrorCode::FailedPrecondition, PHASE, "there is no terminal");
        tcsetwinsize(terminal.ok_or_else(none)?, size).or_internal(PHASE, "resize")
    }
}

impl LentInput {
    /// Writes everything, unless stdin is closed in the meantime.
    ///
    /// # Errors
    ///
    /// Those of write(2), such as a pipe that nobody reads; or stdin was closed.
    pub async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        tokio::select! {
            biased;
            () = self.closed() => Err(io::ErrorKind::BrokenPipe.into()),
            written = self.stream.write_all(data) => written,
        }
    }

    /// Waits until somebody closes stdin.
    pub async fn closed(&self) {
        self.process.stdin.closed.notified().await;
    }

    /// Closes stdin: the process reads its end.
    pub fn close(self) {
        self.process.close_stdin();
    }
}

impl Drop for LentInput {
    fn drop(&mut self) {
        self.process.stdin.lent.store(false, Ordering::Release);
    }
}

impl LentOutput {
    /// Waits for some bytes, as many as fit; none means the end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub async fn read_into(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read_into(buffer).await;
        if !matches!(read, Ok(1..)) {
            self.over();
        }
        read
    }

    /// Nobody waits for what is still to come: the process may be forgotten without it.
    pub fn over(&self) {
        let output = self.process.output(self.kind);
        output.ended.store(true, Ordering::Release);
    }
}
