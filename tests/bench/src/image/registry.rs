//! `docker-registry` on loopback, over plain HTTP: TLS would be measured with neither side of a comparison.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use support::State;
use support::registry::free_port;
use support::run::Service;

const READY: Duration = Duration::from_secs(15);

/// The running registry.
#[derive(Debug)]
pub struct PlainRegistry {
    _service: Service,
    address: String,
}

impl PlainRegistry {
    /// Starts it with empty storage in `state`.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn start(state: &State) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let storage = state.dir("registry")?;
        let config = state.file(
            "registry.yml",
            format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
                 storage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                storage.display(),
            ),
        )?;
        let mut service = Service::start(
            Command::new("docker-registry").arg("serve").arg(config),
            &state.path().join("registry.log"),
        )?;
        service.wait_until(READY, || TcpStream::connect(&address).is_ok())?;
        Ok(Self {
            _service: service,
            address,
        })
    }

    /// `host:port`, as it stands before an image's name.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}
