//! The digest of init-data, with the name of its algorithm: `sha384:<hex>`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The algorithms that init-data may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// 32 bytes; the whole of it fits SNP's HOST_DATA.
    Sha256,
    /// 48 bytes; the whole of it fits TDX's MRCONFIGID.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name in the text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a digest.
    #[must_use]
    pub const fn digest_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of bytes.
    #[must_use]
    pub fn digest(self, bytes: &[u8]) -> InitDataDigest {
        let digest = match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        };
        InitDataDigest {
            algorithm: self,
            bytes: digest,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(name: &str) -> Result<Self, DigestError> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| DigestError::Algorithm(crate::shown(name)))
    }
}

/// A digest of init-data.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InitDataDigest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl InitDataDigest {
    /// A digest from its bytes; the algorithm follows from their number.
    ///
    /// # Errors
    /// When no algorithm has that many bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DigestError> {
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.digest_bytes() == bytes.len())
            .ok_or(DigestError::Length(bytes.len()))?;
        Ok(Self {
            algorithm,
            bytes: bytes.to_vec(),
        })
    }

    /// The same from lower-case or upper-case hex.
    ///
    /// # Errors
    /// When the text is not the hex of a digest.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        const LONGEST: usize = 2 * Algorithm::Sha512.digest_bytes();
        if text.len() > LONGEST {
            return Err(DigestError::Length(text.len() / 2));
        }
        Self::from_bytes(&hex::decode(text).map_err(|_| DigestError::Hex)?)
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes in hex.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl fmt::Display for InitDataDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl FromStr for InitDataDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Form)?;
        let algorithm: Algorithm = name.parse()?;
        let digest = Self::from_hex(hex)?;
        if digest.algorithm != algorithm {
            return Err(DigestError::Length(digest.bytes.len()));
        }
        Ok(digest)
    }
}

impl TryFrom<String> for InitDataDigest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<InitDataDigest> for String {
    fn from(digest: InitDataDigest) -> Self {
        digest.to_string()
    }
}

/// A text that is not a digest of init-data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon.
    #[error("a digest of init-data is written `<algorithm>:<hex>`")]
    Form,
    /// An algorithm that init-data does not have.
    #[error("unknown digest algorithm `{0}`: use sha256, sha384 or sha512")]
    Algorithm(String),
    /// Not hex.
    #[error("a digest of init-data is not in hex")]
    Hex,
    /// Not the length of the algorithm.
    #[error("a digest of init-data has {0} bytes: sha256 has 32, sha384 48, sha512 64")]
    Length(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_back_from_its_text() {
        for algorithm in Algorithm::ALL {
            let digest = algorithm.digest(b"init");
            assert_eq!(digest.to_string().parse(), Ok(digest.clone()));
            assert_eq!(InitDataDigest::from_bytes(digest.as_bytes()), Ok(digest));
        }
        // FIPS 180-4's example of "abc".
        assert_eq!(
            Algorithm::Sha256.digest(b"abc").to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_digest_of_another_length_is_refused() {
        let sha256 = Algorithm::Sha256.digest(b"x").hex();
        assert_eq!(
            format!("sha384:{sha256}").parse::<InitDataDigest>(),
            Err(DigestError::Length(32))
        );
        assert_eq!(
            "sha384:".parse::<InitDataDigest>(),
            Err(DigestError::Length(0))
        );
        assert_eq!("sha384:zz".parse::<InitDataDigest>(), Err(DigestError::Hex));
        assert_eq!(sha256.parse::<InitDataDigest>(), Err(DigestError::Form));
        assert!("md5:00".parse::<InitDataDigest>().is_err());
        assert!(InitDataDigest::from_hex(&"0".repeat(1 << 20)).is_err());
    }
}
