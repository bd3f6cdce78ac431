//! What one caller, or a stranger, can take of the services' connections.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use attestation_agent::api::{
    Abilities, Ask, Authorize, Caller, MountRequest, Peer, Refused, Serving, Volumes,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::services::{call_with, field, http, owner, serve_to};

/// Connections of one caller.
const OF_ONE: usize = 32;
/// Requests of one caller at once.
const REQUESTS_OF_ONE: usize = 16;
const RESOURCE: &str = "GET /cdh/resource/default/key/1";
/// Connections of one address that are not known yet.
const ARRIVALS: usize = 8;
/// Longer than a refusal takes, and shorter than a connection that is served may be silent.
const SOON: Duration = Duration::from_secs(10);

/// Takes everybody for the same one, and nobody where that has no name.
#[derive(Default)]
struct Named(Mutex<&'static str>);

impl Named {
    fn are(&self, name: &'static str) {
        *self.0.lock().unwrap() = name;
    }
}

#[async_trait]
impl Authorize for Named {
    async fn identify(&self, _: Peer) -> Result<Caller, Refused> {
        match *self.0.lock().unwrap() {
            "" => Err(Refused("a stranger".to_owned())),
            name => Ok(Caller {
                id: name.to_owned(),
                annotations: Default::default(),
            }),
        }
    }

    fn allow(&self, _: &Caller, _: &Ask<'_>) -> Result<(), Refused> {
        Ok(())
    }
}

/// A connection that stays, after one answer over it.
async fn keep_alive(serving: &Serving) -> TcpStream {
    let mut stream = TcpStream::connect(serving.rest().unwrap()).await.unwrap();
    let request = b"GET /info HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

/// Everything that comes until the connection ends, which is soon.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let ended = timeout(SOON, stream.read_to_end(&mut answer)).await;
    match ended.expect("the connection was not ended") {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(answer).unwrap(),
    }
}

#[tokio::test]
async fn a_caller_has_so_many_connections_and_one_more_is_told_once() {
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let who = Arc::new(Named::default());
    let hub = Arc::clone(&owner.hub);
    let (serving, _) = serve_to(hub, who.clone(), Abilities::default(), directory.path()).await;
    who.are("web");
    let mut open = Vec::new();
    for _ in 0..OF_ONE {
        open.push(keep_alive(&serving).await);
    }
    for (name, told) in [("web", "too many connections"), ("", "a stranger")] {
        who.are(name);
        // It asks to be kept, and is not.
        let mut refused = TcpStream::connect(serving.rest().unwrap()).await.unwrap();
        let request = b"GET /info HTTP/1.1\r\nhost: localhost\r\n\r\n";
        refused.write_all(request).await.unwrap();
        let answer = to_the_end(&mut refused).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 403"), "{answer}");
        assert!(
            answer.contains("connection: close") && answer.ends_with(told),
            "{answer}"
        );
        // Nor is one that asks nothing.
        let mut silent = TcpStream::connect(serving.rest().unwrap()).await.unwrap();
        assert_eq!(to_the_end(&mut silent).await, "");
    }
    who.are("db");
    assert_eq!(http(&serving, "GET /info", "").await.0, 200);
    who.are("web");
    open.pop();
    let again = async {
        while http(&serving, "GET /info", "").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, again).await.unwrap();
}

/// Takes its time to know anybody, and counts those who wait for it.
struct Slow {
    waiting: AtomicUsize,
    known: Semaphore,
}

#[async_trait]
impl Authorize for Slow {
    async fn identify(&self, _: Peer) -> Result<Caller, Refused> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _known = self.known.acquire().await.unwrap();
        Ok(Caller {
            id: "web".to_owned(),
            annotations: Default::default(),
        })
    }

    fn allow(&self, _: &Caller, _: &Ask<'_>) -> Result<(), Refused> {
        Ok(())
    }
}

#[tokio::test]
async fn few_are_let_in_before_it_is_known_who_they_are_and_the_others_wait() {
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow {
        waiting: AtomicUsize::default(),
        known: Semaphore::new(0),
    });
    let hub = Arc::clone(&owner.hub);
    let (serving, _) = serve_to(hub, slow.clone(), Abilities::default(), directory.path()).await;
    let address = serving.rest().unwrap();
    let mut all = Vec::new();
    for _ in 0..2 * ARRIVALS {
        all.push(TcpStream::connect(address).await.unwrap());
    }
    let first = async {
        while slow.waiting.load(Ordering::SeqCst) < ARRIVALS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(slow.waiting.load(Ordering::SeqCst), ARRIVALS);
    slow.known.add_permits(1);
    for stream in &mut all {
        let request = b"GET /info HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let answer = to_the_end(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// Disks that are not there before somebody says so, and how many wait for them.
struct Disks {
    waiting: AtomicUsize,
    there: Semaphore,
}

#[async_trait]
impl Volumes for Disks {
    async fn mount(&self, _: MountRequest) -> Result<(), String> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.there.acquire().await.unwrap().forget();
        Ok(())
    }
}

#[tokio::test]
async fn a_caller_has_so_many_requests_at_once_and_one_more_is_told_on_either_interface() {
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let (who, disks) = (
        Arc::new(Named::default()),
        Arc::new(Disks {
            waiting: AtomicUsize::default(),
            there: Semaphore::new(0),
        }),
    );
    let abilities = Abilities {
        volumes: Some(disks.clone()),
        ..Abilities::default()
    };
    let hub = Arc::clone(&owner.hub);
    let (serving, addresses) = serve_to(hub, who.clone(), abilities, directory.path()).await;
    who.are("web");
    let mut mounts = JoinSet::new();
    for _ in 0..REQUESTS_OF_ONE {
        let socket = addresses.data_hub.clone();
        let volume = field(1, b"block-device");
        mounts.spawn(async move {
            call_with(&socket, "api.SecureMountService", "SecureMount", volume).await
        });
    }
    let all = async {
        while disks.waiting.load(Ordering::SeqCst) < REQUESTS_OF_ONE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, all).await.unwrap();

    let (status, told) = http(&serving, RESOURCE, "").await;
    assert_eq!(status, 429, "{told}");
    assert!(told.contains("ask again later"), "{told}");
    let uri = field(1, b"kbs:///default/key/1");
    let service = "api.GetResourceService";
    let called = call_with(&addresses.data_hub, service, "GetResource", uri).await;
    match called {
        Err(ttrpc::Error::RpcStatus(told)) => {
            assert_eq!(told.code(), ttrpc::Code::RESOURCE_EXHAUSTED, "{told}");
        }
        other => panic!("{other:?}"),
    }
    // It got nothing, and what it took is not another's.
    assert_eq!(owner.script.count("resource"), 0);
    who.are("db");
    assert_eq!(http(&serving, RESOURCE, "").await.0, 200);
    who.are("web");
    disks.there.add_permits(1);
    timeout(SOON, mounts.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(http(&serving, RESOURCE, "").await.0, 200);
}

/// The warnings of this thread, as their texts.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

#[tokio::test]
async fn strangers_are_one_warning_however_often_they_come() {
    let warnings = Warnings::default();
    let _heard = tracing::subscriber::set_default(warnings.clone());
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let hub = Arc::clone(&owner.hub);
    let nobody = Arc::new(Named::default());
    let (serving, _) = serve_to(hub, nobody, Abilities::default(), directory.path()).await;
    for _ in 0..OF_ONE {
        assert_eq!(http(&serving, "GET /info", "").await.0, 403);
    }
    let warnings = warnings.0.lock().unwrap();
    let told = warnings.iter().filter(|told| told.contains("not served"));
    assert_eq!(told.count(), 1, "{warnings:?}");
}

#[tokio::test]
async fn a_web_page_does_not_ask_and_nobody_by_another_name() {
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let who = Arc::new(Named::default());
    who.are("web");
    let hub = Arc::clone(&owner.hub);
    let (serving, _) = serve_to(hub, who, Abilities::default(), directory.path()).await;
    let address = serving.rest().unwrap();
    for (head, status) in [
        (format!("host: {address}"), "200"),
        ("host: [::1]".to_owned(), "200"),
        ("host: rebound.test:8006".to_owned(), "403"),
        (
            format!("host: {address}\r\norigin: http://page.test"),
            "403",
        ),
        ("x: y".to_owned(), "403"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let path = "/cdh/resource/default/key/1";
        let request = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = to_the_end(&mut stream).await;
        assert_eq!(&answer[9..12], status, "{head}: {answer}");
    }
    assert_eq!(owner.script.count("resource"), 2);
}
