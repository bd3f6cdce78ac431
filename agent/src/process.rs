//! One process of a container: its end, its stdio.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError, limit};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::fault::{OrFail, invalid};
use crate::reaper::Child;
use crate::stream::{Pipes, Stream};

const PHASE: &str = "stdio";

/// A process, running or ended.
#[derive(Debug)]
pub struct Process {
    child: Child,
    terminal: bool,
    stdin: Mutex<Option<Arc<Stream>>>,
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
struct Output {
    stream: Option<Arc<Stream>>,
    ended: AtomicBool,
}

impl Output {
    fn new(stream: Option<Arc<Stream>>) -> Self {
        Self {
            ended: AtomicBool::new(stream.is_none()),
            stream,
        }
    }
}

impl Process {
    /// A process with three pipes.
    #[must_use]
    pub fn with_pipes(child: Child, pipes: Pipes) -> Self {
        Self {
            child,
            terminal: false,
            stdin: Mutex::new(Some(Arc::new(pipes.stdin))),
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
            stdin: Mutex::new(Some(Arc::clone(&console))),
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
        let stdin = self
            .stdin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let closed = || GuestError::new(ErrorCode::FailedPrecondition, PHASE, "stdin is closed");
        let stdin = stdin.ok_or_else(closed)?;
        stdin
            .write_all(data)
            .await
            .or_fail(ErrorCode::FailedPrecondition, PHASE, "write stdin")
    }

    /// Closes stdin. A terminal has no half to close: it stays open until the process ends.
    pub fn close_stdin(&self) {
        if !self.terminal {
            self.stdin
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        }
    }

    /// Waits for output, at most `max` bytes and [`limit::MAX_STREAM_READ`].
    ///
    /// # Errors
    ///
    /// [`ErrorCode::EndOfStream`] at the end, as Kata ends it.
    pub async fn read(&self, kind: OutputKind, max: u32) -> Result<Vec<u8>, GuestError> {
        let output = match kind {
            OutputKind::Stdout => &self.stdout,
            OutputKind::Stderr => &self.stderr,
        };
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
