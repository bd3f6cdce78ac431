//! Init-data 0.1.0: what the owner gives to a guest, bound to it at launch by a digest.
//!
//! A TOML text with `version`, `algorithm` and a `[data]` map from file name to file text. The digest
//! is over the exact bytes; no canonical form exists, so the text is kept as it came. On its way to
//! the guest it is an [`annotation`] of the pod and then a [`disk`]; what our guest reads of it is
//! [`content`].
//!
//! Format: <https://github.com/confidential-containers/trustee/blob/main/kbs/docs/initdata.md>.

pub mod annotation;
mod binding;
pub mod content;
mod digest;
pub mod disk;
mod gzip;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use binding::{Binding, HOST_DATA_BYTES, MRCONFIGID_BYTES, host_data, mrconfigid};
pub use content::{Content, ContentError};
pub use digest::{Algorithm, DigestError, InitDataDigest};

/// The one version that exists.
pub const VERSION: &str = "0.1.0";

/// Bytes of the text. What fits here also fits the broker's cap on it.
pub const TEXT_BYTES: usize = 1024 * 1024;

/// Bytes of the compressed text.
pub const COMPRESSED_BYTES: usize = 1024 * 1024;

/// Entries of `[data]`.
pub const ENTRIES: usize = 64;

/// Init-data that was parsed, with its exact text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitData {
    text: String,
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
}

impl InitData {
    /// Reads the TOML text.
    ///
    /// # Errors
    /// When it is longer than [`TEXT_BYTES`], is not UTF-8 or TOML of the format's shape, or has
    /// another version, an unknown algorithm or more than [`ENTRIES`] entries.
    pub fn parse(bytes: &[u8]) -> Result<Self, InitDataError> {
        if bytes.len() > TEXT_BYTES {
            return Err(InitDataError::TextLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| InitDataError::Utf8)?;
        let wire: Wire = toml::from_str(text)
            .map_err(|error| InitDataError::Toml(error.message().to_owned()))?;
        if wire.version != VERSION {
            return Err(InitDataError::Version(crate::shown(&wire.version)));
        }
        if wire.data.len() > ENTRIES {
            return Err(InitDataError::Entries(wire.data.len()));
        }
        Ok(Self {
            text: text.to_owned(),
            algorithm: wire.algorithm.parse()?,
            data: wire.data,
        })
    }

    /// Writes a text from its parts.
    ///
    /// # Errors
    /// When the parts are over a cap.
    pub fn build(
        algorithm: Algorithm,
        data: BTreeMap<String, String>,
    ) -> Result<Self, InitDataError> {
        let wire = Wire {
            version: VERSION.to_owned(),
            algorithm: algorithm.name().to_owned(),
            data,
        };
        let text =
            toml::to_string(&wire).map_err(|error| InitDataError::Toml(error.to_string()))?;
        Self::parse(text.as_bytes())
    }

    /// The exact text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The algorithm of the digest, which the text itself names.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest over the exact text: what a launch binds.
    #[must_use]
    pub fn digest(&self) -> InitDataDigest {
        self.algorithm.digest(self.text.as_bytes())
    }

    /// The entries of `[data]`.
    #[must_use]
    pub fn data(&self) -> &BTreeMap<String, String> {
        &self.data
    }

    /// What our guest reads of it, checked.
    ///
    /// # Errors
    /// When an entry or a key in it is unknown, not supported, or contradicts another one.
    pub fn content(&self) -> Result<Content, ContentError> {
        Content::try_from(self)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: String,
    algorithm: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Bytes that are not init-data, in any of its forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitDataError {
    /// The text is over its cap.
    #[error("init-data has {0} bytes: at most {TEXT_BYTES}")]
    TextLong(usize),
    /// The text is not UTF-8.
    #[error("init-data is not UTF-8 text")]
    Utf8,
    /// The text is not TOML, or has a member that the format does not have.
    #[error("init-data is not TOML with `version`, `algorithm` and `[data]`: {0}")]
    Toml(String),
    /// Another version of the format.
    #[error("init-data has version `{0}`: write `version = \"{VERSION}\"`")]
    Version(String),
    /// Too many entries.
    #[error("init-data has {0} entries in `[data]`: at most {ENTRIES}")]
    Entries(usize),
    /// The algorithm is unknown.
    #[error("init-data: {0}")]
    Algorithm(#[from] DigestError),
    /// The annotation is not base64.
    #[error("the init-data annotation is not base64 of gzip of the TOML text")]
    Base64,
    /// The compressed form is over its cap.
    #[error("compressed init-data has {0} bytes: at most {COMPRESSED_BYTES}")]
    CompressedLong(u64),
    /// The text is over its cap once decompressed.
    #[error("init-data has more than {TEXT_BYTES} bytes once decompressed")]
    Bomb,
    /// The compressed form is broken.
    #[error("init-data is not gzip: {0}")]
    Gzip(String),
    /// The disk does not open with the magic.
    #[error("the disk is not an init-data disk: it does not begin with `initdata`")]
    Magic,
    /// The disk ends before what its header promises, or cannot be read.
    #[error("read the init-data disk: {0}")]
    Disk(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"policy.rego\" = '''\npackage agent_policy\n'''\n";

    #[test]
    fn the_digest_is_over_the_exact_bytes() {
        let data = InitData::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(data.digest(), Algorithm::Sha384.digest(TEXT.as_bytes()));
        assert_eq!(data.data()["policy.rego"], "package agent_policy\n");
        let spaced = format!("{TEXT}\n");
        let other = InitData::parse(spaced.as_bytes()).unwrap();
        assert_eq!(other.data(), data.data());
        assert_ne!(other.digest(), data.digest());
    }

    #[test]
    fn what_is_built_is_read_back() {
        let entries = BTreeMap::from([
            ("aa.toml".to_owned(), "x = '''a'''\n\"\"\"".to_owned()),
            ("policy.rego".to_owned(), "\u{7f}\r\n\t".to_owned()),
        ]);
        let built = InitData::build(Algorithm::Sha512, entries.clone()).unwrap();
        let parsed = InitData::parse(built.text().as_bytes()).unwrap();
        assert_eq!(parsed, built);
        assert_eq!(parsed.data(), &entries);
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let error = |text: &str| InitData::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(
            error("version = \"0.2.0\"\nalgorithm = \"sha384\""),
            InitDataError::Version(version) if version == "0.2.0"
        ));
        assert!(matches!(
            error("version = \"0.1.0\"\nalgorithm = \"md5\""),
            InitDataError::Algorithm(_)
        ));
        let unknown = error("version = \"0.1.0\"\nalgorithm = \"sha384\"\nextra = 1");
        assert!(unknown.to_string().contains("extra"), "{unknown}");
        assert!(matches!(
            error("algorithm = \"sha384\""),
            InitDataError::Toml(_)
        ));
        assert!(matches!(InitData::parse(&[0xff]), Err(InitDataError::Utf8)));
        assert!(matches!(
            InitData::parse(&vec![b' '; TEXT_BYTES + 1]),
            Err(InitDataError::TextLong(_))
        ));
        let many = (0..=ENTRIES)
            .map(|n| (n.to_string(), String::new()))
            .collect();
        assert!(matches!(
            InitData::build(Algorithm::Sha256, many),
            Err(InitDataError::Entries(_))
        ));
    }
}
