//! The host port: READY and the phases of a start, FAIL, and the diallers of the relay and of the mirror.

use std::io;
use std::time::Duration;

use agent_api::{
    AgentLine, DialAnswer, ErrorCode, Event, GuestError, HostKey, HostLine, LogLine, Phase, Ready,
    SpanId, Target, TeeCall,
};
use agent_api::{limit, ports};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_vsock::{VsockAddr, VsockStream};
use transport::{BoxedStream, Dial};

/// To connect to the host port and be answered. A missing listener takes some vsock devices two
/// seconds to report; a relayed connection goes to the other end of the world.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Events that wait to be written; more are dropped, for they are only told, never needed.
const MAX_WAITING_EVENTS: usize = 256;

/// The host port.
#[derive(Clone, Copy, Debug)]
pub struct HostPort {
    port: u32,
    key: HostKey,
}

/// Where finished phases are told, and the log.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<AgentLine>,
}

/// Events that were told and not yet written.
#[derive(Debug)]
pub struct Waiting {
    receiver: mpsc::Receiver<AgentLine>,
}

impl HostPort {
    /// The host port of this number, and a key that no container knows: it stays in this process.
    #[must_use]
    pub fn new(port: u32, key: HostKey) -> Self {
        Self { port, key }
    }

    /// Says READY, and keeps the connection for events.
    ///
    /// # Errors
    ///
    /// The host does not listen.
    pub async fn ready(self, ready: Ready, mut events: Waiting) -> io::Result<()> {
        let mut stream = self.open(&HostLine::Ready(self.key, ready)).await?;
        tokio::spawn(async move {
            while let Some(line) = events.receiver.recv().await {
                if let Err(error) = stream.write_all(line.to_line().as_bytes()).await {
                    tracing::warn!(%error, "the host takes no more events");
                    return;
                }
            }
        });
        Ok(())
    }

    /// Says FAIL. The caller ends the VM.
    ///
    /// # Errors
    ///
    /// The host does not listen.
    pub async fn fail(self, error: GuestError) -> io::Result<()> {
        let mut stream = self.open(&HostLine::Fail(error)).await?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // The host closes when it has read the line; powering off before would lose it.
        let _ = timeout(CONNECT_TIMEOUT, stream.read(&mut [0; 1])).await;
        Ok(())
    }

    /// A stream with the answer of what stands for a simulated TEE's firmware.
    ///
    /// # Errors
    ///
    /// The host simulates none, or it gives no answer; the text says why.
    pub async fn tee(self, call: TeeCall) -> io::Result<BoxedStream> {
        self.ask(&HostLine::Tee(self.key, call), "the simulated TEE")
            .await
    }

    /// A stream that the host agreed to carry.
    async fn ask(self, line: &HostLine, who: &str) -> io::Result<BoxedStream> {
        let asking = async {
            let mut stream = self.open(line).await?;
            let answer = read_line(&mut stream).await?;
            Ok::<_, io::Error>((stream, answer))
        };
        let (stream, answer) = timeout(DIAL_TIMEOUT, asking).await??;
        match DialAnswer::parse(&answer).map_err(io::Error::other)? {
            DialAnswer::Ok => Ok(Box::new(stream)),
            DialAnswer::Err(code, text) => {
                Err(io::Error::new(kind_of(code), format!("{who}: {text}")))
            }
        }
    }

    async fn open(self, line: &HostLine) -> io::Result<VsockStream> {
        let address = VsockAddr::new(ports::HOST_CID, self.port);
        let mut stream = timeout(CONNECT_TIMEOUT, VsockStream::connect(address)).await??;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(stream)
    }
}

/// The node's mirror behind the host port. Host and port are not looked at: it is one.
#[derive(Clone, Copy, Debug)]
pub struct MirrorDial(pub HostPort);

#[async_trait]
impl Dial for HostPort {
    async fn dial(&self, host: &str, port: u16) -> io::Result<BoxedStream> {
        let target = Target::new(host, port)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let who = format!("{target}: the host's relay");
        self.ask(&HostLine::Dial(self.key, target), &who).await
    }
}

#[async_trait]
impl Dial for MirrorDial {
    async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
        let line = HostLine::Mirror(self.0.key);
        self.0.ask(&line, "the host's mirror").await
    }
}

impl Events {
    /// Where to tell events, and what [`HostPort::ready`] writes.
    #[must_use]
    pub fn channel() -> (Self, Waiting) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
        (Self { sender }, Waiting { receiver })
    }

    /// Tells that a phase is over.
    pub fn tell(&self, phase: Phase, took: Duration, container: Option<&str>) {
        self.tell_span(phase, took, container, None);
    }

    /// The same for a phase that others in its trace know by a number.
    pub fn tell_span(
        &self,
        phase: Phase,
        took: Duration,
        container: Option<&str>,
        span: Option<SpanId>,
    ) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let event = Event {
            phase,
            ms,
            container: container.map(str::to_owned),
            span,
        };
        if self.sender.try_send(AgentLine::Event(event)).is_err() {
            tracing::warn!(phase = phase.name(), "event dropped");
        }
    }

    /// Tells a line of the log. One that does not fit is on the console alone; saying so would be another.
    pub fn log(&self, line: LogLine) {
        // Half of the room is kept for phases.
        if self.sender.capacity() > MAX_WAITING_EVENTS / 2 {
            let _ = self.sender.try_send(AgentLine::Log(line));
        }
    }
}

/// How far another attempt can help (see [`Dial::dial`]): never, soon or not at all, or later.
fn kind_of(code: ErrorCode) -> io::ErrorKind {
    match code {
        ErrorCode::HostNotAllowed => io::ErrorKind::PermissionDenied,
        ErrorCode::DeadlineExceeded => io::ErrorKind::TimedOut,
        ErrorCode::ResourceExhausted => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::ConnectionRefused,
    }
}

/// Reads to the line feed and no further: the next byte belongs to what the connection carries.
///
/// # Errors
///
/// Those of the stream; it ends before the line does, or the line is too long.
pub async fn read_line(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() >= limit::MAX_HOST_LINE {
            return Err(io::Error::other("the line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_a_time_out_and_a_busy_relay_are_told_apart() {
        for (code, kind) in [
            (ErrorCode::HostNotAllowed, io::ErrorKind::PermissionDenied),
            (
                ErrorCode::RegistryUnreachable,
                io::ErrorKind::ConnectionRefused,
            ),
            (ErrorCode::DeadlineExceeded, io::ErrorKind::TimedOut),
            (ErrorCode::ResourceExhausted, io::ErrorKind::ResourceBusy),
        ] {
            assert_eq!(kind_of(code), kind);
        }
    }

    #[tokio::test]
    async fn a_line_is_read_without_what_follows() {
        let mut stream = io::Cursor::new(b"OK\nTLS".to_vec());
        assert_eq!(read_line(&mut stream).await.unwrap(), b"OK\n");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"TLS");
        assert!(
            read_line(&mut io::Cursor::new(vec![b'x'; 2000]))
                .await
                .is_err()
        );
        assert!(
            read_line(&mut io::Cursor::new(b"OK".to_vec()))
                .await
                .is_err()
        );
    }
}
