//! Key providers over gRPC and ttRPC, our client against our server.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ocicrypt::keyprovider::{
    Address, DecryptConfig, EncryptConfig, Endpoint, Listener, Provider, ProviderError, serve_grpc,
    serve_ttrpc,
};
use ocicrypt::options::PrivateOptions;
use ocicrypt::packet::Packet;
use ocicrypt::{Key, LayerKey};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;

const KID: &str = "kbs:///a/b/c";

fn provider() -> Arc<Provider> {
    Arc::new(Provider {
        name: None,
        kid: Some(KID.to_owned()),
        kek: Some(Key::new(vec![4; 32])),
        read_key: |path: &Path| Err(format!("{} is not read", path.display())),
    })
}

fn options() -> Vec<u8> {
    let private = PrivateOptions {
        key: LayerKey::from_slice(&[3; 32]).unwrap(),
        digest: "sha256:00".to_owned(),
        nonce: None,
    };
    private.to_json().to_vec()
}

/// A server that ends with the test.
struct Served {
    endpoint: Endpoint,
    task: JoinHandle<std::io::Result<()>>,
    _directory: Option<TempDir>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn over_unix(
    start: impl Fn(UnixListener) -> (Endpoint, JoinHandle<std::io::Result<()>>),
) -> Served {
    let directory = TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let (endpoint, task) = start(listener);
    Served {
        endpoint,
        task,
        _directory: Some(directory),
    }
}

fn path_of(listener: &UnixListener) -> std::path::PathBuf {
    let address = listener.local_addr().unwrap();
    address.as_pathname().unwrap().to_owned()
}

fn grpc() -> Served {
    over_unix(|listener| {
        let endpoint = Endpoint::Grpc(Address::Unix(path_of(&listener)));
        let serving = serve_grpc(Listener::Unix(listener), provider());
        (endpoint, tokio::spawn(serving))
    })
}

fn ttrpc() -> Served {
    over_unix(|listener| {
        let endpoint = Endpoint::Ttrpc(path_of(&listener));
        (endpoint, tokio::spawn(serve_ttrpc(listener, provider())))
    })
}

async fn grpc_over_tcp() -> (Served, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(serve_grpc(Listener::Tcp(listener), provider()));
    let endpoint = Endpoint::Grpc(Address::parse(&address).unwrap());
    let served = Served {
        endpoint,
        task,
        _directory: None,
    };
    (served, address)
}

#[tokio::test]
async fn what_a_provider_wraps_it_unwraps_over_both_protocols() {
    for served in [grpc(), ttrpc()] {
        let wrapped = served
            .endpoint
            .wrap(&options(), EncryptConfig::default())
            .await;
        let annotation = wrapped.unwrap();
        assert_eq!(Packet::from_json(&annotation).unwrap().kid(), KID);
        let unwrapped = served
            .endpoint
            .unwrap(&annotation, DecryptConfig::default())
            .await;
        assert_eq!(unwrapped.unwrap().expose(), options());
    }
}

#[tokio::test]
async fn a_refusal_comes_with_its_words() {
    for served in [grpc(), ttrpc()] {
        let words = EncryptConfig::words("attestation-agent", "keypath=/no/such–key");
        let error = served.endpoint.wrap(&options(), words).await.unwrap_err();
        assert!(matches!(error, ProviderError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("/no/such–key"), "{error}");
    }
}

#[tokio::test]
async fn many_ask_at_once_and_large_documents_pass() {
    let served = grpc();
    // Larger than what HTTP/2 lets through before the reader says so.
    let words = format!("keyid={KID}::{}", "x".repeat(300_000));
    let asked = (0..20).map(|_| {
        let words = EncryptConfig::words("attestation-agent", &words);
        let endpoint = served.endpoint.clone();
        tokio::spawn(async move { endpoint.wrap(&options(), words).await.map(|_| ()) })
    });
    for asked in asked.collect::<Vec<_>>() {
        asked.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn over_tcp_it_wraps_and_does_not_unwrap() {
    let (served, _) = grpc_over_tcp().await;
    let wrapped = served
        .endpoint
        .wrap(&options(), EncryptConfig::default())
        .await;
    let annotation = wrapped.unwrap();
    let refused = served
        .endpoint
        .unwrap(&annotation, DecryptConfig::default())
        .await;
    let error = refused.err().unwrap();
    let is_denied = matches!(error, ProviderError::Refused { code: 7, .. });
    assert!(
        is_denied && error.to_string().contains("unix:///"),
        "{error}"
    );
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_no_other() {
    let (served, address) = grpc_over_tcp().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 5000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest));
        let _ = ended.await.expect("the connection ends");
    }
    let wrapped = served
        .endpoint
        .wrap(&options(), EncryptConfig::default())
        .await;
    assert!(wrapped.is_ok());
}

#[tokio::test]
async fn who_is_no_provider_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("absent");
    for endpoint in [
        Endpoint::Grpc(Address::Unix(path.clone())),
        Endpoint::Ttrpc(path.clone()),
    ] {
        let error = endpoint.wrap(b"{}", EncryptConfig::default()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, ProviderError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("absent"), "{error}");
    }
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = Endpoint::Grpc(Address::Unix(path))
        .wrap(b"{}", EncryptConfig::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ProviderError::Talk { .. }), "{error}");
}
