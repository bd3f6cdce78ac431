//! The stream port: each connection of the host carries one stream of one process, as bytes.
//!
//! ```text
//!   process ─► pipe ─► this ─► connection ─► host     STDOUT, STDERR: its end is the pipe's
//!   process ◄─ pipe ◄─ this ◄─ connection ◄─ host     STDIN: the pipe's end is its end
//! ```
//!
//! Who is slow holds up its own stream and no other: a pipe, a connection and one chunk are all that is
//! ever held. Output that the owner's policy hides is read and dropped, so that the process does not
//! wait for a reader for ever; so is output whose connection the host gave up.

use std::sync::Arc;
use std::time::Duration;

use agent_api::{DialAnswer, GuestError, StreamChunk, StreamKind, StreamLine, limit, ports};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::fault::{OrFail, invalid};
use crate::gate::{Gate, Leave};
use crate::host::read_line;
use crate::process::{LentInput, LentOutput, OutputKind};
use crate::sandbox::Sandbox;

const PHASE: &str = "stdio";
/// How long the host may take to say which stream it wants.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after an error of accept(2), which is one of memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The port, for as long as it is held.
#[derive(Debug)]
pub struct Streams {
    accepting: JoinHandle<()>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What every connection needs.
struct Service {
    gate: Arc<Gate>,
    sandbox: Arc<Sandbox>,
    slots: Arc<Semaphore>,
}

/// Listens; streams are carried from now on.
///
/// # Errors
///
/// There is no vsock in this guest.
pub fn serve(gate: Arc<Gate>, sandbox: Arc<Sandbox>) -> Result<Streams, GuestError> {
    let address = VsockAddr::new(VMADDR_CID_ANY, ports::STREAMS);
    let listener = VsockListener::bind(address).or_internal("boot", "the stream port")?;
    let service = Arc::new(Service {
        gate,
        sandbox,
        slots: Arc::new(Semaphore::new(limit::MAX_STREAMS)),
    });
    Ok(Streams {
        accepting: tokio::spawn(service.accept_all(listener)),
    })
}

impl Service {
    async fn accept_all(self: Arc<Self>, listener: VsockListener) {
        loop {
            let (connection, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a stream was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Containers can reach what listens in the guest, and are not the host.
            if peer.cid() != ports::HOST_CID {
                continue;
            }
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                tracing::warn!("more than {} streams", limit::MAX_STREAMS);
                continue;
            };
            let service = Arc::clone(&self);
            tokio::spawn(async move {
                service.carry(connection).await;
                drop(slot);
            });
        }
    }

    async fn carry(&self, mut connection: VsockStream) {
        let opened = match timeout(LINE_TIMEOUT, read_line(&mut connection)).await {
            Ok(Ok(line)) => self.open(&line),
            Ok(Err(error)) => return tracing::debug!(%error, "a stream without a line"),
            Err(_) => return tracing::debug!("a stream said no line in time"),
        };
        let answer = match &opened {
            Ok(_) => DialAnswer::Ok,
            Err(error) => DialAnswer::Err(error.code, error.message.clone()),
        };
        let answered = connection.write_all(format!("{answer}\n").as_bytes()).await;
        let (Ok((leave, lent)), Ok(())) = (opened, answered) else {
            return;
        };
        let (container, exec) = (leave.line().container(), leave.line().exec());
        let (container, exec) = (container.to_owned(), exec.to_owned());
        match lent {
            Lent::Input(input) => take_input(connection, input, &self.gate, leave).await,
            Lent::Output(output) => give_output(connection, &output, &self.gate, leave).await,
        }
        self.sandbox.forget_spent(&container, &exec);
    }

    fn open(&self, line: &[u8]) -> Result<(Leave, Lent), GuestError> {
        let line = StreamLine::parse(line).map_err(|error| invalid(PHASE, error.to_string()))?;
        let leave = self.gate.admit_stream(line)?;
        let process = self.sandbox.process_of(&leave)?;
        let lent = match leave.line().kind() {
            StreamKind::Stdin => Lent::Input(process.lend_stdin()?),
            StreamKind::Stdout => Lent::Output(process.lend_output(OutputKind::Stdout)?),
            StreamKind::Stderr => Lent::Output(process.lend_output(OutputKind::Stderr)?),
        };
        Ok((leave, lent))
    }
}

/// What a connection carries.
enum Lent {
    Input(LentInput),
    Output(LentOutput),
}

/// Carries output until the process or the host ends it.
async fn give_output(
    connection: impl AsyncRead + AsyncWrite,
    output: &LentOutput,
    gate: &Gate,
    mut leave: Leave,
) {
    let (mut host, mut to_host) = split(connection);
    let (mut chunk, mut word) = (StreamChunk::default(), [0; 1]);
    loop {
        let read = tokio::select! {
            read = output.read_into(chunk.room()) => read,
            // The host says nothing on this connection but that it is gone.
            _ = host.read(&mut word) => return discard(output, chunk).await,
        };
        let Ok(count @ 1..) = read else { break };
        if gate.still_allows(&mut leave) && to_host.write_all(chunk.first(count)).await.is_err() {
            return discard(output, chunk).await;
        }
        chunk.fit(count);
    }
    drop(chunk);
    // The host closes when it has read to the end. To close before could lose the rest: some vsock devices
    // give the reader seconds for it.
    let _ = to_host.shutdown().await;
    while let Ok(1..) = host.read(&mut word).await {}
}

/// Reads what nobody wants any more, so that the process does not wait for ever.
async fn discard(output: &LentOutput, mut chunk: StreamChunk) {
    output.over();
    while let Ok(count @ 1..) = output.read_into(chunk.room()).await {
        chunk.fit(count);
    }
}

/// Carries input until the host or the process ends it.
async fn take_input(
    mut connection: impl AsyncRead + Unpin,
    input: LentInput,
    gate: &Gate,
    mut leave: Leave,
) {
    let mut chunk = StreamChunk::default();
    loop {
        let read = tokio::select! {
            biased;
            () = input.closed() => return,
            read = connection.read(chunk.room()) => read,
        };
        let count = match read {
            Ok(count @ 1..) => count,
            Ok(0) => return input.close(),
            // The host is gone without an end, or its vsock device is.
            Err(error) => {
                tracing::debug!(%error, "input broke off");
                return input.close();
            }
        };
        if !gate.still_allows(&mut leave) || input.write_all(chunk.first(count)).await.is_err() {
            return;
        }
        chunk.fit(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::agent::SetPolicyRequest;
    use tokio::io::duplex;

    use crate::process::Process;
    use crate::reaper::Child;
    use crate::stream::{Pipes, ProcessEnds, Stream, pipes};

    /// A process that was not started, and its ends of the pipes.
    fn process() -> (Arc<Process>, ProcessEnds) {
        let (ours, theirs): (Pipes, _) = pipes().unwrap();
        let process = Process::with_pipes(Child::running(), ours);
        (Arc::new(process), theirs)
    }

    fn leave(gate: &Gate, kind: StreamKind) -> Leave {
        let line = StreamLine::new(kind, "c", "").unwrap();
        gate.admit_stream(line).unwrap()
    }

    #[tokio::test]
    async fn output_is_carried_whole_and_its_connection_ends_after_the_host_has_read_it() {
        let gate = Gate::new(None, None).unwrap();
        let (process, ends) = process();
        let output = process.lend_output(OutputKind::Stdout).unwrap();
        let (ours, mut hosts) = duplex(1000);
        let leave = leave(&gate, StreamKind::Stdout);
        let carrying = async { give_output(ours, &output, &gate, leave).await };
        let wanted: Vec<u8> = (0..500_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let stdout = Stream::new(ends.stdout).unwrap();
        let writing = async {
            stdout.write_all(&wanted).await.unwrap();
            drop(stdout);
        };
        let reading = async {
            let mut got = Vec::new();
            hosts.read_to_end(&mut got).await.unwrap();
            drop(hosts);
            got
        };
        let ((), (), got) = tokio::join!(carrying, writing, reading);
        assert!(got == wanted);
        // It is nobody's any more.
        assert!(process.lend_output(OutputKind::Stdout).is_err());
        assert!(process.read(OutputKind::Stdout, 1).await.is_err());
    }

    #[tokio::test]
    async fn a_process_whose_output_the_host_gave_up_does_not_wait() {
        let gate = Gate::new(None, None).unwrap();
        let (process, ends) = process();
        let output = process.lend_output(OutputKind::Stderr).unwrap();
        let (ours, hosts) = duplex(1000);
        drop(hosts);
        let leave = leave(&gate, StreamKind::Stderr);
        let stderr = Stream::new(ends.stderr).unwrap();
        let writing = async {
            stderr.write_all(&vec![0; 300_000]).await.unwrap();
            drop(stderr);
        };
        tokio::join!(give_output(ours, &output, &gate, leave), writing);
    }

    #[tokio::test]
    async fn output_that_a_new_policy_hides_is_not_carried_any_more() {
        let gate = Gate::new(None, None).unwrap();
        let (process, ends) = process();
        let output = process.lend_output(OutputKind::Stdout).unwrap();
        let (ours, mut hosts) = duplex(1000);
        let leave = leave(&gate, StreamKind::Stdout);
        let stdout = Stream::new(ends.stdout).unwrap();
        let acting = async {
            stdout.write_all(b"shown").await.unwrap();
            let mut shown = [0; 5];
            hosts.read_exact(&mut shown).await.unwrap();
            assert_eq!(&shown, b"shown");
            let mut request = SetPolicyRequest::new();
            request.policy = "package agent_policy\ndefault ReadStreamRequest := false\n".into();
            gate.replace(request, std::future::ready(Ok(())))
                .await
                .unwrap();
            stdout.write_all(b"hidden").await.unwrap();
            drop(stdout);
            let mut rest = Vec::new();
            hosts.read_to_end(&mut rest).await.unwrap();
            drop(hosts);
            assert!(rest.is_empty(), "{rest:?}");
        };
        tokio::join!(give_output(ours, &output, &gate, leave), acting);
    }

    #[tokio::test]
    async fn the_end_of_input_arrives_behind_all_of_it() {
        let gate = Gate::new(None, None).unwrap();
        let (process, ends) = process();
        let input = process.lend_stdin().unwrap();
        assert!(process.lend_stdin().is_err(), "it is lent once at a time");
        assert!(process.write(b"x").await.is_err());
        let (ours, mut hosts) = duplex(1000);
        let leave = leave(&gate, StreamKind::Stdin);
        let stdin = Stream::new(ends.stdin).unwrap();
        let writing = async {
            hosts.write_all(&vec![7; 200_000]).await.unwrap();
            drop(hosts);
        };
        let reading = async {
            let mut all = 0;
            loop {
                match stdin.read(limit::STREAM_CHUNK).await.unwrap().len() {
                    0 => return all,
                    count => all += count,
                }
            }
        };
        let ((), (), count) = tokio::join!(take_input(ours, input, &gate, leave), writing, reading);
        assert_eq!(count, 200_000);
    }

    #[tokio::test]
    async fn input_that_is_closed_by_a_call_ends_also_while_nobody_reads_it() {
        let gate = Gate::new(None, None).unwrap();
        let (process, ends) = process();
        let input = process.lend_stdin().unwrap();
        let (ours, mut hosts) = duplex(1000);
        let leave = leave(&gate, StreamKind::Stdin);
        let acting = async {
            // More than the pipe holds.
            let much = vec![7; 200_000];
            let written = hosts.write_all(&much);
            assert!(timeout(Duration::from_millis(100), written).await.is_err());
            process.close_stdin();
        };
        tokio::join!(take_input(ours, input, &gate, leave), acting);
        assert!(process.lend_stdin().is_err());
        drop(ends);
    }
}
