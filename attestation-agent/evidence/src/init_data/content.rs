//! What our guest reads of init-data: `aa.toml`, `cdh.toml` and `policy.rego`, in CoCo's key layout.
//!
//! Init-data written for CoCo works here. A key that CoCo has and we do not is refused by its name,
//! unless its value asks for nothing; a key that nobody has is refused too. So no line of an owner's
//! text is passed over in silence. The URLs and certificates in here are measured: they are the
//! broker's identity.

mod limits;
mod registry;
mod sealed;
mod store;
mod wire;
mod workload_api;

pub use limits::{Devices, ImageLimits, TrustedXattrs};
pub use sealed::SealedSecrets;
pub use store::Store;
pub use workload_api::WorkloadApi;

use super::InitData;

/// The name of the attestation agent's file.
pub const AA_TOML: &str = "aa.toml";

/// The name of the data hub's file.
pub const CDH_TOML: &str = "cdh.toml";

/// The name of the owner's policy over requests.
pub const POLICY_REGO: &str = "policy.rego";

/// Extra root certificates for registries.
pub const EXTRA_ROOTS: usize = 64;

/// Rules for registries, and mirrors in each of them.
pub const REGISTRY_RULES: usize = 256;

/// What the owner decided for this pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// Where secrets come from; without one, none can be asked for.
    pub broker: Option<BrokerLocation>,
    /// How images are pulled.
    pub image: ImageSettings,
    /// Whose sealed secrets are opened.
    pub sealed: SealedSecrets,
    /// Where workloads find their guest's services.
    pub workload_api: WorkloadApi,
    /// The policy over requests, in Rego; without one, the agent's built-in policy stays.
    pub policy: Option<String>,
}

/// The broker, as the owner named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerLocation {
    /// `https://host[:port]`, or `http://` which only a development guest takes.
    pub url: String,
    /// The certificates in PEM that its TLS must chain to; public roots where absent.
    pub root_cert_pem: Option<String>,
}

/// The `[image]` section.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageSettings {
    /// Which images may run, as containers-policy.json.
    pub security_policy: Option<Source<String>>,
    /// Credentials for registries in Docker's `auths` form: a `kbs:///` URI.
    pub credentials_uri: Option<String>,
    /// Rules and mirrors of registries.
    pub registries: Option<Source<Registries>>,
    /// Where simple signatures are kept, as containers-registries.d in JSON.
    pub lookaside: Option<Source<String>>,
    /// Roots in PEM that registries may chain to besides the public ones.
    pub extra_root_certificates: Vec<String>,
    /// Layers fetched at once for one image.
    pub layers_at_once: Option<u32>,
    /// Who carries the connections to registries.
    pub proxy: PullProxy,
    /// What an image may at most be.
    pub limits: ImageLimits,
    /// Where images are kept; the guest's own choice where it is not written.
    pub store: Option<Store>,
    /// What the mirror on the host may know of.
    pub host_mirror: Option<HostMirror>,
}

/// Which blobs the host's mirror is asked for and offered. A key of ours; CoCo has no such mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostMirror {
    /// None.
    Off,
    /// Encrypted layers.
    Encrypted,
    /// All.
    All,
}

/// The proxies of `[image.image_pull_proxy]`, as they are written; empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullProxy {
    /// For TLS.
    pub https: String,
    /// For plain HTTP.
    pub http: String,
    /// Hosts, domains and networks that are reached without one.
    pub exceptions: String,
}

/// A document that stands in init-data, or that the broker keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source<T> {
    /// In init-data itself.
    Inline(T),
    /// At the broker, by its `kbs:///` URI.
    Broker(String),
}

/// Rules for registries: the part of containers-registries.conf that CoCo has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registries {
    /// Where a name without a registry is looked for.
    pub unqualified_search: Vec<String>,
    /// The rules.
    pub rules: Vec<RegistryRule>,
}

impl Registries {
    /// Reads the document that a `registry_configuration_uri` names.
    ///
    /// # Errors
    /// When it is not TOML, has an unknown key, a rule without a name, or too many rules.
    pub fn parse(text: &str) -> Result<Self, ContentError> {
        registry::parse("registry configuration", text)
    }
}

/// What to do with images whose name begins with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryRule {
    /// `host[:port][/path]`, or `*.host`.
    pub prefix: String,
    /// What takes the prefix's place, where it is to be replaced.
    pub location: Option<String>,
    /// Plain HTTP, or TLS with any certificate.
    pub insecure: bool,
    /// Never pulled.
    pub blocked: bool,
    /// No mirror is asked for a tag.
    pub mirror_by_digest_only: bool,
    /// Places to try first, in order.
    pub mirrors: Vec<Mirror>,
}

/// A place that has the same images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// `host[:port][/path]`.
    pub location: String,
    /// Plain HTTP, or TLS with any certificate.
    pub insecure: bool,
    /// What it is asked for.
    pub pull: PullFromMirror,
}

/// What a mirror is asked for, by its name in containers-registries.conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullFromMirror {
    /// Everything.
    #[default]
    #[serde(alias = "")]
    All,
    /// What has a digest.
    DigestOnly,
    /// Images that are named by a tag.
    TagOnly,
}

impl TryFrom<&InitData> for Content {
    type Error = ContentError;

    fn try_from(init_data: &InitData) -> Result<Self, ContentError> {
        let mut content = Self::default();
        let mut aa_broker = None;
        let mut cdh_broker = None;
        for (name, text) in init_data.data() {
            match name.as_str() {
                AA_TOML => aa_broker = wire::aa(text)?,
                CDH_TOML => {
                    let cdh = wire::cdh(text)?;
                    (cdh_broker, content.image) = (cdh.broker, cdh.image);
                    (content.sealed, content.workload_api) = (cdh.sealed, cdh.workload_api);
                }
                POLICY_REGO => content.policy = Some(text.clone()),
                _ => return Err(ContentError::File(crate::shown(name))),
            }
        }
        content.broker = match (aa_broker, cdh_broker) {
            (Some(aa), Some(cdh)) => Some(same_broker(aa, cdh)?),
            (one, other) => one.or(other),
        };
        Ok(content)
    }
}

/// CoCo writes the broker twice. One guest has one broker, so both must name the same.
fn same_broker(aa: BrokerLocation, cdh: BrokerLocation) -> Result<BrokerLocation, ContentError> {
    if aa.url != cdh.url {
        return Err(ContentError::BrokerUrl {
            aa: crate::shown(&aa.url),
            cdh: crate::shown(&cdh.url),
        });
    }
    let root_cert_pem = match (aa.root_cert_pem, cdh.root_cert_pem) {
        (Some(aa), Some(cdh)) if aa.trim() != cdh.trim() => return Err(ContentError::BrokerCert),
        (one, other) => one.or(other),
    };
    Ok(BrokerLocation {
        url: aa.url,
        root_cert_pem,
    })
}

/// Init-data that is well formed, and that this guest cannot obey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// `[data]` names a file that the guest does not read.
    #[error(
        "init-data has an unknown file `{0}` in `[data]`: use {AA_TOML}, {CDH_TOML}, {POLICY_REGO}"
    )]
    File(String),
    /// A file is not TOML, or has a key that nobody knows.
    #[error("{file} of init-data: {cause}")]
    Toml {
        /// The file.
        file: &'static str,
        /// What the reader says.
        cause: String,
    },
    /// A key of CoCo that is not supported.
    #[error("{file} of init-data: `{key}` is not supported: {fix}")]
    Unsupported {
        /// The file.
        file: &'static str,
        /// The key with its section.
        key: &'static str,
        /// What to write instead.
        fix: &'static str,
    },
    /// A value that its key does not take.
    #[error("{file} of init-data: `{key}` has the value `{value}`: {fix}")]
    Value {
        /// The file.
        file: &'static str,
        /// The key with its section.
        key: &'static str,
        /// The value, cut to a printable length.
        value: String,
        /// What to write instead.
        fix: &'static str,
    },
    /// Too many of something.
    #[error("{file} of init-data: `{key}` has {found} entries: at most {cap}")]
    TooMany {
        /// The file.
        file: &'static str,
        /// The key with its section.
        key: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        cap: usize,
    },
    /// The two files name different brokers.
    #[error(
        "init-data names two brokers, `{aa}` in {AA_TOML} and `{cdh}` in {CDH_TOML}: write the same"
    )]
    BrokerUrl {
        /// The attestation agent's.
        aa: String,
        /// The data hub's.
        cdh: String,
    },
    /// The two files pin different certificates.
    #[error(
        "init-data pins different certificates of the broker in {AA_TOML} and {CDH_TOML}: write the same"
    )]
    BrokerCert,
}

#[cfg(test)]
mod tests;
