//! The host of one guest: the host port in this process, and a dialler that opens it as the agent does.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::{DialAnswer, HOST_KEY_BYTES, HostKey};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use shim::mirror::Mirror;
use shim::relay::HostPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use transport::{Body, BoxedStream, Client, ClientConfig, Dial, PlainHttp, Roots, bytes_capped};

/// Of the one guest.
const KEY: HostKey = HostKey::from_bytes([0; HOST_KEY_BYTES]);

/// Plenty for every test that is not about the bound.
pub const ROOMY: u64 = 64 * 1024 * 1024;

/// A guest's way to the mirror.
#[derive(Clone)]
pub struct Host {
    mirror: Option<Mirror>,
    pub dialled: Arc<Mutex<u32>>,
}

impl Host {
    pub fn with(directory: &Path, cap: u64) -> Self {
        Self {
            mirror: Some(Mirror::new(directory.to_owned(), cap)),
            dialled: Arc::default(),
        }
    }

    pub fn without() -> Self {
        Self {
            mirror: None,
            dialled: Arc::default(),
        }
    }

    pub fn times_dialled(&self) -> u32 {
        *self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of the mirror alone.
    pub fn client(&self) -> Http {
        let mut config = ClientConfig::new(Roots::web());
        config.plain_http = PlainHttp::Allow;
        Http(Client::new(Arc::new(self.clone()), config).unwrap())
    }
}

#[async_trait]
impl Dial for Host {
    async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
        *self.dialled.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let (mut guest, host) = duplex(64 * 1024);
        let (notices, _) = mpsc::channel(1);
        let port = HostPort::new(&[], notices)
            .with_key(KEY)
            .with_mirror(self.mirror.clone());
        tokio::spawn(port.serve(host));
        guest
            .write_all(format!("MIRROR {KEY}\n").as_bytes())
            .await?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(guest.read_u8().await?);
        }
        match DialAnswer::parse(&line).unwrap() {
            DialAnswer::Ok => Ok(Box::new(guest)),
            DialAnswer::Err(code, text) => {
                assert_eq!(code, agent_api::ErrorCode::HostNotAllowed);
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
        }
    }
}

/// The client, with what a test wants of an answer.
pub struct Http(Client);

impl Http {
    pub async fn send(&self, method: Method, path: &str, body: &[u8]) -> Response<Body> {
        self.send_with(method, path, body, &[]).await
    }

    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Response<Body> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://mirror.invalid{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Bytes::copy_from_slice(body);
        self.0.send(request.body(body).unwrap()).await.unwrap()
    }

    pub async fn status(&self, method: Method, path: &str, body: &[u8]) -> u16 {
        self.send(method, path, body).await.status().as_u16()
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let answer = self.send(Method::GET, path, b"").await;
        let status = answer.status().as_u16();
        let bytes = bytes_capped(answer.into_body(), 64 * 1024 * 1024).await;
        (status, bytes.unwrap().to_vec())
    }

    /// Begins an upload; answers its place.
    pub async fn begin(&self, digest: &image_rs::Digest) -> Result<String, u16> {
        let path = format!("/v2/blob/blobs/uploads/?digest={digest}");
        let answer = self.send(Method::POST, &path, b"").await;
        match answer.status().as_u16() {
            202 => Ok(answer.headers()["location"].to_str().unwrap().to_owned()),
            other => Err(other),
        }
    }

    /// Uploads in two pieces; answers the last status.
    pub async fn fill(&self, digest: &image_rs::Digest, bytes: &[u8]) -> u16 {
        let place = match self.begin(digest).await {
            Ok(place) => place,
            Err(status) => return status,
        };
        for piece in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]] {
            let status = self.status(Method::PATCH, &place, piece).await;
            if status != 202 {
                return status;
            }
        }
        let end = format!("{place}?digest={digest}");
        self.status(Method::PUT, &end, b"").await
    }
}

/// Bytes that are not all the same, other ones for each seed.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}
