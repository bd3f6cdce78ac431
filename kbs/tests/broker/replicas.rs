//! Two brokers on one PostgreSQL, behind something that hands each connection to the next of them.

use crate::deployment;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use deployment::{
    Answer, Deployment, Guest, SECRET, fetch,
    pair::{ALLOW_ALL, Pair},
};
use http::{Method, Request, StatusCode};
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, KeyKind, PREFIX, RuntimeData, TeeEvidence,
    TeeKeyPair, TokenResponse,
};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use transport::{Client, ClientConfig, Roots, TcpDial, bytes_capped};

const DENY_ALL: &str = "package policy\nallow := false\n";
const WRITERS: usize = 4;
const READERS: usize = 4;
const NAMES: usize = 4;
/// Writes of one writer; a third before the death of a broker, a third with one alone, and a third
/// after its return.
const WRITES: usize = 90;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_at_one_broker_decides_at_the_other() {
    let Some(mut pair) = Pair::start() else {
        return;
    };
    let secret = pair.first.write("secret", SECRET);
    pair.first
        .own(&["resource", "set", "a/b/c", "--file", &secret]);
    let guest = Guest::challenged(&pair.first, None).await;
    let urls = [pair.first.url.clone(), pair.second.url.clone()];
    // A challenge of one is answered at the other.
    pair.first.url.clone_from(&urls[1]);
    let token = guest.token(&pair.first).await;
    for (text, scope, released) in [
        (DENY_ALL, "", false),
        (ALLOW_ALL, "", true),
        (DENY_ALL, "a", false),
        (ALLOW_ALL, "a/b", true),
        (DENY_ALL, "a/b", false),
    ] {
        let policy = pair.first.write("policy.rego", text);
        pair.first.url.clone_from(&urls[0]);
        let mut set = vec!["policy", "set", "--file", &policy];
        if !scope.is_empty() {
            set.extend(["--scope", scope]);
        }
        pair.first.own(&set);
        // At once where it was set, and soon elsewhere.
        let here = fetch(&pair.first, &token, "a/b/c").await;
        assert_eq!(here.status.is_success(), released, "{scope}");
        pair.first.url.clone_from(&urls[1]);
        eventually(async || {
            let there = fetch(&pair.first, &token, "a/b/c").await;
            there.status.is_success() == released
        })
        .await;
    }
    pair.first.url.clone_from(&urls[0]);
    pair.first.own(&["reference", "set", "svn", "1"]);
    pair.first.url.clone_from(&urls[1]);
    let bearer = format!("Bearer {}", pair.first.admin_token());
    let admin = [("authorization", bearer.as_str())];
    eventually(async || {
        let path = "reference-value/svn";
        let there = pair.first.ask(Method::GET, path, &admin, "").await;
        there.status == StatusCode::OK && there.json() == serde_json::json!(["1"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_one_broker_under_load_gives_no_wrong_answer_and_loses_no_write() {
    let Some(mut pair) = Pair::start() else {
        return;
    };
    let second = address(&pair.second.url);
    let brokers = Arc::new(Mutex::new(vec![address(&pair.first.url), second.clone()]));
    let load = Arc::new(Load {
        url: round_robin(Arc::clone(&brokers)).await,
        root: std::fs::read_to_string(pair.first.path("tls-root.pem")).unwrap(),
        bearer: format!("Bearer {}", pair.first.admin_token()),
        written: std::array::from_fn(|_| Default::default()),
        broken: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    });
    let guest = Arc::new(load.guest().await);
    let mut all = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let load = Arc::clone(&load);
        all.spawn(async move { load.write(writer).await });
    }
    let mut others = tokio::task::JoinSet::new();
    for reader in 0..READERS {
        let (load, guest) = (Arc::clone(&load), Arc::clone(&guest));
        others.spawn(async move { load.read(reader, &guest).await });
    }
    let attester = Arc::clone(&load);
    others.spawn(async move {
        let mut count = 0;
        while !attester.over.load(Ordering::SeqCst) {
            attester.guest().await;
            count += 1;
        }
        count
    });
    let third = WRITERS * WRITES / 3;
    load.wait_for(third).await;
    pair.first.crash();
    load.wait_for(2 * third).await;
    pair.first.crash_and_restart();
    *brokers.lock().unwrap() = vec![address(&pair.first.url), second];
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
    load.over.store(true, Ordering::SeqCst);
    while let Some(ended) = others.join_next().await {
        assert!(ended.unwrap() > 0, "somebody got no answer at all");
    }
    println!(
        "{} requests were cut off",
        load.broken.load(Ordering::SeqCst)
    );
    load.check(&pair.first, &guest).await;
}

/// What one name has got.
#[derive(Default)]
struct Written {
    tried: AtomicUsize,
    answered: AtomicUsize,
}

/// Clients that know what each of them may see.
struct Load {
    url: String,
    root: String,
    bearer: String,
    written: [[Written; NAMES]; WRITERS],
    broken: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    /// A request on a connection of its own; nothing where the connection broke.
    async fn try_ask(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
        body: impl Into<Bytes>,
    ) -> Option<Answer> {
        let config = ClientConfig::new(Roots::pinned(&self.root).unwrap());
        let client = Client::new(Arc::new(TcpDial), config).unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{PREFIX}/{path}", self.url))
            .header(header.0, header.1)
            .body(body.into())
            .unwrap();
        let answered = async {
            let response = client.send(request).await.ok()?;
            Some(Answer {
                status: response.status(),
                headers: response.headers().clone(),
                body: bytes_capped(response.into_body(), 8 << 20).await.ok()?,
            })
        };
        let answer = answered.await;
        if answer.is_none() {
            self.broken.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        answer
    }

    /// The same until it is answered, which has to be with a success.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
        body: impl Into<Bytes>,
    ) -> Answer {
        let body = body.into();
        for _ in 0..100 {
            let answer = self
                .try_ask(method.clone(), path, header, body.clone())
                .await;
            if let Some(answer) = answer {
                assert_eq!(answer.status, StatusCode::OK, "{path}: {:?}", answer.body);
                return answer;
            }
        }
        panic!("{path}: no broker answered");
    }

    /// Goes through the handshake, each step at whichever broker comes next; the guest's key and token.
    async fn guest(&self) -> (TeeKeyPair, String) {
        let none = ("accept", "*/*");
        let body = serde_json::to_vec(&AuthRequest::new("sample")).unwrap();
        let answer = self.ask(Method::POST, "auth", none, body).await;
        let challenge: AuthResponse = serde_json::from_slice(&answer.body).unwrap();
        let key = TeeKeyPair::generate(KeyKind::P256).unwrap();
        let mut guest = Guest {
            cookie: answer.cookie(),
            request: AttestRequest {
                init_data: None,
                runtime_data: RuntimeData {
                    nonce: challenge.nonce,
                    tee_pubkey: key.public(),
                },
                tee_evidence: TeeEvidence {
                    primary_evidence: Value::Null,
                    additional_evidence: String::new(),
                },
                resource: None,
            },
            key,
        };
        guest.prove();
        let body = serde_json::to_vec(&guest.request).unwrap();
        let cookie = ("cookie", guest.cookie.as_str());
        let answer = self.ask(Method::POST, "attest", cookie, body).await;
        let token: TokenResponse = serde_json::from_slice(&answer.body).unwrap();
        (guest.key, token.token)
    }

    /// Writes one number after the other to each of the writer's names.
    async fn write(&self, writer: usize) {
        let bearer = ("authorization", self.bearer.as_str());
        for number in 1..=WRITES {
            let written = &self.written[writer][number % NAMES];
            written.tried.store(number, Ordering::SeqCst);
            let path = format!("resource/r/x/{writer}-{}", number % NAMES);
            self.ask(Method::POST, &path, bearer, content(number)).await;
            written.answered.store(number, Ordering::SeqCst);
        }
    }

    /// Reads what is written, and looks whether it is as new as what was answered before. How often.
    async fn read(&self, reader: usize, guest: &(TeeKeyPair, String)) -> usize {
        let bearer = format!("Bearer {}", guest.1);
        let mut count = 0;
        for turn in reader.. {
            if self.over.load(Ordering::SeqCst) {
                break;
            }
            let (writer, name) = (turn % WRITERS, turn / WRITERS % NAMES);
            let written = &self.written[writer][name];
            let oldest = written.answered.load(Ordering::SeqCst);
            if oldest == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let path = format!("resource/r/x/{writer}-{name}");
            let header = ("authorization", bearer.as_str());
            let answer = self.ask(Method::GET, &path, header, "").await;
            let newest = written.tried.load(Ordering::SeqCst);
            let found = opened(&guest.0, &answer);
            assert!(
                (oldest..=newest).contains(&found) && found % NAMES == name,
                "{path}: {found} is not of {oldest} to {newest}"
            );
            count += 1;
        }
        count
    }

    async fn wait_for(&self, writes: usize) {
        loop {
            let all = self.written.iter().flatten();
            let latest = |one: &Written| one.answered.load(Ordering::SeqCst) / NAMES;
            if all.map(latest).sum::<usize>() >= writes {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Every name holds its last write, and the record has each write once.
    async fn check(&self, deployment: &Deployment, guest: &(TeeKeyPair, String)) {
        let listed = deployment.own(&["resource", "list"]);
        let version = |line| serde_json::from_str::<Value>(line).unwrap()["version"].as_u64();
        let kept: u64 = listed.lines().filter_map(version).sum();
        let kept = usize::try_from(kept).unwrap();
        assert_eq!(listed.lines().count(), WRITERS * NAMES);
        let entries = deployment.own(&["record", "export", "--kind", "resource"]);
        assert_eq!(entries.lines().count(), kept);
        assert!(kept >= WRITERS * WRITES, "{kept} writes were kept");
        for writer in 0..WRITERS {
            for name in 0..NAMES {
                let answered = self.written[writer][name].answered.load(Ordering::SeqCst);
                assert!(answered > WRITES - NAMES);
                let answer = fetch(deployment, &guest.1, &format!("r/x/{writer}-{name}")).await;
                assert_eq!(opened(&guest.0, &answer), answered);
            }
        }
        // The reads above are on the record as well, and nothing was refused.
        let refused = deployment.own(&["record", "list", "--result", "denied"]);
        assert_eq!(refused, "");
    }
}

fn content(number: usize) -> Vec<u8> {
    format!("{number} ").repeat(500).into_bytes()
}

/// The number that was written, which is all of the content.
fn opened(key: &TeeKeyPair, answer: &Answer) -> usize {
    let jwe = serde_json::from_slice(&answer.body).unwrap();
    let opened = key.open(&jwe).ok().unwrap();
    let text = std::str::from_utf8(opened.expose()).unwrap();
    let number = text.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(text.as_bytes(), content(number));
    number
}

fn address(url: &str) -> String {
    url.trim_start_matches("https://").to_owned()
}

/// Hands each connection to the next broker that takes it; gives the address for clients.
async fn round_robin(brokers: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for turn in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let all = brokers.lock().unwrap().clone();
            tokio::spawn(async move {
                for step in 0..all.len() {
                    let next = &all[(turn + step) % all.len()];
                    if let Ok(mut far) = TcpStream::connect(next).await {
                        // Whichever side ends it, the other one sees the end.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                        return;
                    }
                }
            });
        }
    });
    url
}

async fn eventually(holds: impl AsyncFn() -> bool) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came true");
}
