//! The copies between containerd's FIFOs and the guest's streams, each over a connection of its own.
//!
//! ```text
//!   FIFO ─► input ─► connection ─► agent ─► process
//!   FIFO ◄─ output ◄─ connection ◄─ agent ◄─ process
//! ```
//!
//! A FIFO that nobody reads holds up its connection, that the agent, and that the process: one chunk is
//! all that the shim ever holds. Output is complete before the exit is told: the copies end when the
//! guest's streams do. Two things bound that wait. A stream that a left-over child of the process holds
//! open ends a moment after the process did, and so does one that nobody on the host reads.

use std::future::Future;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, StreamChunk, StreamKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use super::logger::Logger;
use super::{Sink, Streams};
use crate::guest::{Guest, ProcessId, Stream};

/// How long a stream may stay open without a byte after its process ended. A busy host may need some of
/// it for what was on its way.
const IDLE_AFTER_EXIT: Duration = Duration::from_secs(2);
/// How long a full FIFO may take no byte after the process ended.
const STALLED_AFTER_EXIT: Duration = Duration::from_secs(10);

/// The guest's ends of a process's stdio.
#[derive(Debug)]
pub struct Connections {
    stdin: Option<Stream>,
    stdout: Stream,
    stderr: Option<Stream>,
}

impl Connections {
    /// Connects to the streams of a process that exists in the guest and that `streams` has a use for.
    ///
    /// # Errors
    /// As every call to the guest. Input that the owner's policy refuses is no error: the process runs
    /// without.
    pub async fn open(
        guest: &Guest,
        id: &ProcessId,
        streams: &Streams,
    ) -> Result<Self, GuestError> {
        let stdin = async {
            if streams.stdin.is_none() {
                return Ok(None);
            }
            match guest.stream(id, StreamKind::Stdin).await {
                Ok(stdin) => Ok(Some(stdin)),
                Err(error) if error.code == ErrorCode::PolicyDenied => {
                    debug!(%error, container = id.container, exec = id.exec, "no input");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        let stderr = async {
            if streams.terminal {
                return Ok(None);
            }
            guest.stream(id, StreamKind::Stderr).await.map(Some)
        };
        let stdout = guest.stream(id, StreamKind::Stdout);
        let (stdin, stdout, stderr) = tokio::try_join!(stdin, stdout, stderr)?;
        Ok(Self {
            stdin,
            stdout,
            stderr,
        })
    }
}

/// The copies of one process. Dropping them ends them.
#[derive(Debug)]
pub struct Copies {
    outputs: JoinSet<()>,
    _input: JoinSet<()>,
    exited: watch::Sender<bool>,
    _logger: Option<Logger>,
}

impl Copies {
    /// Starts the copies.
    #[must_use]
    pub fn start(
        streams: Streams,
        connections: Connections,
        guest: &Guest,
        id: &ProcessId,
    ) -> Self {
        let exited = watch::Sender::new(false);
        let mut outputs = JoinSet::new();
        let stdout = copy_output(connections.stdout, streams.stdout, exited.subscribe());
        outputs.spawn(stdout);
        if let Some(stderr) = connections.stderr {
            outputs.spawn(copy_output(stderr, streams.stderr, exited.subscribe()));
        }
        let mut input = JoinSet::new();
        match (streams.stdin, connections.stdin) {
            (Some(fifo), Some(stdin)) => {
                input.spawn(copy_input(fifo, stdin));
            }
            (Some(_), None) => {}
            // A terminal without input stays as quiet as one that no one types at.
            (None, _) if streams.terminal => {}
            (None, _) => {
                input.spawn(end_input(guest.clone(), id.clone()));
            }
        }
        Self {
            outputs,
            _input: input,
            exited,
            _logger: streams.logger,
        }
    }

    /// Waits, after the process has ended, until all its output is written.
    pub async fn finish(mut self) {
        self.exited.send_replace(true);
        while self.outputs.join_next().await.is_some() {}
    }
}

async fn copy_output(
    mut stream: impl AsyncRead + Unpin,
    mut sink: Sink,
    exited: watch::Receiver<bool>,
) {
    let mut chunk = StreamChunk::default();
    loop {
        let read = stream.read(chunk.room());
        let count = match unless_overdue(read, &exited, IDLE_AFTER_EXIT).await {
            Some(Ok(count @ 1..)) => count,
            Some(Ok(0)) => return,
            Some(Err(error)) => return debug!(%error, "output ended"),
            None => return debug!("output is held open"),
        };
        let mut rest = chunk.first(count);
        while !rest.is_empty() {
            match unless_overdue(sink.write(rest), &exited, STALLED_AFTER_EXIT).await {
                Some(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                Some(Err(error)) => return debug!(%error, "write of output"),
                None => return debug!("nobody reads the output"),
            }
        }
        chunk.fit(count);
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

async fn copy_input(mut fifo: pipe::Receiver, stream: impl AsyncRead + AsyncWrite) {
    let (mut from_guest, mut to_guest) = split(stream);
    let (mut chunk, mut word) = (StreamChunk::default(), [0; 1]);
    loop {
        let read = tokio::select! {
            read = fifo.read(chunk.room()) => read,
            // The guest says nothing on this connection but that it takes no more.
            _ = from_guest.read(&mut word) => return debug!("the process takes no input"),
        };
        let count = match read {
            Ok(count @ 1..) => count,
            Ok(0) => break,
            Err(error) => {
                debug!(%error, "read of input");
                break;
            }
        };
        if let Err(error) = to_guest.write_all(chunk.first(count)).await {
            return debug!(%error, "write of input");
        }
        chunk.fit(count);
    }
    drop(chunk);
    // The guest closes when the process has taken it all. To close before could lose the rest: some vsock
    // devices give the reader seconds for it.
    let _ = to_guest.shutdown().await;
    while let Ok(1..) = from_guest.read(&mut word).await {}
}

async fn end_input(guest: Guest, id: ProcessId) {
    if let Err(error) = guest.close_stdin(&id).await {
        debug!(%error, "end of input");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// The reading end of a FIFO of a test, and the sink that is its other.
    fn sink(directory: &std::path::Path) -> (pipe::Receiver, Sink) {
        let path = crate::io::tests::fifo(directory);
        let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
        (reader, Sink::Fifo(writer))
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

    #[tokio::test]
    async fn output_comes_whole_and_its_end_ends_the_copy() {
        let directory = tempfile::tempdir().unwrap();
        let (mut reader, sink) = sink(directory.path());
        let (guest, mut process) = duplex(1000);
        let exited = watch::Sender::new(false);
        let wanted: Vec<u8> = (0..500_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let writing = async {
            process.write_all(&wanted).await.unwrap();
            drop(process);
        };
        let reading = async {
            let mut got = vec![0; wanted.len()];
            reader.read_exact(&mut got).await.unwrap();
            got
        };
        let copying = copy_output(guest, sink, exited.subscribe());
        let ((), (), got) = tokio::join!(copying, writing, reading);
        assert!(got == wanted);
    }

    #[tokio::test]
    async fn a_full_fifo_stops_the_guest_and_nothing_gathers_here() {
        let directory = tempfile::tempdir().unwrap();
        let (_reader, sink) = sink(directory.path());
        let (guest, mut process) = duplex(1000);
        let exited = watch::Sender::new(false);
        let copying = tokio::spawn(copy_output(guest, sink, exited.subscribe()));
        let mut taken = 0;
        let piece = [7; 1000];
        while let Ok(count) =
            tokio::time::timeout(Duration::from_millis(200), process.write(&piece)).await
        {
            taken += count.unwrap();
        }
        // The FIFO, a chunk, and what this test puts between.
        assert!(
            taken <= 64 * 1024 + agent_api::limit::STREAM_CHUNK + 1000,
            "{taken}"
        );
        copying.abort();
    }

    #[tokio::test]
    async fn the_end_of_the_fifo_is_the_end_of_input_and_the_guest_closes() {
        let directory = tempfile::tempdir().unwrap();
        let path = crate::io::tests::fifo(directory.path());
        let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let mut writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
        let (stream, mut agent) = duplex(1000);
        let copying = tokio::spawn(copy_input(reader, stream));
        let writing = async {
            writer.write_all(&[5; 100_000]).await.unwrap();
            drop(writer);
        };
        let reading = async {
            let mut got = Vec::new();
            agent.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let ((), count) = tokio::join!(writing, reading);
        assert_eq!(count, 100_000);
        assert!(!copying.is_finished(), "the process may still read");
        drop(agent);
        copying.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_takes_no_more_input_ends_the_copy_without_another_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = crate::io::tests::fifo(directory.path());
        let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let _writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
        let (stream, agent) = duplex(1000);
        drop(agent);
        copy_input(reader, stream).await;
    }
}
