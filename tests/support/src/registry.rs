//! A real registry (`docker-registry`) on loopback, with TLS.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::run::{Service, within};
use crate::state::State;
use crate::tls::{self, Identity};

const READY: Duration = Duration::from_secs(15);
const COPY: Duration = Duration::from_secs(60);

/// The running registry.
#[derive(Debug)]
pub struct Registry {
    service: Service,
    address: String,
    storage: PathBuf,
    identity: Identity,
}

impl Registry {
    /// Starts it with empty storage in `state`.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn start(state: &State) -> Result<Self> {
        let storage = state.dir("registry")?;
        let identity = tls::identity(state, "registry")?;
        let (service, address) = serve(state, "registry", &storage, &tls_section(&identity))?;
        Ok(Self {
            service,
            address,
            storage,
            identity,
        })
    }

    /// Serves the same images without TLS as well, as long as the answer is held; its second part is the
    /// address.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn in_the_clear(&self, state: &State) -> Result<(Service, String)> {
        serve(state, "registry-clear", &self.storage, "")
    }

    /// Serves the same images under the same address in another network namespace as well, as long as the
    /// answer is held.
    ///
    /// # Errors
    /// When it does not start.
    pub fn also_in(&self, state: &State, namespace: &Path) -> Result<Service> {
        let config = state.file(
            "registry-inside.yml",
            configuration(&self.storage, &self.address, &tls_section(&self.identity)),
        )?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", namespace.display()))
            .args(["docker-registry", "serve"])
            .arg(config);
        Service::start(&mut command, &state.path().join("registry-inside.log"))
    }

    /// `host:port`, as it stands before an image's name.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Tells containerd to trust it, by a directory in containerd's form.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn hosts(&self, state: &State) -> Result<PathBuf> {
        let address = &self.address;
        state.dir(&format!("certs.d/{address}"))?;
        let text = format!(
            "server = \"https://{address}\"\n[host.\"https://{address}\"]\n  ca = {:?}\n",
            self.identity.cert
        );
        state.file(&format!("certs.d/{address}/hosts.toml"), text)?;
        Ok(state.path().join("certs.d"))
    }

    /// The certificate that clients are told to trust.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.identity.cert_pem
    }

    /// File of [`Self::cert_pem`].
    #[must_use]
    pub fn cert(&self) -> &Path {
        &self.identity.cert
    }

    /// Its access log: what was asked of it, and by whom.
    #[must_use]
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// Pushes an OCI layout with skopeo, with `more` arguments (encryption, for one), and answers
    /// the full reference.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn push(&self, layout: &str, name: &str, more: &[&str]) -> Result<String> {
        let reference = format!("{}/{name}", self.address);
        within(
            COPY,
            Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--insecure-policy",
                    "--dest-tls-verify=false",
                ])
                .args(more)
                .arg(layout)
                .arg(format!("docker://{reference}")),
        )?
        .ok()?;
        Ok(reference)
    }

    /// The stored bytes of a blob, changed by `change`: what a hostile registry would serve.
    ///
    /// # Errors
    /// When there is no such blob.
    pub fn tamper(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let hex = digest.strip_prefix("sha256:").context("a sha256 digest")?;
        ensure!(hex.len() == 64, "a digest of 64 digits, found `{digest}`");
        let file = self
            .storage
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data");
        let mut bytes = std::fs::read(&file).with_context(|| format!("blob {digest}"))?;
        change(&mut bytes);
        std::fs::write(&file, bytes)?;
        Ok(())
    }

    /// Where it keeps its blobs.
    #[must_use]
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// The manifest of an image, as JSON.
    ///
    /// # Errors
    /// When skopeo fails or answers something else.
    pub fn manifest(&self, reference: &str) -> Result<serde_json::Value> {
        let said = within(
            COPY,
            Command::new("skopeo")
                .args(["inspect", "--raw", "--tls-verify=false"])
                .arg(format!("docker://{reference}")),
        )?
        .ok()?;
        Ok(serde_json::from_str(&said.stdout)?)
    }
}

/// Starts one and waits until it listens.
fn serve(state: &State, name: &str, storage: &Path, tls: &str) -> Result<(Service, String)> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let config = state.file(
        &format!("{name}.yml"),
        configuration(storage, &address, tls),
    )?;
    let mut service = Service::start(
        Command::new("docker-registry").arg("serve").arg(config),
        &state.path().join(format!("{name}.log")),
    )?;
    service.wait_until(READY, || TcpStream::connect(&address).is_ok())?;
    Ok((service, address))
}

fn tls_section(identity: &Identity) -> String {
    format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        identity.cert.display(),
        identity.key.display()
    )
}

fn configuration(storage: &Path, address: &str, tls: &str) -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: false\n\
         storage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: {address}\n{tls}",
        storage.display(),
    )
}

/// A port that was free a moment ago.
///
/// # Errors
/// When none can be had.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
