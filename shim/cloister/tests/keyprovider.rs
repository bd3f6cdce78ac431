//! `cloister keyprovider` as skopeo and others run it: wrap, then unwrap, through the protocol's client, as a command
//! and as a server.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use ocicrypt::LayerKey;
use ocicrypt::keyprovider::{Address, Command, DecryptConfig, EncryptConfig, Endpoint};
use ocicrypt::options::PrivateOptions;
use ocicrypt::packet::Packet;

const CLOISTER: &str = env!("CARGO_BIN_EXE_cloister");

fn provider(args: &[&str]) -> Endpoint {
    let args = std::iter::once("keyprovider")
        .chain(args.iter().copied())
        .map(str::to_owned)
        .collect();
    Endpoint::Command(Command {
        path: CLOISTER.into(),
        args,
    })
}

fn options() -> Vec<u8> {
    let key = LayerKey::from_slice(&[3; 32]).unwrap();
    PrivateOptions {
        key,
        digest: "sha256:00".to_owned(),
        nonce: None,
    }
    .to_json()
    .to_vec()
}

fn words(text: &str) -> EncryptConfig {
    EncryptConfig::words("attestation-agent", text)
}

#[tokio::test]
async fn what_the_provider_wraps_it_unwraps() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kek");
    std::fs::write(&file, [5; 32]).unwrap();
    let file = file.to_str().unwrap();
    let started = provider(&["--key-id", "kbs:///a/b/c", "--key-file", file]);
    let by_words = provider(&[]);
    let said = words(&format!("keyid=kbs:///a/b/c::keypath={file}"));
    let annotations = [
        started.wrap(&options(), EncryptConfig::default()).await,
        by_words.wrap(&options(), said).await,
    ];
    for annotation in annotations {
        let annotation = annotation.unwrap();
        let packet = Packet::from_json(&annotation).unwrap();
        assert_eq!(packet.kid(), "kbs:///a/b/c");
        let unwrapped = started.unwrap(&annotation, DecryptConfig::default()).await;
        assert_eq!(unwrapped.unwrap().expose(), options());
    }
}

#[tokio::test]
async fn a_question_without_a_key_is_refused_with_the_fix() {
    let refused = provider(&[])
        .wrap(&options(), words("keyid=kbs:///a/b/c"))
        .await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("--key-file"), "{error}");
}

/// `cloister keyprovider` on a socket; it is ended with the test.
struct Server(Child);

impl Server {
    fn start(kind: &str, socket: &Path, key: &Path) -> Self {
        let mut child = std::process::Command::new(CLOISTER)
            .args(["keyprovider", "--key-id", "kbs:///a/b/c", "--key-file"])
            .arg(key)
            .args([kind, &format!("unix://{}", socket.display())])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on unix://"), "{line}");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_server_answers_its_owner_and_takes_over_a_dead_ones_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (key, socket) = (directory.path().join("kek"), directory.path().join("s"));
    std::fs::write(&key, [5; 32]).unwrap();
    // The second finds the socket that the first left when it was killed.
    for kind in ["--grpc", "--ttrpc"] {
        let _server = Server::start(kind, &socket, &key);
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let endpoint = match kind {
            "--grpc" => Endpoint::Grpc(Address::Unix(socket.clone())),
            _ => Endpoint::Ttrpc(socket.clone()),
        };
        let wrapped = endpoint.wrap(&options(), EncryptConfig::default()).await;
        let unwrapped = endpoint
            .unwrap(&wrapped.unwrap(), DecryptConfig::default())
            .await;
        assert_eq!(unwrapped.unwrap().expose(), options());
    }
}
