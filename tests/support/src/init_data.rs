//! The owner's init-data for a test pod: which broker, which registry, which policy.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::broker::Broker;
use crate::registry::Registry;

/// The annotation that carries it, Kata's name.
pub const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// Allows every request: what the tests of other things use.
pub const ALLOW_ALL: &str = include_str!("../../../policies/agent/allow_all.rego");

/// containers-policy.json that takes every image: without one a confidential guest takes none.
const ANY_IMAGE: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

const REVISION: &str = "the pod's owner, revision ";

/// The init-data's TOML text, whose digest the launch is bound to.
#[derive(Debug, Clone)]
pub struct InitData {
    /// The exact text.
    pub toml: String,
}

impl InitData {
    /// Points the guest at `broker` and `registry` and gives it `policy` (Rego).
    #[must_use]
    pub fn new(broker: Option<&Broker>, registry: Option<&Registry>, policy: &str) -> Self {
        let mut aa = String::new();
        let mut cdh = String::new();
        if let Some(broker) = broker {
            let _ = write!(
                aa,
                "[token_configs.kbs]\nurl = \"{0}\"\ncert = \"\"\"\n{1}\"\"\"\n",
                broker.url(),
                broker.root_pem()
            );
            let _ = write!(
                cdh,
                "[kbc]\nname = \"cc_kbc\"\nurl = \"{0}\"\nkbs_cert = \"\"\"\n{1}\"\"\"\n\n",
                broker.url(),
                broker.root_pem()
            );
        }
        if let Some(registry) = registry {
            let _ = write!(
                cdh,
                "[image]\nimage_security_policy = '{ANY_IMAGE}'\n\
                 extra_root_certificates = [\"\"\"\n{}\"\"\"]\n",
                registry.cert_pem()
            );
        }
        let mut toml =
            format!("# {REVISION}1\nversion = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n");
        for (name, text) in [
            ("aa.toml", &aa),
            ("cdh.toml", &cdh),
            ("policy.rego", &policy.to_owned()),
        ] {
            if !text.is_empty() {
                // A literal string, in which the inner quotes need no escape.
                let _ = write!(toml, "\"{name}\" = '''\n{text}'''\n");
            }
        }
        Self { toml }
    }

    /// The same with the owner's word on where images are kept.
    #[must_use]
    pub fn with_store(&self, store: &str) -> Self {
        let keyed = format!("[image]\nstore = \"{store}\"\n");
        Self {
            toml: self.toml.replacen("[image]\n", &keyed, 1),
        }
    }

    /// The same with one byte changed, in a comment: nothing but the digest differs.
    #[must_use]
    pub fn with_one_byte_changed(&self) -> Self {
        let (one, two) = (format!("# {REVISION}1\n"), format!("# {REVISION}2\n"));
        Self {
            toml: self.toml.replacen(&one, &two, 1),
        }
    }

    /// The annotation's value: base64 of gzip of the text.
    ///
    /// # Errors
    /// When compressing fails.
    pub fn annotation(&self) -> Result<String> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(self.toml.as_bytes())?;
        Ok(STANDARD.encode(gzip.finish()?))
    }

    /// `sha256` of the text, in hex.
    #[must_use]
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.toml.as_bytes()))
    }
}
