//! The host port: what the guest says of itself, the relay to the few places it may reach, and the way to the mirror.
//!
//! Each connection opens with one line of the contract. `READY` and `FAIL` become [`Notice`]s for
//! the sandbox's driver; `DIAL` is answered here. The relay sees bytes only: TLS ends in the guest,
//! so it can neither read nor change what it carries. The guest is not trusted with the host's
//! network: only targets of the allow-list are dialled. Nor are its containers trusted with the agent's
//! place: they reach this port, and the agent is told from them by its key.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent_api::{
    AgentLine, DialAnswer, ErrorCode, Event, GuestError, HostKey, HostLine, Ready, Target, limit,
};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes,
};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::debug;

use crate::dev_tee::DevTee;
use crate::guest_log;
use crate::mirror::Mirror;

/// How long a peer may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest may take to say its line.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);
/// Relayed connections of one guest at a time. An image pull uses a handful.
const MAX_RELAYS: usize = 64;
/// Bytes buffered in each direction of one relayed connection.
const BUFFER: usize = 64 * 1024;

/// What the guest tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The agent listens.
    Ready(Ready),
    /// A phase of a start is over.
    Event(Event),
    /// The agent cannot go on.
    Failed(GuestError),
    /// The connection that opened with `READY` has ended: so has the agent.
    Ended,
}

/// The service of the host port for one guest.
#[derive(Debug, Clone)]
pub struct HostPort {
    allow: Arc<[Target]>,
    slots: Arc<Semaphore>,
    notices: mpsc::Sender<Notice>,
    mirror: Option<Mirror>,
    tee: Option<DevTee>,
    /// Of the agent, once it has said it, which is before there is a container.
    key: Arc<OnceLock<HostKey>>,
    ready: Arc<OnceLock<()>>,
}

impl HostPort {
    /// A service that dials only what `allow` holds and sends what it learns to `notices`.
    #[must_use]
    pub fn new(allow: &[Target], notices: mpsc::Sender<Notice>) -> Self {
        Self {
            allow: allow.into(),
            slots: Arc::new(Semaphore::new(MAX_RELAYS)),
            notices,
            mirror: None,
            tee: None,
            key: Arc::default(),
            ready: Arc::default(),
        }
    }

    /// The same for an agent that has said READY elsewhere.
    #[must_use]
    pub fn with_key(self, key: HostKey) -> Self {
        Self {
            key: Arc::new(key.into()),
            ready: Arc::new(().into()),
            ..self
        }
    }

    /// The same with what stands for the firmware of a simulated TEE.
    #[must_use]
    pub fn with_tee(self, tee: DevTee) -> Self {
        let tee = Some(tee);
        Self { tee, ..self }
    }

    /// The same with a mirror.
    #[must_use]
    pub fn with_mirror(self, mirror: Option<Mirror>) -> Self {
        Self { mirror, ..self }
    }

    /// Serves one connection until it ends. What goes wrong ends that connection only.
    pub async fn serve<S>(self, mut stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let line = match timeout(LINE_TIMEOUT, read_line(&mut stream)).await {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return debug!(%error, "connection of the guest ended without a line"),
            Err(_) => return debug!("connection of the guest said no line in time"),
        };
        match HostLine::parse(&line) {
            Ok(HostLine::Ready(key, ready)) if self.is_first(key) && self.ready.set(()).is_ok() => {
                self.follow(stream, ready).await;
            }
            Ok(HostLine::Fail(error)) if self.ready.get().is_none() => {
                self.tell(Notice::Failed(error)).await;
            }
            // The agent asks before it is ready: it looks at what its launch bound.
            Ok(HostLine::Tee(key, call)) if self.is_first(key) => {
                let answer = match &self.tee {
                    Some(tee) => tee.ask(&call).await,
                    None => b"ERR failed-precondition this host simulates no TEE\n".to_vec(),
                };
                if stream.write_all(&answer).await.is_ok() {
                    let _ = stream.shutdown().await;
                }
            }
            Ok(HostLine::Dial(key, target)) if self.is_agents(key) => {
                self.dial(stream, &target).await;
            }
            Ok(HostLine::Mirror(key)) if self.is_agents(key) => self.reflect(stream).await,
            // Containers may say what they like, and fill no log.
            Ok(_) => debug!("a connection of the guest is not its agent's"),
            Err(error) => debug!(%error, "the guest said an unknown line"),
        }
    }

    /// Whether this is the agent's key, which the first one is.
    fn is_first(&self, key: HostKey) -> bool {
        *self.key.get_or_init(|| key) == key
    }

    fn is_agents(&self, key: HostKey) -> bool {
        self.key.get() == Some(&key)
    }

    async fn follow<S: AsyncRead + Unpin>(&self, mut stream: S, ready: Ready) {
        self.tell(Notice::Ready(ready)).await;
        while let Ok(line) = read_line(&mut stream).await {
            let text = std::str::from_utf8(&line).ok();
            match text.and_then(|line| AgentLine::from_line(line).ok()) {
                Some(AgentLine::Event(event)) => self.tell(Notice::Event(event)).await,
                Some(AgentLine::Log(line)) => guest_log::take(&line),
                None => guest_log::odd(),
            }
        }
        self.tell(Notice::Ended).await;
    }

    async fn tell(&self, notice: Notice) {
        // The driver is gone only when the sandbox is.
        let _ = self.notices.send(notice).await;
    }

    async fn dial<S>(&self, mut stream: S, target: &Target)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connected = self.connect(target).await;
        let answer = match &connected {
            Ok(_) => DialAnswer::Ok,
            Err((code, cause)) => {
                debug!(%target, %code, cause, "relay refused");
                DialAnswer::Err(*code, cause.clone())
            }
        };
        if stream
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
        match connected {
            Ok((mut peer, _slot)) => {
                let carried =
                    copy_bidirectional_with_sizes(&mut stream, &mut peer, BUFFER, BUFFER).await;
                debug!(%target, ?carried, "relay ended");
            }
            Err(_) => {
                let _ = stream.shutdown().await;
            }
        }
    }

    async fn reflect<S>(&self, mut stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let refuse = |code, cause: &str| (DialAnswer::Err(code, cause.to_owned()), None);
        let (answer, open) = match &self.mirror {
            None => refuse(ErrorCode::HostNotAllowed, "this host keeps no mirror"),
            Some(mirror) => match mirror.slot() {
                None => refuse(
                    ErrorCode::ResourceExhausted,
                    "too many connections to the mirror",
                ),
                Some(_) if !mirror.is_open().await => {
                    refuse(ErrorCode::HostNotAllowed, "the mirror cannot be opened")
                }
                Some(slot) => (DialAnswer::Ok, Some((mirror, slot))),
            },
        };
        let answered = stream.write_all(format!("{answer}\n").as_bytes()).await;
        match (open, answered) {
            (Some((mirror, _slot)), Ok(())) => mirror.serve(stream).await,
            _ => {
                let _ = stream.shutdown().await;
            }
        }
    }

    async fn connect(
        &self,
        target: &Target,
    ) -> Result<(TcpStream, tokio::sync::OwnedSemaphorePermit), (ErrorCode, String)> {
        if !self.allow.contains(target) {
            let cause = format!("{target} is not in relay.allow of the host's configuration");
            return Err((ErrorCode::HostNotAllowed, cause));
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            (
                ErrorCode::ResourceExhausted,
                format!("{MAX_RELAYS} connections are relayed already"),
            )
        })?;
        let dialled = timeout(
            CONNECT_TIMEOUT,
            TcpStream::connect((target.host(), target.port())),
        )
        .await;
        match dialled {
            Ok(Ok(peer)) => {
                // Small requests of a handshake must not wait for more.
                let _ = peer.set_nodelay(true);
                Ok((peer, slot))
            }
            Ok(Err(error)) => Err((
                ErrorCode::RegistryUnreachable,
                format!("connect to {target}: {error}"),
            )),
            Err(_) => {
                let cause = format!("{target} did not answer in {} s", CONNECT_TIMEOUT.as_secs());
                Err((ErrorCode::DeadlineExceeded, cause))
            }
        }
    }
}

/// Reads to the line feed and no byte further: what follows `DIAL` is the peer's.
///
/// # Errors
/// Those of the stream; it ends before the line does, or the line is too long.
pub async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(128);
    loop {
        let byte = stream.read_u8().await?;
        line.push(byte);
        if byte == b'\n' {
            return Ok(line);
        }
        if line.len() >= limit::MAX_HOST_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "line is too long",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use tokio::net::TcpListener;

    const KEY: HostKey = HostKey::from_bytes([7; agent_api::HOST_KEY_BYTES]);

    async fn answer_to(line: &str, allow: &[Target]) -> (String, tokio::io::DuplexStream) {
        let (notices, _keep) = mpsc::channel(8);
        let (mut guest, host) = duplex(4096);
        tokio::spawn(HostPort::new(allow, notices).with_key(KEY).serve(host));
        guest.write_all(line.as_bytes()).await.unwrap();
        let answer = read_line(&mut guest).await.unwrap();
        (String::from_utf8(answer).unwrap(), guest)
    }

    #[tokio::test]
    async fn a_listed_target_is_relayed_byte_for_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target: Target = address.to_string().parse().unwrap();
        let peer = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(b"world").await.unwrap();
            word
        });
        let (answer, mut guest) = answer_to(
            &format!("DIAL {KEY} {target}\n"),
            std::slice::from_ref(&target),
        )
        .await;
        assert_eq!(answer, "OK\n");
        guest.write_all(b"hello").await.unwrap();
        let mut word = [0; 5];
        guest.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"world");
        assert_eq!(&peer.await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn an_unlisted_target_is_refused_by_name() {
        let allow = [Target::new("a.example", 443).unwrap()];
        for target in ["b.example:443", "a.example:80", "127.0.0.1:443"] {
            let (answer, _) = answer_to(&format!("DIAL {KEY} {target}\n"), &allow).await;
            assert!(answer.starts_with("ERR host-not-allowed"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_dead_target_is_an_error_with_a_code() {
        let target = Target::new("127.0.0.1", 1).unwrap();
        let (answer, _) = answer_to(
            &format!("DIAL {KEY} {target}\n"),
            std::slice::from_ref(&target),
        )
        .await;
        assert!(answer.starts_with("ERR registry-unreachable"), "{answer}");
    }

    #[tokio::test]
    async fn ready_is_told_and_its_end_too() {
        let (notices, mut told) = mpsc::channel(8);
        let (mut guest, host) = duplex(4096);
        tokio::spawn(HostPort::new(&[], notices).serve(host));
        let ready = Ready {
            version: "1".into(),
            kernel_ms: 2,
            agent_ms: 3,
        };
        let line = format!("{}\n", HostLine::Ready(KEY, ready.clone()));
        guest.write_all(line.as_bytes()).await.unwrap();
        assert_eq!(told.recv().await, Some(Notice::Ready(ready)));
        drop(guest);
        assert_eq!(told.recv().await, Some(Notice::Ended));
    }

    #[tokio::test]
    async fn after_the_agents_ready_a_container_is_not_believed() {
        let (notices, mut told) = mpsc::channel(8);
        let port = HostPort::new(&[Target::new("127.0.0.1", 1).unwrap()], notices).with_key(KEY);
        let other = HostKey::from_bytes([8; agent_api::HOST_KEY_BYTES]);
        let ready = "{\"version\":\"1\",\"kernel_ms\":1,\"agent_ms\":1}";
        for line in [
            format!("READY {other} {ready}"),
            format!("READY {KEY} {ready}"),
            "FAIL {\"code\":\"internal\",\"phase\":\"x\",\"message\":\"x\"}".to_owned(),
            format!("DIAL {other} 127.0.0.1:1"),
            format!("MIRROR {other}"),
            format!("TEE {other} LOG"),
        ] {
            assert!(
                HostLine::parse(format!("{line}\n").as_bytes()).is_ok(),
                "{line}"
            );
            let (mut guest, host) = duplex(4096);
            let served = tokio::spawn(port.clone().serve(host));
            guest
                .write_all(format!("{line}\n").as_bytes())
                .await
                .unwrap();
            let mut answer = Vec::new();
            guest.read_to_end(&mut answer).await.unwrap();
            served.await.unwrap();
            assert!(answer.is_empty(), "{line}");
        }
        drop(port);
        assert_eq!(told.recv().await, None);
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection() {
        let (notices, mut told) = mpsc::channel(8);
        let (mut guest, host) = duplex(64 * 1024);
        let served = tokio::spawn(HostPort::new(&[], notices).serve(host));
        guest.write_all(&[b'x'; 4096]).await.unwrap();
        served.await.unwrap();
        assert_eq!(told.recv().await, None);
    }
}
