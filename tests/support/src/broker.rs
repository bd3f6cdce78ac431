//! A real `kbs` on loopback with TLS, and its admin commands.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::dev_tee;
use crate::product;
use crate::registry::free_port;
use crate::run::{Finished, Service, within};
use crate::state::State;

const READY: Duration = Duration::from_secs(20);
const ADMIN: Duration = Duration::from_secs(20);

/// What guests and the owner's commands pin, in the broker's directory.
const ROOT: &str = "tls-root.pem";

/// The running broker, in development mode: it accepts `sample` evidence.
#[derive(Debug)]
pub struct Broker {
    service: Service,
    dir: PathBuf,
    address: String,
    root_pem: String,
}

impl Broker {
    /// Sets it up below `state` and starts it.
    ///
    /// # Errors
    /// When `kbs` is not built, or does not listen in time.
    pub fn start(state: &State) -> Result<Self> {
        Self::traced(state, None)
    }

    /// The same, which also believes this build directory's development root.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn simulated(state: &State) -> Result<Self> {
        Self::with(state, None, true)
    }

    /// The same; its spans go to a collector, where one is named.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn traced(state: &State, collector: Option<&str>) -> Result<Self> {
        Self::with(state, collector, false)
    }

    fn with(state: &State, collector: Option<&str>, simulated: bool) -> Result<Self> {
        let kbs = product::bin("kbs")?;
        let dir = state.path().join("kbs");
        let address = format!("127.0.0.1:{}", free_port()?);
        within(
            ADMIN,
            Command::new(&kbs)
                .args(["init", "--accept", "sample", "--listen", &address, "--dir"])
                .arg(&dir),
        )?
        .ok()?;
        if let Some(url) = collector {
            let config = dir.join("kbs.toml");
            let text = std::fs::read_to_string(&config)?;
            let keyed = format!("[telemetry]\notlp_endpoint = \"{url}\"\n");
            let text = match text.contains("[telemetry]\n") {
                true => text.replacen("[telemetry]\n", &keyed, 1),
                false => format!("{text}\n{keyed}"),
            };
            std::fs::write(&config, text)?;
        }
        if simulated {
            let config = dir.join("kbs.toml");
            let text = dev_tee::believed(&std::fs::read_to_string(&config)?)?;
            std::fs::write(&config, text)?;
        }
        let mut service = Service::start(
            Command::new(&kbs)
                .args(["serve", "--config"])
                .arg(dir.join("kbs.toml")),
            &state.path().join("kbs.log"),
        )?;
        service.wait_until(READY, || TcpStream::connect(&address).is_ok())?;
        let root = dir.join(ROOT);
        let root_pem =
            std::fs::read_to_string(&root).with_context(|| format!("read {}", root.display()))?;
        Ok(Self {
            service,
            dir,
            address,
            root_pem,
        })
    }

    /// Its address for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The certificate that clients are told to trust.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// Runs one of the owner's commands on this broker.
    ///
    /// # Errors
    /// When it fails.
    pub fn owner(&self, args: &[&str]) -> Result<Finished> {
        let mut kbs = Command::new(product::bin("kbs")?);
        kbs.args(args)
            .args(["--url", &self.url(), "--cacert"])
            .arg(self.dir.join(ROOT));
        within(
            ADMIN,
            kbs.arg("--admin-key").arg(self.dir.join("admin.key")),
        )?
        .ok()
    }

    /// Stores a secret below `repository/type/tag`.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn put(&self, path: &str, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.owner(&["resource", "set", path, "--file", &file])
            .map(drop)
    }

    /// Releases to `sample` guests with this init-data (digest in hex) and to no other.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn release_only_to(&self, init_data_digest: &str) -> Result<()> {
        self.release_only_to_kind("sample", init_data_digest)
    }

    /// The same of another kind.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn release_only_to_kind(&self, tee: &str, init_data_digest: &str) -> Result<()> {
        let digest = ["--init-data-digest", init_data_digest];
        self.owner(&[&["policy", "pin", "--tee", tee][..], &digest].concat())
            .map(drop)
    }

    /// Sets the release policy.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn release_policy(&self, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.owner(&["policy", "set", "--file", &file]).map(drop)
    }

    /// The owner's view of a refusal.
    ///
    /// # Errors
    /// When there is no such ticket.
    pub fn explain(&self, ticket: &str) -> Result<String> {
        Ok(self.owner(&["explain", ticket])?.stdout)
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn crash(&mut self) -> Result<()> {
        self.service.crash()
    }
}
