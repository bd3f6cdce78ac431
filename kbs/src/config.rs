//! The broker's configuration: one TOML file, every key known, relative paths from its own directory.

pub(crate) mod address;
mod admin;
mod operation;
mod reference;
mod suggestion;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use evidence::{Device, Tee};
use serde::{Deserialize, Serialize};

pub use reference::Reference;

use crate::{collateral, file};

pub use admin::{Admin, Issuer, Role};
pub use operation::{Format, Limits, Log, Telemetry};

const LONGEST_TOKEN_SECONDS: u32 = 24 * 3600;
/// A guest answers within seconds.
const LONGEST_CHALLENGE_SECONDS: u32 = 15 * 60;
/// Bytes of the file.
const CONFIG_BYTES: usize = 1024 * 1024;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where to serve metrics, in plain HTTP: a port of its own for the operator's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Seconds between the first word that it stops, on `/readyz`, and the end of its listening.
    #[serde(default = "default_drain")]
    pub drain_seconds: u32,
    /// The server's certificate. Without this table the broker serves plain HTTP, which needs
    /// `insecure_http = true`.
    pub tls: Option<Tls>,
    /// Serve plain HTTP: only behind something that ends TLS on the same machine.
    #[serde(default)]
    pub insecure_http: bool,
    /// Where resources, policies and the record are kept.
    pub store: Store,
    /// How long the record is kept.
    #[serde(default)]
    pub record: Record,
    /// How tokens are signed.
    pub token: Token,
    /// Which evidence is accepted.
    #[serde(default)]
    pub attestation: Attestation,
    /// Whose reference values are taken.
    #[serde(default)]
    pub reference: Reference,
    /// Who administers.
    pub admin: Admin,
    /// How often one client may ask.
    #[serde(default)]
    pub limits: Limits,
    /// How it logs.
    #[serde(default)]
    pub log: Log,
    /// Where traces go.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Where the vendors' certificates and lists come from.
    #[serde(default)]
    pub collateral: collateral::Config,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain in PEM, leaf first.
    pub certificate: PathBuf,
    /// The leaf's private key in PEM.
    pub key: PathBuf,
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The SQLite file; it is made when absent. Either this or `url_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<PathBuf>,
    /// A file with the `postgres://` address of a server that several brokers share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// The master keys, one a line and the newest last. Either this or `key_env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The variable of the environment that holds the master keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
}

/// `[record]`: how long decisions and administration are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Days for which an entry is kept.
    pub days: u32,
    /// Refusals, and attestations that affirm nothing, that are kept; beyond it the oldest go. Releases and
    /// administration go by `days` alone.
    pub rows: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            days: 365,
            rows: 1_000_000,
        }
    }
}

/// `[token]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// A P-256 private key in PKCS#8 PEM.
    pub signing_key: PathBuf,
    /// `iss` of the token.
    #[serde(default = "default_issuer")]
    pub issuer: String,
    /// Seconds for which a token holds.
    #[serde(default = "five_minutes")]
    pub lifetime_seconds: u32,
}

/// `[attestation]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// The kinds of evidence, by name. `sample` proves nothing: it is for development.
    #[serde(default)]
    pub accept: BTreeSet<Tee>,
    /// The devices beside the CPU whose evidence is taken. `sampledevice` proves nothing.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub accept_devices: BTreeSet<Device>,
    /// Seconds for which a challenge holds.
    #[serde(default = "five_minutes")]
    pub challenge_seconds: u32,
    /// A key file like the store's, with one key or several: the newest seals, and all of them open.
    /// Brokers that share it take each other's challenges; without one, a challenge ends with the
    /// process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge_key: Option<PathBuf>,
    /// The generation that reports of version 2 are taken to be of, since they do not name theirs:
    /// `milan` where all hosts are. Without it such reports are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snp_version_2: Option<OldGeneration>,
    /// The roots of simulated evidence.
    #[serde(default, skip_serializing_if = "Development::is_none")]
    pub development: Development,
}

/// A generation with firmware that writes reports of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OldGeneration {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004.
    Genoa,
}

/// `[attestation.development]`: who signs simulated evidence. Whoever has its keys can make evidence
/// that says anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Development {
    /// ARK, ASK and ASVK in PEM, for `sim-snp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snp_root: Option<PathBuf>,
    /// The root in PEM, for `sim-tdx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tdx_root: Option<PathBuf>,
    /// What these roots signed beside evidence, in JSON: lists of revoked keys, TCB info, QE identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collateral: Option<PathBuf>,
}

impl Development {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Attestation {
    fn default() -> Self {
        Self {
            accept: BTreeSet::new(),
            accept_devices: BTreeSet::new(),
            challenge_seconds: five_minutes(),
            challenge_key: None,
            snp_version_2: None,
            development: Development::default(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = file::read_text(path, CONFIG_BYTES).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            detail: error.to_string(),
            meant: suggestion::suggestion(error.message()),
        })?;
        config.check()?;
        config.resolve(path.parent().unwrap_or(Path::new(".")));
        Ok(config)
    }

    /// How long a challenge holds.
    #[must_use]
    pub fn challenge_lifetime(&self) -> Duration {
        Duration::from_secs(self.attestation.challenge_seconds.into())
    }

    /// How long a token holds.
    #[must_use]
    pub fn token_lifetime(&self) -> Duration {
        Duration::from_secs(self.token.lifetime_seconds.into())
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !(1..=LONGEST_TOKEN_SECONDS).contains(&self.token.lifetime_seconds) {
            return Err(ConfigError::Check(
                "token.lifetime_seconds must be 1 to 86400",
            ));
        }
        if !(1..=LONGEST_CHALLENGE_SECONDS).contains(&self.attestation.challenge_seconds) {
            return Err(ConfigError::Check(
                "attestation.challenge_seconds must be 1 to 900",
            ));
        }
        let monitor = self.metrics_listen;
        if monitor.is_some_and(|monitor| address::collide(self.listen, monitor)) {
            return Err(ConfigError::Check(
                "metrics_listen is the address of `listen`, or within it: give it a port of its own",
            ));
        }
        if self.drain_seconds > 600 {
            return Err(ConfigError::Check("drain_seconds must be at most 600"));
        }
        if self.limits.requests_per_second > 0 && self.limits.burst == 0 {
            return Err(ConfigError::Check("[limits] burst must be 1 or more"));
        }
        self.telemetry.check()?;
        if self.tls.is_some() == self.insecure_http {
            return Err(ConfigError::Check(
                "give either a [tls] table, or `insecure_http = true` where TLS ends elsewhere",
            ));
        }
        if self.store.database.is_some() == self.store.url_file.is_some() {
            return Err(ConfigError::Check(
                "[store] needs either `database` (SQLite) or `url_file` (PostgreSQL)",
            ));
        }
        if self.store.key.is_some() == self.store.key_env.is_some() {
            return Err(ConfigError::Check(
                "[store] needs its master keys: either `key` (a file) or `key_env` (a variable)",
            ));
        }
        if self.record.days == 0 || self.record.rows == 0 {
            return Err(ConfigError::Check(
                "[record] days and rows must be 1 or more",
            ));
        }
        self.admin.check()?;
        let Attestation {
            accept,
            development,
            ..
        } = &self.attestation;
        if accept.contains(&Tee::SimSnp) != development.snp_root.is_some()
            || accept.contains(&Tee::SimTdx) != development.tdx_root.is_some()
        {
            return Err(ConfigError::Check(
                "attestation.accept lists `sim-snp` or `sim-tdx` exactly where \
                 attestation.development has its `snp_root` or `tdx_root`",
            ));
        }
        Ok(())
    }

    fn resolve(&mut self, base: &Path) {
        let mut paths = vec![&mut self.token.signing_key];
        paths.extend(self.store.database.iter_mut());
        paths.extend(self.store.url_file.iter_mut());
        paths.extend(self.store.key.iter_mut());
        paths.extend(
            self.tls
                .iter_mut()
                .flat_map(|t| [&mut t.certificate, &mut t.key]),
        );
        paths.extend(self.attestation.challenge_key.iter_mut());
        paths.extend(self.admin.paths());
        paths.extend(self.telemetry.ca.iter_mut());
        let development = &mut self.attestation.development;
        paths.extend(development.snp_root.iter_mut());
        paths.extend(development.tdx_root.iter_mut());
        paths.extend(development.collateral.iter_mut());
        paths.extend(self.reference.signers.iter_mut());
        for path in paths {
            *path = base.join(&*path);
        }
        self.collateral.resolve(base);
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, or with a key that is unknown or of another type.
    #[error("{path}: {detail}{hint}", path = path.display(), hint = hint(meant.as_deref()))]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        detail: String,
        /// The nearest word that is known.
        meant: Option<String>,
    },
    /// The keys do not go together.
    #[error("configuration: {0}")]
    Check(&'static str),
    /// An address that could never be asked.
    #[error("configuration: [telemetry] otlp_endpoint: {0}, as in http://127.0.0.1:4318")]
    Collector(&'static str),
    /// `[admin]` does not go together.
    #[error("configuration: [admin] {0}")]
    Admin(String),
}

fn hint(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |word| format!("did you mean `{word}`?"))
}

fn default_issuer() -> String {
    "cloister-kbs".to_owned()
}

fn default_drain() -> u32 {
    2
}

fn five_minutes() -> u32 {
    300
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = r#"
        listen = "127.0.0.1:0"
        [tls]
        certificate = "server.pem"
        key = "/abs/server.key"
        [store]
        database = "kbs.sqlite"
        key = "store.key"
        [token]
        signing_key = "token.key"
        [admin]
        public_keys = ["admin.pub"]
    "#;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kbs.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path).map(|mut config| {
            let key = config.store.key.unwrap();
            config.store.key = Some(key.strip_prefix(dir.path()).unwrap().to_owned());
            config
        })
    }

    #[test]
    fn defaults_accept_no_evidence_and_paths_are_relative_to_the_file() {
        let config = read(GOOD).unwrap();
        assert!(config.attestation.accept.is_empty());
        assert_eq!(config.store.key.as_deref(), Some(Path::new("store.key")));
        assert_eq!(config.tls.unwrap().key, Path::new("/abs/server.key"));
        assert_eq!(config.token.lifetime_seconds, 300);
    }

    #[test]
    fn mistakes_are_named() {
        for (change, word) in [
            ("listne = 1\n", "did you mean `listen`?"),
            ("insecure_http = true\n", "either"),
        ] {
            let error = read(&format!("{change}{GOOD}")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        for (from, to, word) in [
            ("[\"admin.pub\"]", "[]", "anonymous"),
            ("[token]", "url_file = \"u\"\n[token]", "either `database`"),
            ("[token]", "key_env = \"K\"\n[token]", "either `key`"),
            ("[token]", "[record]\ndays = 0\n[token]", "[record]"),
            (
                "[store]",
                "[store]\ndatabas = \"x\"",
                "did you mean `database`?",
            ),
            (
                "[admin]",
                "[[admin.role]]\nname = \"r\"\nallow = [\"record:raed\"]\n[admin]",
                "did you mean `record:read`?",
            ),
            (
                "[admin]",
                "[[admin.role]]\nname = \"admin\"\nallow = []\n[admin]",
                "given twice",
            ),
            (
                "[admin]",
                "[[admin.role]]\nname = \"r\"\nallow = [\"key:read\"]\nresource_prefix = \"a\"\n[admin]",
                "does not narrow `key:read`",
            ),
            (
                "[admin]",
                "[[admin.issuer]]\nissuer = \"i\"\naudience = \"a\"\njwks_uri = \"u\"\njwks_file = \"f\"\n[admin]",
                "or neither",
            ),
            ("[admin]", "lifetime_seconds = 0\n[admin]", "lifetime"),
            (
                "[admin]",
                "[telemetry]\notlp_endpoint = \"http://\"\n[admin]",
                "otlp_endpoint",
            ),
            (
                "[admin]",
                "[[admin.issuer]]\nissuer = \"http://a.example\"\naudience = \"a\"\n[admin]",
                "https://",
            ),
            (
                "[admin]",
                "[[admin.issuer]]\nissuer = \"i\"\naudience = \"a\"\njwks_uri = \"u\"\n[admin]",
                "jwks_uri",
            ),
            (
                "listen = \"127.0.0.1:0\"",
                "listen = \"127.0.0.1:7\"\nmetrics_listen = \"0.0.0.0:7\"",
                "a port of its own",
            ),
            (
                "[admin]",
                "[attestation]\naccept = [\"sim-snp\"]\n[admin]",
                "snp_root",
            ),
            (
                "[admin]",
                "[attestation]\naccept = [\"sampel\"]\n[admin]",
                "sampel",
            ),
        ] {
            let error = read(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
