//! What a policy needs and does not hold itself: keys and certificates, by a path or at the broker.
//!
//! Everything is fetched before anything is judged, so that a judgement never waits and never fails half way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Cap on one value, in bytes: a ring of many keys.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Cap on the values that a policy names.
pub(super) const VALUES_MAX: usize = 256;

/// Where a value of a policy is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// At the broker: a `kbs:///` URI.
    Broker(String),
    /// In a file, by its absolute path.
    File(PathBuf),
}

impl Location {
    /// Reads what stands in a `…Path` of a policy.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("kbs:///") {
            return Ok(Self::Broker(text.to_owned()));
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self::File(PathBuf::from(path)));
        }
        Err(format!(
            "{text:?} is neither an absolute path nor a kbs:/// URI"
        ))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(uri) => formatter.write_str(uri),
            Self::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// Why a value could not be had; in the words, and of the type, of the one who holds it.
pub type ValueError = Box<dyn std::error::Error + Send + Sync>;

/// A holder of values: the guest's client of a broker, or the files of a machine.
#[async_trait]
pub trait ValueSource: Send + Sync {
    /// Gives the value at `location`. Asked once for each location of a policy.
    ///
    /// # Errors
    /// Whatever kept it from being read.
    async fn value(&self, location: &Location) -> Result<Vec<u8>, ValueError>;
}

/// Values in files, for where there is no broker.
#[derive(Debug, Clone, Copy)]
pub struct Files;

#[async_trait]
impl ValueSource for Files {
    async fn value(&self, location: &Location) -> Result<Vec<u8>, ValueError> {
        use tokio::io::AsyncReadExt;
        let Location::File(path) = location else {
            return Err("there is no broker to fetch it from".into());
        };
        let file = tokio::fs::File::open(path).await?;
        let mut bytes = Vec::new();
        file.take(VALUE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .await?;
        Ok(bytes)
    }
}

/// A value, or where it is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Inline(Vec<u8>),
    At(Location),
}

impl Value {
    pub(super) fn at(text: &str) -> Result<Self, String> {
        Location::parse(text).map(Self::At)
    }

    /// Base64, as containers/image has it. PEM is taken as it is too, as CoCo's guests do: it is no base64.
    pub(super) fn inline(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with("-----BEGIN ") {
            return Ok(Self::Inline(text.as_bytes().to_vec()));
        }
        let bytes = STANDARD.decode(text.trim().replace(['\n', '\r'], ""));
        bytes
            .map(Self::Inline)
            .map_err(|error| format!("inline data is not base64: {error}"))
    }
}

/// The values that have been fetched.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<Location, Vec<u8>>);

impl Values {
    /// Fetches each of `wanted` once.
    pub(super) async fn fetch(
        wanted: BTreeSet<Location>,
        source: &dyn ValueSource,
    ) -> Result<Self, super::PolicyError> {
        let mut values = BTreeMap::new();
        for location in wanted {
            let bytes = match source.value(&location).await {
                Ok(bytes) if bytes.len() > VALUE_BYTES_MAX => {
                    Err(format!("it has more than {VALUE_BYTES_MAX} bytes").into())
                }
                other => other,
            };
            match bytes {
                Ok(bytes) => values.insert(location, bytes),
                Err(source) => return Err(super::PolicyError::Value { location, source }),
            };
        }
        Ok(Self(values))
    }

    pub(super) fn of<'a>(&'a self, value: &'a Value) -> Result<&'a [u8], super::PolicyError> {
        match value {
            Value::Inline(bytes) => Ok(bytes),
            Value::At(location) => {
                self.0
                    .get(location)
                    .map(Vec::as_slice)
                    .ok_or_else(|| super::PolicyError::Value {
                        location: location.clone(),
                        source: "nobody was asked for it".into(),
                    })
            }
        }
    }
}
