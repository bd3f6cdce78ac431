//! A real `kbs` on loopback with TLS, and its admin commands.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::product;
use crate::registry::free_port;
use crate::run::{Finished, Service, within};
use crate::state::State;

const READY: Duration = Duration::from_secs(20);
const ADMIN: Duration = Duration::from_secs(20);

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
        let kbs = product::bin("kbs")?;
        let dir = state.path().join("kbs");
        let address = format!("127.0.0.1:{}", free_port()?);
        within(
            ADMIN,
            Command::new(&kbs)
                .args(["init", "--development", "--listen", &address, "--dir"])
                .arg(&dir),
        )?
        .ok()?;
        let mut service = Service::start(
            Command::new(&kbs).args(["serve", "--dir"]).arg(&dir),
            &state.path().join("kbs.log"),
        )?;
        service.wait_until(READY, || TcpStream::connect(&address).is_ok())?;
        let root = dir.join("root.pem");
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

    /// Runs an admin command of `kbs` on this broker.
    ///
    /// # Errors
    /// When it fails.
    pub fn admin(&self, args: &[&str]) -> Result<Finished> {
        let kbs = product::bin("kbs")?;
        within(
            ADMIN,
            Command::new(kbs).args(args).arg("--dir").arg(&self.dir),
        )?
        .ok()
    }

    /// Stores a secret below `repository/type/tag`.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn put(&self, path: &str, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.admin(&["resource", "put", path, &file]).map(drop)
    }

    /// Releases to guests with this init-data (digest in hex) and to no other.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn release_only_to(&self, init_data_digest: &str) -> Result<()> {
        self.admin(&["policy", "pin-init-data", init_data_digest])
            .map(drop)
    }

    /// Sets the release policy.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn release_policy(&self, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.admin(&["policy", "set", &file]).map(drop)
    }

    /// The owner's view of a refusal.
    ///
    /// # Errors
    /// When there is no such ticket.
    pub fn explain(&self, ticket: &str) -> Result<String> {
        Ok(self.admin(&["explain", ticket])?.stdout)
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn crash(&mut self) -> Result<()> {
        self.service.crash()
    }
}
