//! How the command line reaches registries.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use image_rs::Place;
use image_rs::registry::{AuthFile, Reach, Registry, RegistryConfig};
use transport::{Roots, TcpDial};

/// Whom to trust, and as whom to speak.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Speak plain HTTP; only to registries and brokers on this machine.
    #[arg(long)]
    plain_http: bool,
    /// Credentials for registries, as Docker and podman write them.
    #[arg(long, env = "REGISTRY_AUTH_FILE")]
    auth_file: Option<PathBuf>,
    /// Roots in PEM that registries may chain to besides the public ones.
    #[arg(long)]
    registry_cert: Option<PathBuf>,
}

impl RegistryArgs {
    /// Opens a client for the registries that these names lead to, and the places themselves.
    pub(super) fn places<const N: usize>(&self, names: [&str; N]) -> anyhow::Result<[Place; N]> {
        let mut insecure = BTreeSet::new();
        if self.plain_http {
            for name in names.into_iter().filter(|name| is_remote(name)) {
                let image: image_rs::Reference =
                    name.strip_prefix("docker://").unwrap_or(name).parse()?;
                let host = host_of(image.registry());
                if !is_loopback(host) {
                    bail!(
                        "--plain-http is for registries on this machine, and {host} is not: use TLS"
                    );
                }
                insecure.insert(image.registry().to_owned());
            }
        }
        let mut roots = Roots::web();
        if let Some(path) = &self.registry_cert {
            let pem =
                fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            roots = roots.and(&pem)?;
        }
        let config = RegistryConfig {
            insecure,
            auth: self.auth()?,
            ..RegistryConfig::default()
        };
        let registry = Registry::open(Arc::new(TcpDial), &Reach::new(roots), config)?;
        let places = names.map(|name| Place::parse(name, &registry));
        let places: Vec<Place> = places.into_iter().collect::<Result<_, _>>()?;
        places
            .try_into()
            .map_err(|_| anyhow::anyhow!("one place for each name"))
    }

    /// Whether plain HTTP to this machine was asked for.
    pub(super) fn plain_http(&self) -> bool {
        self.plain_http
    }

    fn auth(&self) -> anyhow::Result<AuthFile> {
        let Some(path) = self.auth_file.clone().or_else(usual_auth_file) else {
            return Ok(AuthFile::default());
        };
        let json = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        AuthFile::from_json(&json).with_context(|| path.display().to_string())
    }
}

/// Where podman and Docker keep them.
fn usual_auth_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let podman = variable("XDG_RUNTIME_DIR").map(|path| path.join("containers/auth.json"));
    let docker = variable("HOME").map(|path| path.join(".docker/config.json"));
    podman.into_iter().chain(docker).find(|path| path.is_file())
}

/// Whether a name leads to a registry, and not to a file.
fn is_remote(name: &str) -> bool {
    !name.starts_with("oci:") && !name.starts_with("oci-archive:")
}

fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    }
}

/// Whether a host is this machine, by its name alone.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_in_plain() {
        for local in [
            "localhost:5000",
            "127.0.0.1:5055",
            "127.8.8.8",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host_of(local)), "{local}");
        }
        for far in [
            "registry.local:5000",
            "10.0.0.1:5000",
            "localhost.evil.com",
            "[fe80::1]:5000",
        ] {
            assert!(!is_loopback(host_of(far)), "{far}");
        }
    }
}
