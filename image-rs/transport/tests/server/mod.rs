//! A small HTTP server on loopback, with or without TLS, and certificates made on the spot.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What a server shows, and what trusts it.
pub(crate) struct Identity {
    pub(crate) root_pem: String,
    chain_pem: String,
    key_pem: String,
}

impl Identity {
    /// A certificate that a CA of its own issued.
    pub(crate) fn issued(name: &str) -> Self {
        let mut params = CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Self {
            root_pem: issuer.pem(),
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// One certificate that signs itself, and may call itself a CA.
    pub(crate) fn self_signed(name: &str, is_ca: bool) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        Self::of(&params)
    }

    /// The same, a CA, and past its time.
    pub(crate) fn expired(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
        Self::of(&params)
    }

    fn of(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            root_pem: pem.clone(),
            chain_pem: pem,
            key_pem: key.serialize_pem(),
        }
    }

    pub(crate) fn fingerprint(&self) -> String {
        let der = CertificateDer::from_pem_slice(self.chain_pem.as_bytes()).unwrap();
        format!("sha256:{}", hex::encode(Sha256::digest(der)))
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = CertificateDer::pem_slice_iter(self.chain_pem.as_bytes());
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

/// A running server; it ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) accepted: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn plain() -> Self {
        Self::start(None).await
    }

    pub(crate) async fn tls(identity: &Identity) -> Self {
        Self::start(Some(identity.acceptor())).await
    }

    pub(crate) fn https(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.port)
    }

    pub(crate) fn http(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, tls.clone()));
            }
        });
        Self { port, accepted }
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>) {
    let http = hyper::server::conn::http1::Builder::new();
    // A client that breaks off is part of these tests.
    let _ = match tls {
        None => {
            http.serve_connection(TokioIo::new(stream), service_fn(answer))
                .await
        }
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => {
                http.serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await
            }
            Err(_) => return,
        },
    };
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let full = |bytes: Vec<u8>| Response::new(Full::new(Bytes::from(bytes)).boxed());
    Ok(match request.uri().path() {
        "/large" => full(vec![b'x'; 4096]),
        "/large-chunked" => Response::new(
            Pieces {
                left: 4,
                stall: false,
            }
            .boxed(),
        ),
        "/stall" => Response::new(
            Pieces {
                left: 1,
                stall: true,
            }
            .boxed(),
        ),
        "/hang" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            full(Vec::new())
        }
        "/auth" => {
            let value = request.headers().get("authorization");
            full(value.map_or(b"none".to_vec(), |value| value.as_bytes().to_vec()))
        }
        "/loop" => redirect("/loop"),
        "/redirect" => redirect(request.uri().query().unwrap().strip_prefix("to=").unwrap()),
        path => full(format!("{} {path}", request.method()).into_bytes()),
    })
}

fn redirect(to: &str) -> Answer {
    let body = Full::new(Bytes::new()).boxed();
    Response::builder()
        .status(307)
        .header("location", to)
        .body(body)
        .unwrap()
}

/// A body without a length, that may never end.
struct Pieces {
    left: usize,
    stall: bool,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return if self.stall {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(None)
            };
        }
        self.left -= 1;
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; 1024])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
