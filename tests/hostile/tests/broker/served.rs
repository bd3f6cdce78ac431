//! The real broker in plain HTTP on loopback, with development roots, one secret, and a policy that
//! releases it to whoever attests: what stands between a mutation and the secret is verification.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use kbs_protocol::PREFIX;
use serde_json::json;
use support::State;
use support::host::own_kib;
use support::product;
use support::registry::free_port;
use support::run::{Service, within};

use crate::guest::{self, SNP_ROOT, TD_ROOT};
use crate::http::{Connection, Request};

/// What must be in no answer and in no log.
pub(crate) const SECRET: &str = "the-treasure-is-under-the-third-palm";
pub(crate) const RESOURCE: &str = "hostile/key/one";

const READY: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(30);
const ALLOW_ALL: &str = "package policy\n\ndefault allow := true\n";

pub(crate) struct Served {
    service: Service,
    pub(crate) address: SocketAddr,
    pub(crate) admin: String,
    /// A token by the key of somebody else's broker.
    pub(crate) stranger: String,
}

impl Served {
    pub(crate) fn start(state: &State) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let dir = state.path().join("broker");
        init(&dir, address);
        configure(&dir);
        let mut serve = kbs();
        serve.args(["serve", "--config"]).arg(dir.join("kbs.toml"));
        let mut service = Service::start(&mut serve, &state.path().join("log")).unwrap();
        service
            .wait_until(READY, || TcpStream::connect(address).is_ok())
            .unwrap();
        let other = state.path().join("other");
        init(&other, address);
        let served = Self {
            service,
            address,
            admin: token(&dir),
            stranger: token(&other),
        };
        served.own(&format!("resource/{RESOURCE}"), SECRET.into());
        let policy = BASE64_URL_SAFE_NO_PAD.encode(ALLOW_ALL);
        let message = json!({"type": "rego", "policy": policy});
        served.own("resource-policy", message.to_string().into());
        served
    }

    fn own(&self, path: &str, body: Vec<u8>) {
        let request = Request::new("POST", &format!("{PREFIX}/{path}"))
            .with("authorization", format!("Bearer {}", self.admin))
            .with("content-type", "application/json")
            .body(body);
        let answer = Connection::new(self.address).ask(&request).unwrap();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }

    /// MiB of memory that it has for itself.
    pub(crate) fn own_mib(&self) -> u64 {
        own_kib(self.service.pid().as_raw()).unwrap() / 1024
    }

    pub(crate) fn log(&self) -> String {
        self.service.log()
    }
}

fn kbs() -> Command {
    let mut kbs = Command::new(product::bin("kbs").unwrap());
    // A developer's shell may ask for backtraces, and then each error within a policy costs one.
    kbs.env_remove("RUST_BACKTRACE");
    kbs
}

fn init(dir: &Path, address: SocketAddr) {
    let mut init = kbs();
    init.args(["init", "--listen", &address.to_string(), "--dir"]);
    within(COMMAND, init.arg(dir)).unwrap().ok().unwrap();
}

fn token(dir: &Path) -> String {
    let mut command = kbs();
    command.args(["token", "--admin-key"]);
    let said = within(COMMAND, command.arg(dir.join("admin.key"))).unwrap();
    said.ok().unwrap().stdout.trim().to_owned()
}

fn configure(dir: &Path) {
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        toml::Value::from(path.to_str().unwrap())
    };
    let development = [
        (
            "snp_root",
            file("snp.pem", &SNP_ROOT.certificates_pem().unwrap()),
        ),
        (
            "tdx_root",
            file("tdx.pem", &TD_ROOT.certificates_pem().unwrap()),
        ),
        (
            "collateral",
            file("tdx.json", &guest::collateral().to_string()),
        ),
    ];
    let development = development.map(|(name, value)| (name.to_owned(), value));
    let mut attestation = toml::Table::new();
    let accept = vec!["sample".to_owned(), "sim-snp".into(), "sim-tdx".into()];
    attestation.insert("accept".to_owned(), accept.into());
    let development = toml::Table::from_iter(development);
    attestation.insert("development".to_owned(), development.into());
    let path = dir.join("kbs.toml");
    let mut config: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    config.remove("tls").unwrap();
    config.insert("insecure_http".to_owned(), true.into());
    config.insert("attestation".to_owned(), attestation.into());
    fs::write(path, config.to_string()).unwrap();
}
