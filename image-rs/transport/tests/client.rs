//! The client against real servers on loopback, honest and hostile.

#![allow(clippy::unwrap_used, missing_docs)]

mod server;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use transport::{
    BoxedStream, Client, ClientConfig, Dial, Error, Phase, PlainHttp, Roots, TcpDial, Timeouts,
    bytes_capped,
};

use server::{Identity, Server};

/// Sends every name to loopback, as a relay would; ports stay.
struct Loopback;

#[async_trait]
impl Dial for Loopback {
    async fn dial(&self, _host: &str, port: u16) -> io::Result<BoxedStream> {
        TcpDial.dial("127.0.0.1", port).await
    }
}

fn quick() -> Timeouts {
    Timeouts {
        dial: Duration::from_secs(2),
        tls: Duration::from_millis(300),
        head: Duration::from_millis(300),
        body: Duration::from_millis(300),
    }
}

fn client(roots: Roots) -> Client {
    let mut config = ClientConfig::new(roots);
    config.timeouts = quick();
    Client::new(Arc::new(Loopback), config).unwrap()
}

fn get(url: &str) -> Request<Bytes> {
    Request::get(url).body(Bytes::new()).unwrap()
}

async fn text(client: &Client, url: &str) -> Result<String, Error> {
    let answer = client.send(get(url)).await?;
    let bytes = bytes_capped(answer.into_body(), 1024).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn a_pinned_root_is_trusted_and_its_connection_is_reused() {
    let identity = Identity::issued("kbs.test");
    let server = Server::tls(&identity).await;
    let client = client(Roots::pinned(&identity.root_pem).unwrap());
    for _ in 0..3 {
        let url = server.https("kbs.test", "/echo");
        assert_eq!(text(&client, &url).await.unwrap(), "GET /echo");
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_pinned_self_signed_certificate_is_trusted_even_as_a_ca() {
    for is_ca in [false, true] {
        let identity = Identity::self_signed("kbs.test", is_ca);
        let server = Server::tls(&identity).await;
        let trusting = client(Roots::pinned(&identity.root_pem).unwrap());
        assert!(
            text(&trusting, &server.https("kbs.test", "/echo"))
                .await
                .is_ok()
        );
        let error = text(&trusting, &server.https("other.test", "/echo")).await;
        assert!(matches!(error, Err(Error::Untrusted { .. })), "{error:?}");
        // Another certificate of the same name is a man in the middle.
        let other = Identity::self_signed("kbs.test", is_ca);
        let wary = client(Roots::pinned(&other.root_pem).unwrap());
        let error = text(&wary, &server.https("kbs.test", "/echo"))
            .await
            .unwrap_err();
        let Error::Untrusted { roots, cause, .. } = &error else {
            panic!("{error:?}");
        };
        assert!(roots.contains(&other.fingerprint()), "{roots}");
        assert!(cause.contains(&identity.fingerprint()), "{cause}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn an_expired_pinned_certificate_is_refused() {
    let identity = Identity::expired("kbs.test");
    let server = Server::tls(&identity).await;
    let client = client(Roots::pinned(&identity.root_pem).unwrap());
    let error = text(&client, &server.https("kbs.test", "/echo")).await;
    assert!(matches!(error, Err(Error::Untrusted { .. })), "{error:?}");
}

#[tokio::test]
async fn pins_exclude_the_web_and_the_web_excludes_the_rest() {
    let identity = Identity::issued("kbs.test");
    let server = Server::tls(&identity).await;
    let url = server.https("kbs.test", "/echo");
    assert!(matches!(
        text(&client(Roots::web()), &url).await,
        Err(Error::Untrusted { roots, .. }) if roots == "the public web roots"
    ));
    let both = Roots::web().and(&identity.root_pem).unwrap();
    assert!(text(&client(both), &url).await.is_ok());
}

#[tokio::test]
async fn plain_http_goes_only_where_it_is_asked_for() {
    let server = Server::plain().await;
    let url = server.http("registry.test", "/echo");
    assert!(matches!(
        text(&client(Roots::web()), &url).await,
        Err(Error::PlainHttp { .. })
    ));
    let mut config = ClientConfig::new(Roots::web());
    let allowed = format!("registry.test:{}", server.port);
    config.plain_http = PlainHttp::Hosts(BTreeSet::from([allowed]));
    let client = Client::new(Arc::new(Loopback), config).unwrap();
    assert_eq!(text(&client, &url).await.unwrap(), "GET /echo");
    let other = server.http("other.test", "/echo");
    assert!(matches!(
        text(&client, &other).await,
        Err(Error::PlainHttp { .. })
    ));
}

#[tokio::test]
async fn a_body_over_the_cap_is_refused_announced_or_not() {
    let server = Server::plain().await;
    let client = plain_client();
    for path in ["/large", "/large-chunked"] {
        let answer = client
            .send(get(&server.http("a.test", path)))
            .await
            .unwrap();
        let error = bytes_capped(answer.into_body(), 1000).await.unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { cap: 1000, .. }),
            "{error:?}"
        );
        let answer = client
            .send(get(&server.http("a.test", path)))
            .await
            .unwrap();
        assert_eq!(
            bytes_capped(answer.into_body(), 4096).await.unwrap().len(),
            4096
        );
    }
}

#[tokio::test]
async fn each_phase_has_its_deadline() {
    let server = Server::plain().await;
    let client = plain_client();
    let phase = |error| match error {
        Error::Timeout { phase, .. } => phase,
        other => panic!("{other:?}"),
    };
    let url = server.http("a.test", "/hang");
    assert_eq!(phase(text(&client, &url).await.unwrap_err()), Phase::Head);
    let url = server.http("a.test", "/stall");
    assert_eq!(phase(text(&client, &url).await.unwrap_err()), Phase::Body);
    // A server that accepts and says nothing never ends the handshake.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://a.test:{}/", mute.local_addr().unwrap().port());
    assert_eq!(phase(text(&client, &url).await.unwrap_err()), Phase::Tls);
}

#[tokio::test]
async fn the_diallers_own_words_reach_the_caller() {
    struct Refuses;
    #[async_trait]
    impl Dial for Refuses {
        async fn dial(&self, host: &str, _port: u16) -> io::Result<BoxedStream> {
            let text = format!("host-not-allowed: {host} is not in relay.allow");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
    let client = Client::new(Arc::new(Refuses), ClientConfig::new(Roots::web())).unwrap();
    let error = text(&client, "https://kbs.test/").await.unwrap_err();
    assert!(!error.is_transient());
    assert_eq!(
        error.to_string(),
        "dial kbs.test:443: host-not-allowed: kbs.test is not in relay.allow"
    );
}

#[tokio::test]
async fn redirects_are_followed_only_on_request_and_keep_credentials_home() {
    let cdn = Server::plain().await;
    let server = Server::plain().await;
    let client = plain_client();
    let with_secret = |path: &str| {
        let mut request = get(&server.http("a.test", path));
        request
            .headers_mut()
            .insert("authorization", "secret".parse().unwrap());
        request
    };
    let answer = client
        .send(with_secret("/redirect?to=/auth"))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    let follow = async |path: String| {
        let answer = client.send_following(with_secret(&path)).await?;
        let bytes = bytes_capped(answer.into_body(), 1024).await?;
        Ok::<_, Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    assert_eq!(
        follow("/redirect?to=/auth".to_owned()).await.unwrap(),
        "secret"
    );
    let away = format!("/redirect?to={}", cdn.http("cdn.test", "/auth"));
    assert_eq!(follow(away).await.unwrap(), "none");
    let error = follow("/loop".to_owned()).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error:?}");
}

#[tokio::test]
async fn tls_is_not_left_for_plain_http() {
    let identity = Identity::issued("kbs.test");
    let plain = Server::plain().await;
    let server = Server::tls(&identity).await;
    let mut config = ClientConfig::new(Roots::pinned(&identity.root_pem).unwrap());
    config.plain_http = PlainHttp::Allow;
    let client = Client::new(Arc::new(Loopback), config).unwrap();
    let to = plain.http("a.test", "/echo");
    let url = server.https("kbs.test", &format!("/redirect?to={to}"));
    let error = client.send_following(get(&url)).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_http_is_an_error_of_the_protocol() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
        }
    });
    let error = text(&plain_client(), &format!("http://a.test:{port}/"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
}

fn plain_client() -> Client {
    let mut config = ClientConfig::new(Roots::web());
    config.plain_http = PlainHttp::Allow;
    config.timeouts = quick();
    Client::new(Arc::new(Loopback), config).unwrap()
}
