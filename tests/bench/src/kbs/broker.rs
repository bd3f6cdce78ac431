//! A real broker on a core of its own, as `kbs init` sets it up, without TLS.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::future::try_join_all;
use kbs_protocol::PREFIX;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::json;
use support::State;
use support::product;
use support::registry::free_port;
use support::run::{Service, within};

use super::affinity::{Cores, pin};
use super::http::Connection;

const READY: Duration = Duration::from_secs(20);
const COMMAND: Duration = Duration::from_secs(20);
/// Connections that fill the store.
const FILLERS: usize = 32;

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    service: Service,
    address: SocketAddr,
    admin: String,
}

impl Broker {
    /// Sets it up in a directory of its own and starts it on its core. It accepts what proves
    /// nothing, and simulated SEV-SNP under this root.
    ///
    /// # Errors
    /// When `kbs` is not built, or does not listen in time.
    pub fn start(state: &State, name: &str, root: &Path, cores: Cores) -> Result<Self> {
        let dir = state.path().join(name);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut init = kbs()?;
        init.args(["init", "--listen", &address.to_string(), "--dir"]);
        init.arg(&dir);
        within(COMMAND, &mut init)?.ok()?;
        configure(&dir.join("kbs.toml"), root)?;
        let mut serve = kbs()?;
        serve.args(["serve", "--config"]).arg(dir.join("kbs.toml"));
        pin(cores.broker)?;
        let service = Service::start(&mut serve, &dir.join("log"));
        pin(cores.guests)?;
        let mut service = service?;
        service.wait_until(READY, || TcpStream::connect(address).is_ok())?;
        let mut token = kbs()?;
        token
            .arg("token")
            .arg("--admin-key")
            .arg(dir.join("admin.key"));
        let admin = within(COMMAND, &mut token)?.ok()?.stdout.trim().to_owned();
        Ok(Self {
            service,
            address,
            admin,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its time on the processor so far, of all its threads.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // Behind the name, which may have blanks: state is the first, utime the twelfth.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut fields = fields.split(' ').skip(11);
        let mut ticks = || -> Result<u64> {
            let field = fields.next().context("a short line of /proc")?;
            Ok(field.parse()?)
        };
        let ticks = ticks()? + ticks()?;
        let a_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let a_second = u64::try_from(a_second)?;
        Ok(Duration::from_millis(ticks * 1000 / a_second))
    }

    /// Its resident memory in MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss_mib(&self) -> Result<f64> {
        let status = self.proc("status")?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
            .context("the kernel does not say how much memory it has")?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    }

    fn proc(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.service.pid());
        std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    /// Stores secrets.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn put(&self, resources: &[(String, Vec<u8>)]) -> Result<()> {
        let share = resources.len().div_ceil(FILLERS).max(1);
        let parts = resources.chunks(share).map(|some| self.put_some(some));
        try_join_all(parts).await.map(drop)
    }

    async fn put_some(&self, resources: &[(String, Vec<u8>)]) -> Result<()> {
        let mut connection = Connection::open(self.address).await?;
        for (path, secret) in resources {
            let request = format!("POST {PREFIX}/resource/{path}");
            connection
                .ask(&request, &self.authorization(), secret)
                .await?;
        }
        Ok(())
    }

    /// Sets the release policies of path prefixes; that of all paths is the one of "".
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn release_policies(&self, scopes: &[String], rego: &str) -> Result<()> {
        let message = json!({ "type": "rego", "policy": BASE64_URL_SAFE_NO_PAD.encode(rego) });
        let message = serde_json::to_vec(&message)?;
        let json = "content-type: application/json\r\n";
        let headers = self.authorization() + json;
        let mut connection = Connection::open(self.address).await?;
        for scope in scopes {
            let slash = if scope.is_empty() { "" } else { "/" };
            let request = format!("POST {PREFIX}/resource-policy{slash}{scope}");
            connection.ask(&request, &headers, &message).await?;
        }
        Ok(())
    }

    fn authorization(&self) -> String {
        format!("authorization: Bearer {}\r\n", self.admin)
    }
}

/// The policy that releases to this kind with this init-data, as the owner's command makes it.
///
/// # Errors
/// When the command fails.
pub fn pinned(kind: &str, digest: &str) -> Result<String> {
    let mut command = kbs()?;
    command.args(["policy", "pin", "--print", "--tee", kind]);
    command.args(["--init-data-digest", digest]);
    Ok(within(COMMAND, &mut command)?.ok()?.stdout)
}

fn kbs() -> Result<Command> {
    let mut kbs = Command::new(product::bin("kbs")?);
    // As a service's manager starts it. A developer's shell may ask for backtraces, and then each
    // error within a policy costs one.
    kbs.env_remove("RUST_BACKTRACE");
    kbs.env_remove("RUST_LIB_BACKTRACE");
    Ok(kbs)
}

/// TLS costs what it costs with anybody; here it would hide the broker.
fn configure(path: &Path, root: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    let mut config: toml::Table = text.parse().context("read the configuration")?;
    ensure!(config.remove("tls").is_some(), "`kbs init` made no [tls]");
    config.insert("insecure_http".to_owned(), true.into());
    let root = root.to_str().context("a path that is not text")?;
    let attestation = toml::toml! {
        accept = ["sample", "sim-snp"]
    };
    let attestation: toml::Table = attestation
        .into_iter()
        .chain([(
            "development".to_owned(),
            toml::Table::from_iter([("snp_root".to_owned(), root.into())]).into(),
        )])
        .collect();
    config.insert("attestation".to_owned(), attestation.into());
    std::fs::write(path, config.to_string()).context("write the configuration")
}
