//! What the guest and QEMU print: read all the time, kept as a bounded tail, searched for the line
//! of a kernel panic. The guest writes what it likes, so nothing here grows with it.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::tail::Tail;

/// How much of the guest's console is kept in memory.
pub(crate) const CONSOLE_TAIL: usize = 64 << 10;
/// How much of QEMU's error output is kept in memory.
pub(crate) const STDERR_TAIL: usize = 16 << 10;
/// Where a console log stops growing.
const MAX_CONSOLE_LOG: usize = 8 << 20;
/// A line is searched up to here; panic lines are far shorter.
const MAX_SEARCHED_LINE: usize = 512;
/// How every panic of Linux starts (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// A stream that is being read.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) tail: Tail,
    pub(crate) panic: Panic,
    pub(crate) task: JoinHandle<()>,
}

/// The line of the first kernel panic, once it was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Panic(Arc<OnceLock<String>>);

impl Panic {
    pub(crate) fn line(&self) -> Option<String> {
        self.0.get().cloned()
    }
}

/// Reads `source` to its end, into a tail of `capacity` bytes and into `log` up to its cap.
pub(crate) fn read<R>(source: R, capacity: usize, log: Option<&Path>) -> Reading
where
    R: AsyncRead + Unpin + Send + 'static,
{
    let tail = Tail::new(capacity);
    let panic = Panic::default();
    let log = log.map(Path::to_owned);
    let task = tokio::spawn({
        let (tail, panic) = (tail.clone(), panic.clone());
        async move {
            let log = match log {
                Some(path) => Log::create(&path).await,
                None => Log::none(),
            };
            copy(source, &tail, &panic, log).await;
        }
    });
    Reading { tail, panic, task }
}

async fn copy<R: AsyncRead + Unpin>(mut source: R, tail: &Tail, panic: &Panic, mut log: Log) {
    let mut search = PanicSearch::default();
    let mut buffer = vec![0; 4096];
    // An error is the end as well: QEMU is gone, and its exit says why.
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        let bytes = &buffer[..count];
        tail.push(bytes);
        if let Some(line) = search.feed(bytes) {
            let _ = panic.0.set(line);
        }
        log.write(bytes).await;
    }
}

/// A file with a cap.
struct Log {
    file: Option<File>,
    left: usize,
}

impl Log {
    fn none() -> Self {
        Self {
            file: None,
            left: 0,
        }
    }

    async fn create(path: &Path) -> Self {
        let file = File::create(path).await;
        if let Err(error) = &file {
            warn!(path = %path.display(), %error, "console log cannot be created");
        }
        Self {
            file: file.ok(),
            left: MAX_CONSOLE_LOG,
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.left)];
        let Some(file) = &mut self.file else { return };
        // tokio's file buffers: without the flush the last lines would miss the file.
        let written = match file.write_all(bytes).await {
            Ok(()) => file.flush().await,
            Err(error) => Err(error),
        };
        self.left -= bytes.len();
        if written.is_err() || self.left == 0 {
            self.file = None;
        }
    }
}

#[derive(Default)]
struct PanicSearch {
    line: Vec<u8>,
}

impl PanicSearch {
    /// The panic's line once it is complete or too long to wait for its end.
    fn feed(&mut self, bytes: &[u8]) -> Option<String> {
        let mut found = None;
        for &byte in bytes {
            if byte == b'\n' {
                found = found.or_else(|| self.panic());
                self.line.clear();
            } else if self.line.len() < MAX_SEARCHED_LINE {
                self.line.push(byte);
            }
        }
        found
    }

    fn panic(&self) -> Option<String> {
        let line = String::from_utf8_lossy(&self.line);
        let start = line.find(PANIC)?;
        Some(line[start..].trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_across_reads_and_without_its_timestamp() {
        let mut search = PanicSearch::default();
        assert_eq!(search.feed(b"[    1.2] Kernel panic - not "), None);
        let line = search.feed(b"syncing: No init found.\r\n[ 1.3] CPU: 0\n");
        assert_eq!(
            line.as_deref(),
            Some("Kernel panic - not syncing: No init found.")
        );
    }

    #[test]
    fn a_line_without_end_does_not_grow() {
        let mut search = PanicSearch::default();
        for _ in 0..100 {
            search.feed(&[b'a'; 1000]);
        }
        assert_eq!(search.line.len(), MAX_SEARCHED_LINE);
    }

    #[tokio::test]
    async fn the_log_gets_what_the_tail_gets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let reading = read(
            &b"hello\nKernel panic - not syncing: x\n"[..],
            8,
            Some(&path),
        );
        reading.task.await.unwrap();
        assert_eq!(reading.tail.text(), "cing: x\n");
        assert_eq!(std::fs::read(&path).unwrap().len(), 36);
        assert!(reading.panic.line().is_some());
    }
}
