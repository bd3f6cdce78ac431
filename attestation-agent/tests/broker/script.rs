//! A broker that follows a script: it speaks the protocol honestly until a test tells it otherwise.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use attestation_agent::{Attester, Broker, BrokerConfig, attester::SampleAttester};
use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use evidence::init_data::InitData;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kbs_protocol::{AttestRequest, TeePubKey, report_data, seal};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use transport::{BoxedStream, Dial, TcpDial, Timeouts};

pub(crate) const NAME: &str = "kbs.test";
pub(crate) const SECRET: &[u8] = b"the secret";
const NONCE: &str = "Tk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk4=";
const COOKIE: &str = "kbs-session-id=sess1";

/// What the broker does instead of the honest thing.
#[derive(Clone)]
pub(crate) enum Reply {
    Status(u16, String),
    Redirect(u16, String),
    Hang,
    Honest,
}

impl Reply {
    /// A refusal as the protocol has it.
    pub(crate) fn error(status: u16, kind: &str, ticket: Option<&str>) -> Self {
        let kind = format!("{}{kind}", kbs_protocol::ERROR_TYPE_PREFIX);
        let mut body = json!({"type": kind, "detail": "the detail"});
        if let Some(ticket) = ticket {
            body["ticket"] = json!(ticket);
        }
        Self::Status(status, body.to_string())
    }
}

/// The certificate and key that a scripted broker shows.
pub(crate) struct Identity {
    pub(crate) pem: String,
    key_pem: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        Self::of(NAME)
    }

    pub(crate) fn of(name: &str) -> Self {
        let key = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        Self {
            pem: key.cert.pem(),
            key_pem: key.signing_key.serialize_pem(),
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What is shared between the broker's connections and the test.
pub(crate) struct Script {
    /// The replies of an endpoint, in order; when they are used up, the broker is honest.
    replies: Mutex<HashMap<&'static str, VecDeque<Reply>>>,
    counts: Mutex<HashMap<String, usize>>,
    /// The bodies of `auth` and `attest`, as they came.
    pub(crate) bodies: Mutex<Vec<Value>>,
    key: Mutex<Option<TeePubKey>>,
    pub(crate) connections: AtomicUsize,
    /// Whether it takes the request for a resource with the evidence; its replies to that are those of `beside`.
    pub(crate) takes_resource: AtomicBool,
    /// Seconds that a token lasts.
    pub(crate) token_seconds: AtomicUsize,
}

impl Script {
    pub(crate) fn count(&self, endpoint: &str) -> usize {
        self.counts
            .lock()
            .unwrap()
            .get(endpoint)
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn says(&self, endpoint: &'static str, replies: impl IntoIterator<Item = Reply>) {
        let mut all = self.replies.lock().unwrap();
        all.entry(endpoint).or_default().extend(replies);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let endpoint = path.strip_prefix("/kbs/v0/").unwrap().to_owned();
        let endpoint = endpoint.split('/').next().unwrap().to_owned();
        *self
            .counts
            .lock()
            .unwrap()
            .entry(endpoint.clone())
            .or_default() += 1;
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        match self.next(&endpoint) {
            Reply::Hang => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                respond(200, "{}")
            }
            Reply::Status(status, body) => respond(status, &body),
            Reply::Redirect(status, to) => {
                let mut response = respond(status, "");
                let headers = response.headers_mut();
                headers.insert("location", to.parse().unwrap());
                response
            }
            Reply::Honest => match endpoint.as_str() {
                "auth" => self.auth(&body),
                "attest" => self.attest(&head.headers, &body),
                _ => self.resource(&head.headers, &path),
            },
        }
    }

    fn auth(&self, body: &[u8]) -> Response<Full<Bytes>> {
        self.bodies
            .lock()
            .unwrap()
            .push(serde_json::from_slice(body).unwrap());
        let mut answer =
            json!({"nonce": NONCE, "extra-params": {"selected-hash-algorithm": "sha384"}});
        if self.takes_resource.load(Ordering::SeqCst) {
            answer["extra-params"]["cloister-selected"] = json!(["resource"]);
        }
        let mut response = respond(200, &answer.to_string());
        let cookie = format!("{COOKIE}; Expires=Tue, 24 Nov 2026 00:00:00 GMT");
        response
            .headers_mut()
            .insert("set-cookie", cookie.parse().unwrap());
        response
    }

    fn attest(&self, headers: &HeaderMap, body: &[u8]) -> Response<Full<Bytes>> {
        assert_eq!(headers["cookie"], COOKIE);
        self.bodies
            .lock()
            .unwrap()
            .push(serde_json::from_slice(body).unwrap());
        let request: AttestRequest = serde_json::from_slice(body).unwrap();
        let key = request.runtime_data.tee_pubkey;
        let bound = report_data(NONCE, &key, &request.tee_evidence.additional_evidence);
        assert_eq!(
            request.tee_evidence.primary_evidence["report_data"],
            BASE64_STANDARD.encode(bound)
        );
        let mut answer = json!({"token": self.token()});
        if request.resource.is_some() {
            answer["cloister-resource"] = match self.next("beside") {
                Reply::Status(status, body) => {
                    let error: Value = serde_json::from_str(&body).unwrap();
                    json!({"refused": {"status": status, "error": error}})
                }
                _ => json!({"sealed": seal(&key, SECRET).unwrap()}),
            };
        }
        *self.key.lock().unwrap() = Some(key);
        respond(200, &answer.to_string())
    }

    fn next(&self, endpoint: &str) -> Reply {
        let mut replies = self.replies.lock().unwrap();
        let next = replies.get_mut(endpoint).and_then(VecDeque::pop_front);
        next.unwrap_or(Reply::Honest)
    }

    fn token(&self) -> String {
        let seconds = self.token_seconds.load(Ordering::SeqCst);
        let claims = json!({"iat": 1000, "exp": 1000 + seconds, "n": self.count("attest")});
        format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn resource(&self, headers: &HeaderMap, path: &str) -> Response<Full<Bytes>> {
        assert_eq!(path, "/kbs/v0/resource/default/key/1");
        assert_eq!(headers["authorization"], format!("Bearer {}", self.token()));
        let key = self.key.lock().unwrap().clone().unwrap();
        respond(
            200,
            &serde_json::to_string(&seal(&key, SECRET).unwrap()).unwrap(),
        )
    }
}

fn respond(status: u16, body: &str) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(body.to_owned()));
    Response::builder().status(status).body(body).unwrap()
}

/// Starts a broker and gives its port.
pub(crate) async fn start(identity: &Identity) -> (Arc<Script>, u16) {
    let script = Arc::new(Script {
        replies: Mutex::default(),
        counts: Mutex::default(),
        bodies: Mutex::default(),
        key: Mutex::default(),
        connections: AtomicUsize::new(0),
        takes_resource: AtomicBool::new(false),
        token_seconds: AtomicUsize::new(300),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (shared, tls) = (script.clone(), identity.acceptor());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            shared.connections.fetch_add(1, Ordering::SeqCst);
            let (script, tls) = (shared.clone(), tls.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                let service = service_fn(|request| {
                    let script = script.clone();
                    async move { Ok::<_, Infallible>(script.answer(request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (script, port)
}

/// Sends every name to loopback, as a relay would.
pub(crate) struct Loopback;

#[async_trait]
impl Dial for Loopback {
    async fn dial(&self, _host: &str, port: u16) -> io::Result<BoxedStream> {
        TcpDial.dial("127.0.0.1", port).await
    }
}

/// A guest with sample evidence that pins a certificate.
pub(crate) fn guest(port: u16, pem: &str, init_data: Option<&InitData>) -> Broker {
    let attester: Arc<dyn Attester> =
        Arc::new(SampleAttester::new(init_data.map(InitData::digest)));
    let quick = Duration::from_millis(400);
    let config = BrokerConfig {
        deadline: Duration::from_secs(3),
        timeouts: Timeouts {
            dial: quick,
            tls: quick,
            head: quick,
            body: quick,
        },
        ..BrokerConfig::new(format!("https://{NAME}:{port}"), Some(pem.to_owned()))
    };
    Broker::new(&config, Arc::new(Loopback), attester, init_data).unwrap()
}
