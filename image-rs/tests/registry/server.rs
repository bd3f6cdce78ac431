//! A server that a test scripts byte by byte, so that it can misbehave in ways that no library would let it, and a
//! world of names in which it is dialled.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use image_rs::registry::{AuthFile, Reach, Registry, RegistryConfig, Retry, Rule, Rules};
use image_rs::{Digest, Reference};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use transport::{BoxedStream, Dial, Roots, TcpDial, Timeouts};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// As it stands in the first line: a path, a whole URL at a proxy, host and port of a tunnel.
    pub target: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// How often this target was asked for before.
    pub before: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of the `Range` that was asked for.
    pub fn range(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// What the server does next.
#[derive(Debug, Clone)]
pub enum Act {
    Send(Vec<u8>),
    Pause(Duration),
    /// Says nothing more, and keeps the connection.
    Stall,
    /// Ends the connection in order.
    Close,
    /// Breaks it off.
    Reset,
    /// Carries bytes to a port of loopback from here on.
    Tunnel(u16),
}

/// A whole answer.
pub fn reply(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<Act> {
    let body = body.as_ref();
    let length = body.len().to_string();
    let mut all = headers.to_vec();
    all.push(("content-length", &length));
    vec![Act::Send([head(status, &all), body.to_vec()].concat())]
}

/// Only its head.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

type Script = Arc<dyn Fn(&Asked) -> Vec<Act> + Send + Sync>;

/// A running server; it ends with the test's runtime.
#[derive(Clone)]
pub struct Server {
    pub port: u16,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub async fn plain(script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(script)).await
    }

    pub async fn tls(
        identity: &Identity,
        script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(identity.acceptor()), Arc::new(script)).await
    }

    async fn start(tls: Option<TlsAcceptor>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let server = Self { port, log };
        let this = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (this, tls, script) = (this.clone(), tls.clone(), script.clone());
                tokio::spawn(async move {
                    match tls {
                        None => this.serve(stream, &script).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => this.serve(stream, &script).await,
                            Err(_) => Some(()),
                        },
                    }
                });
            }
        });
        server
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Method and target of every request so far.
    pub fn lines(&self) -> Vec<String> {
        let line = |asked: &Asked| format!("{} {}", asked.method, asked.target);
        self.asked().iter().map(line).collect()
    }

    async fn serve(&self, mut stream: impl Connection, script: &Script) -> Option<()> {
        loop {
            let mut asked = read_request(&mut stream).await?;
            {
                let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                let same = |other: &&Asked| other.target == asked.target;
                asked.before = log.iter().filter(same).count();
                log.push(asked.clone());
            }
            for act in script(&asked) {
                match act {
                    Act::Send(bytes) => {
                        stream.write_all(&bytes).await.ok()?;
                        stream.flush().await.ok()?;
                    }
                    Act::Pause(duration) => tokio::time::sleep(duration).await,
                    Act::Stall => std::future::pending().await,
                    Act::Close => {
                        let _ = stream.shutdown().await;
                        return None;
                    }
                    Act::Reset => {
                        stream.break_off();
                        return None;
                    }
                    Act::Tunnel(port) => {
                        let mut other = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut other).await;
                        return None;
                    }
                }
            }
        }
    }
}

/// A stream that can be broken off.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {
    fn break_off(&self);
}

impl Connection for TcpStream {
    fn break_off(&self) {
        rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO)).unwrap();
    }
}

impl Connection for tokio_rustls::server::TlsStream<TcpStream> {
    fn break_off(&self) {
        self.get_ref().0.break_off();
    }
}

async fn read_request(stream: &mut impl Connection) -> Option<Asked> {
    let mut bytes = vec![stream.read_u8().await.ok()?];
    // The first byte of TLS, to which servers of plain HTTP say something.
    if bytes == [0x16] {
        let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
        return None;
    }
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|text| text.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked {
        method,
        target,
        headers,
        body: String::from_utf8(body).ok()?,
        before: 0,
    })
}

/// A certificate that signs itself.
pub struct Identity {
    pub pem: String,
    key_pem: String,
}

impl Identity {
    pub fn of(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }

    pub fn roots(&self) -> Roots {
        Roots::pinned(&self.pem).unwrap()
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = CertificateDer::pem_slice_iter(self.pem.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Which name leads to which server. `host:port` is one port of it, `host` every other.
#[derive(Clone, Default)]
pub struct World {
    names: Arc<Mutex<BTreeMap<String, u16>>>,
    /// Every host that was dialled.
    pub dialled: Arc<Mutex<Vec<String>>>,
}

impl World {
    pub fn with(names: &[(&str, &Server)]) -> Self {
        let world = Self::default();
        for (name, server) in names {
            world.name(name, server.port);
        }
        world
    }

    pub fn name(&self, name: &str, port: u16) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), port);
    }

    pub fn was_dialled(&self, name: &str) -> bool {
        let dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        dialled.iter().any(|host| host == name)
    }

    /// A client in this world that speaks plain HTTP to `plain`.
    pub fn registry(
        &self,
        plain: &[&str],
        change: impl FnOnce(&mut Reach, &mut Setup),
    ) -> Registry {
        let mut reach = reach();
        let mut setup = Setup::default();
        change(&mut reach, &mut setup);
        let config = RegistryConfig {
            insecure: plain.iter().map(|name| (*name).to_owned()).collect(),
            auth: AuthFile::from_json(setup.auth.as_bytes()).unwrap(),
            rules: Rules::new(setup.rules).unwrap(),
            retry: quick(),
        };
        Registry::open(Arc::new(self.clone()), &reach, config).unwrap()
    }
}

/// What a test may change of the client.
pub struct Setup {
    pub auth: String,
    pub rules: Vec<Rule>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            auth: "{}".to_owned(),
            rules: Vec::new(),
        }
    }
}

#[async_trait]
impl Dial for World {
    async fn dial(&self, host: &str, port: u16) -> io::Result<BoxedStream> {
        let port = {
            let mut dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
            dialled.push(host.to_owned());
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            let one = names.get(&format!("{host}:{port}"));
            one.or_else(|| names.get(host)).copied()
        };
        match port {
            Some(port) => TcpDial.dial("127.0.0.1", port).await,
            None => Err(io::Error::other(format!("{host} has no address"))),
        }
    }
}

/// Few attempts, and soon; the pauses are not what is tested.
pub fn quick() -> Retry {
    Retry {
        attempts: 3,
        mirror_attempts: 2,
        first_pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
        retry_after_max: Duration::from_millis(20),
    }
}

/// Deadlines that a busy machine keeps.
pub fn reach() -> Reach {
    let mut reach = Reach::new(Roots::web());
    reach.timeouts = Timeouts {
        dial: Duration::from_secs(20),
        tls: Duration::from_secs(20),
        head: Duration::from_secs(20),
        body: Duration::from_secs(20),
    };
    reach
}

/// Reads a blob to its end.
pub async fn read(
    registry: &Registry,
    image: &str,
    content: &[u8],
) -> Result<Vec<u8>, image_rs::registry::RegistryError> {
    let image: Reference = image.parse().unwrap();
    let size = content.len() as u64;
    let mut blob = registry.blob(&image, &Digest::of(content), size);
    let mut all = Vec::new();
    while let Some(piece) = blob.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// Bytes that are not all the same.
pub fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at * 7 % 251).unwrap_or(0))
        .collect()
}

/// The smallest manifest.
pub fn manifest() -> Vec<u8> {
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#.to_vec()
}
