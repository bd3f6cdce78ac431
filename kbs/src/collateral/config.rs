//! `[collateral]`: where documents are kept, from whom they come, and whose bundles are taken.

use std::path::{Path, PathBuf};

use http::Uri;
use serde::{Deserialize, Serialize};

use super::CollateralError;
use crate::{
    admin::public_key,
    config::address::{Plain, fault},
};

/// The table. Addresses without TLS are taken as well: each document is signed by its vendor, and its
/// dates are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where documents are kept; it is made when the first one is written.
    pub directory: PathBuf,
    /// Whether documents are fetched. Without it, only what is kept and imported is used.
    pub fetch: bool,
    /// AMD's key distribution service, or what stands in for it.
    pub amd_kds: String,
    /// Intel's provisioning certification service, or what stands in for it.
    pub intel_pcs: String,
    /// The list of certificates that Intel's root revoked.
    pub intel_root_crl: String,
    /// Certificates in PEM that the TLS of such a stand-in may chain to, beside the web's roots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_roots: Option<PathBuf>,
    /// Public keys in PEM, Ed25519 or P-256, whose bundles are imported.
    pub bundle_keys: Vec<PathBuf>,
    /// Who answers for simulated kinds. Without it nobody is asked about them; the vendors never are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulated: Option<Simulated>,
}

/// `[collateral.simulated]`: local services that play the vendors' for a development root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simulated {
    /// In place of AMD's.
    pub amd_kds: String,
    /// In place of Intel's.
    pub intel_pcs: String,
    /// In place of Intel's list.
    pub intel_root_crl: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            directory: "collateral".into(),
            fetch: true,
            amd_kds: "https://kdsintf.amd.com".to_owned(),
            intel_pcs: "https://api.trustedservices.intel.com".to_owned(),
            intel_root_crl: "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
                .to_owned(),
            extra_roots: None,
            bundle_keys: Vec::new(),
            simulated: None,
        }
    }
}

impl Config {
    /// Makes paths relative to `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        let paths = self.extra_roots.iter_mut().chain(&mut self.bundle_keys);
        for path in std::iter::once(&mut self.directory).chain(paths) {
            *path = base.join(&*path);
        }
    }

    /// That the keys are keys, and that documents can be kept: nobody should learn it on the day of
    /// an import.
    pub(super) fn check_files(&self) -> Result<(), CollateralError> {
        for path in &self.bundle_keys {
            public_key(path)
                .map_err(|error| CollateralError::Config(format!("bundle_keys: {error}")))?;
        }
        if self.directory.exists() && !self.directory.is_dir() {
            let place = self.directory.display();
            let text = format!("directory: {place} is no directory: name one, or one to be made");
            return Err(CollateralError::Config(text));
        }
        Ok(())
    }

    /// Who is asked for documents about real machines, then about simulated ones.
    pub(super) fn services(&self) -> Result<[Option<Services>; 2], String> {
        let vendors = Services {
            amd_kds: base("amd_kds", &self.amd_kds)?,
            intel_pcs: base("intel_pcs", &self.intel_pcs)?,
            intel_root_crl: base("intel_root_crl", &self.intel_root_crl)?,
        };
        let simulated = |table: &Simulated| {
            Ok::<_, String>(Services {
                amd_kds: base("simulated.amd_kds", &table.amd_kds)?,
                intel_pcs: base("simulated.intel_pcs", &table.intel_pcs)?,
                intel_root_crl: base("simulated.intel_root_crl", &table.intel_root_crl)?,
            })
        };
        Ok([
            Some(vendors),
            self.simulated.as_ref().map(simulated).transpose()?,
        ])
    }
}

/// Checked addresses.
#[derive(Debug, Clone)]
pub(super) struct Services {
    pub(super) amd_kds: Base,
    pub(super) intel_pcs: Base,
    pub(super) intel_root_crl: Base,
}

/// An address to which paths are appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    /// Without a slash at its end.
    pub(super) url: String,
    /// `host`, or `host:port` where the port is given.
    pub(super) host: String,
    pub(super) secure: bool,
}

fn base(name: &str, text: &str) -> Result<Base, String> {
    let refuse = |what: &str| {
        format!(
            "{name} = {text:?}: {what}: write https://HOST, or http://HOST for a mirror without TLS"
        )
    };
    if let Some(fault) = fault(text, Plain::Anybody, false) {
        return Err(refuse(fault));
    }
    let uri: Uri = text.parse().map_err(|_| refuse("not an address"))?;
    let host = uri.authority().map(|all| all.as_str().to_ascii_lowercase());
    Ok(Base {
        url: text.trim_end_matches('/').to_owned(),
        host: host.unwrap_or_default(),
        secure: uri.scheme_str() == Some("https"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_asks_the_vendors_and_nobody_about_simulated_kinds() {
        let config: Config = toml::from_str("").unwrap();
        assert_eq!(config, Config::default());
        let [vendors, simulated] = config.services().unwrap();
        assert_eq!(vendors.unwrap().amd_kds.host, "kdsintf.amd.com");
        assert!(simulated.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(toml::from_str::<Config>("amd_kd = \"\"").is_err());
        for wrong in [
            "",
            "kds",
            "ftp://kds",
            "https://",
            "https://a@kds",
            "https://kds?a=b",
            "https://kds:99999",
        ] {
            let config = Config {
                amd_kds: wrong.to_owned(),
                ..Config::default()
            };
            let error = config.services().unwrap_err();
            assert!(error.contains("amd_kds"), "{error}");
        }
    }
}
