//! A broker as an operator deploys it: `kbs init`, `kbs serve` on a free port, and clients with TLS.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod owner;
pub(crate) mod pair;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, ErrorInformation, ErrorKind, InitData, KeyKind,
    PREFIX, RuntimeData, TeeEvidence, TeeKeyPair, TokenResponse, report_data,
};
use serde_json::{Value, json};
use transport::{Client, ClientConfig, Roots, TcpDial, bytes_capped};

/// What is looked for in logs: it must never be there.
pub(crate) const SECRET: &str = "the-treasure-is-under-the-third-palm";

pub(crate) struct Deployment {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) url: String,
    child: Child,
}

impl Deployment {
    /// A fresh broker that accepts these kinds.
    pub(crate) fn start(accept: &[&str]) -> Self {
        Self::start_with(accept, |config| config)
    }

    /// The same with a changed configuration.
    pub(crate) fn start_with(accept: &[&str], change: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = dir.path().join("broker");
        let mut init = kbs();
        init.args(["init", "--listen", "127.0.0.1:0", "--dir"])
            .arg(&broker);
        for kind in accept {
            init.args(["--accept", kind]);
        }
        succeed(&init.output().unwrap());
        let config = broker.join("kbs.toml");
        let text = change(fs::read_to_string(&config).unwrap());
        fs::write(&config, text).unwrap();
        let (child, url) = spawn(&broker);
        Self { dir, url, child }
    }

    /// What `kbs serve --dev` makes of nothing, and what it prints.
    pub(crate) fn start_dev() -> (Self, String) {
        let dir = tempfile::tempdir().unwrap();
        let (child, url, printed) = spawn_dev(&dir.path().join("broker"));
        (Self { dir, url, child }, printed)
    }

    /// Kills it and starts it again with `--dev`.
    pub(crate) fn restart_dev(&mut self) {
        self.crash();
        let (child, url, _) = spawn_dev(&self.dir.path().join("broker"));
        self.child = child;
        self.url = url;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("broker").join(name)
    }

    /// Another broker with the same configuration, keys and store.
    pub(crate) fn replica(&self) -> Replica {
        let (child, url) = spawn(&self.dir.path().join("broker"));
        Replica { url, child }
    }

    /// Tells it to end in order.
    pub(crate) fn terminate(&self) {
        let told = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status();
        assert!(told.unwrap().success());
    }

    /// Kills it without a word.
    pub(crate) fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it without a word, and starts it again on the same directory.
    pub(crate) fn crash_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let (child, url) = spawn(&self.dir.path().join("broker"));
        self.child = child;
        self.url = url;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// An owner's command.
    pub(crate) fn owner(&self, args: &[&str]) -> Output {
        kbs()
            .args(args)
            .args(["--url", &self.url, "--cacert"])
            .arg(self.path("tls-root.pem"))
            .arg("--admin-key")
            .arg(self.path("admin.key"))
            .output()
            .unwrap()
    }

    /// An owner's command that has to succeed; gives what it printed.
    pub(crate) fn own(&self, args: &[&str]) -> String {
        let output = self.owner(args);
        succeed(&output);
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn admin_token(&self) -> String {
        let key = self.path("admin.key");
        let output = kbs()
            .arg("token")
            .arg("--admin-key")
            .arg(key)
            .output()
            .unwrap();
        succeed(&output);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn client(&self) -> Client {
        let pem = fs::read_to_string(self.path("tls-root.pem")).unwrap();
        let config = ClientConfig::new(Roots::pinned(&pem).unwrap());
        Client::new(Arc::new(TcpDial), config).unwrap()
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{PREFIX}/{path}")
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .client()
            .send(request.body(body.into()).unwrap())
            .await
            .unwrap();
        Answer {
            status: response.status(),
            headers: response.headers().clone(),
            body: bytes_capped(response.into_body(), 8 << 20).await.unwrap(),
        }
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A second broker beside a [`Deployment`].
pub(crate) struct Replica {
    pub(crate) url: String,
    child: Child,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The refusal in it, which must have the status of its kind.
    pub(crate) fn refusal(&self) -> (ErrorKind, ErrorInformation) {
        let error: ErrorInformation = serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{} {:?}", self.status, self.body));
        let kind = error.kind().unwrap();
        assert_eq!(self.status.as_u16(), kind.status());
        (kind, error)
    }

    pub(crate) fn cookie(&self) -> String {
        let line = self.headers[header::SET_COOKIE].to_str().unwrap();
        line.split(';').next().unwrap().to_owned()
    }
}

/// A guest with sample evidence. Tests bend its request before it is sent.
pub(crate) struct Guest {
    pub(crate) key: TeeKeyPair,
    pub(crate) cookie: String,
    pub(crate) request: AttestRequest,
}

impl Guest {
    /// Asks for a challenge and prepares an honest answer.
    pub(crate) async fn challenged(deployment: &Deployment, init_data: Option<&str>) -> Self {
        let mut guest = Self::asked(deployment, "sample", init_data).await;
        guest.prove();
        guest
    }

    /// Asks for a challenge as a guest of some kind, and has no evidence yet.
    pub(crate) async fn asked(
        deployment: &Deployment,
        kind: &str,
        init_data: Option<&str>,
    ) -> Self {
        let body = serde_json::to_vec(&AuthRequest::new(kind)).unwrap();
        let answer = deployment.ask(Method::POST, "auth", &[], body).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        let challenge: AuthResponse = serde_json::from_slice(&answer.body).unwrap();
        challenge.check_hash().unwrap();
        let key = TeeKeyPair::generate(KeyKind::P256).unwrap();
        Self {
            cookie: answer.cookie(),
            request: AttestRequest {
                init_data: init_data.map(InitData::toml),
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
        }
    }

    /// Makes evidence over the request as it is.
    pub(crate) fn prove(&mut self) {
        let runtime = &self.request.runtime_data;
        let digest = report_data(&runtime.nonce, &runtime.tee_pubkey, "");
        let mut evidence = json!({"svn": "1", "report_data": BASE64_STANDARD.encode(digest)});
        if let Some(init_data) = &self.request.init_data {
            evidence["init_data"] = digest_of(&init_data.body).into();
        }
        self.request.tee_evidence.primary_evidence = evidence;
    }

    pub(crate) async fn attest(&self, deployment: &Deployment) -> Answer {
        let body = serde_json::to_vec(&self.request).unwrap();
        let headers = [("cookie", self.cookie.as_str())];
        deployment.ask(Method::POST, "attest", &headers, body).await
    }

    pub(crate) async fn token(&self, deployment: &Deployment) -> String {
        let answer = self.attest(deployment).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        serde_json::from_slice::<TokenResponse>(&answer.body)
            .unwrap()
            .token
    }
}

/// A guest's request for a resource with its token.
pub(crate) async fn fetch(deployment: &Deployment, token: &str, path: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    deployment
        .ask(Method::GET, &format!("resource/{path}"), &headers, "")
        .await
}

pub(crate) fn digest_of(init_data: &str) -> String {
    let parsed = evidence::init_data::InitData::parse(init_data.as_bytes()).unwrap();
    parsed.digest().hex()
}

/// The configuration for plain HTTP.
pub(crate) fn without_tls(config: &str) -> String {
    let (before, rest) = config.split_once("[tls]\n").unwrap();
    let (_, after) = rest.split_once("\n[").unwrap();
    let before = before.replace("insecure_http = false\n", "");
    format!("insecure_http = true\n{before}\n[{after}")
}

/// Loopback is a client as others are.
pub(crate) fn counted(config: &str) -> String {
    config.replace("exempt_loopback = true", "exempt_loopback = false")
}

pub(crate) fn kbs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kbs"));
    command.env_clear();
    command
}

pub(crate) fn succeed(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

fn spawn(broker: &Path) -> (Child, String) {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(broker.join("log"))
        .unwrap();
    let mut child = kbs()
        .env("KBS_LOG", "trace")
        .args(["serve", "--config"])
        .arg(broker.join("kbs.toml"))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = listening(&line)
        .unwrap_or_else(|| panic!("{}", fs::read_to_string(broker.join("log")).unwrap()));
    (child, url)
}

fn spawn_dev(dir: &Path) -> (Child, String, String) {
    let mut child = kbs()
        .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut printed = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !printed.contains("TICKET") {
        let read = lines.read_line(&mut printed).unwrap();
        assert!(read > 0, "it ended after {printed:?}");
    }
    let url = listening(printed.lines().next().unwrap()).unwrap();
    (child, url, printed)
}

fn listening(line: &str) -> Option<String> {
    Some(line.trim().strip_prefix("listening on ")?.to_owned())
}
