//! The annotation packet of Confidential Containers: private options wrapped under a 32-byte KEK that a broker keeps.
//!
//! V1 is `{"kid","wrapped_data","iv","wrap_type"}`; V2 adds `"version":"0.1.0"`, `"provider"`, `"provider_settings"`
//! and `"annotations"`. `kid` is a `kbs:///` URI. `A256GCM`: ciphertext ‖ 16-byte tag, no associated data.
//! `A256CTR` (no authentication) is opened for the sake of old images, and never written.
//! Source: guest-components, `confidential-data-hub/hub/src/image/annotation_packet`.

use aes::Aes256;
use aes::cipher::{KeyIvInit, StreamCipher};
use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ctr::Ctr128BE;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::options::OPTIONS_BYTES_MAX;
use crate::secret::{KEY_BYTES, Key, NoEntropy, fill};

/// The version that a V2 packet carries.
pub const VERSION: &str = "0.1.0";
/// The provider of a packet whose KEK a broker keeps.
pub const PROVIDER_KBS: &str = "kbs";
/// Cap on a packet's JSON, in bytes: real ones have about 600.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

const GCM: &str = "A256GCM";
const CTR: &str = "A256CTR";
const GCM_IV_BYTES: usize = 12;
const GCM_TAG_BYTES: usize = 16;
const CTR_IV_BYTES: usize = 16;

/// Why a packet cannot be read or opened.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Longer than [`PACKET_BYTES_MAX`].
    #[error("a key packet has {0} bytes, more than {PACKET_BYTES_MAX}")]
    TooLong(usize),
    /// Not a packet.
    #[error("a key packet is not valid JSON of version 1 or 2")]
    Json(#[source] serde_json::Error),
    /// A version which is not ours.
    #[error("key packet version {0:?} is not supported; encrypt the image with version {VERSION}")]
    Version(String),
    /// The KEK is not kept by a broker.
    #[error(
        "key provider {0:?} is not supported; encrypt the image with provider {PROVIDER_KBS:?}"
    )]
    Provider(String),
    /// The key id does not name a broker's resource.
    #[error("key id {0:?} does not start with kbs:///")]
    KeyId(String),
    /// A wrap type which is not ours, or none.
    #[error("wrap type {0:?} is not supported; encrypt the image with {GCM}")]
    WrapType(String),
    /// Base64 or length.
    #[error("{0} of a key packet is not valid")]
    Member(&'static str),
    /// The KEK has a wrong length.
    #[error("key {kid} has {found} bytes, but a key-encryption key has {KEY_BYTES}")]
    KekLength {
        /// Which key.
        kid: String,
        /// Its length in bytes.
        found: usize,
    },
    /// The tag does not match.
    #[error(
        "key {kid} does not open the packet: it is another key than the image was encrypted with"
    )]
    Open {
        /// Which key.
        kid: String,
    },
    /// AES-GCM refused to encrypt.
    #[error("AES-GCM cannot wrap the layer key")]
    Seal,
    /// No random bytes for the IV.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
}

/// Which JSON a packet is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The four members that every Confidential Containers release reads.
    V1,
    /// With version and provider.
    #[default]
    V2,
}

/// One wrapped key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    kid: String,
    wrapped: Vec<u8>,
    wrap: Wrap,
    format: Format,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrap {
    Gcm([u8; GCM_IV_BYTES]),
    Ctr([u8; CTR_IV_BYTES]),
}

impl Packet {
    /// Wraps `plain` under `kek`, whose resource is `kid`.
    ///
    /// # Errors
    /// A key id that is no `kbs:///` URI, a KEK that has not 32 bytes, or no random bytes.
    pub fn seal(format: Format, kid: &str, kek: &Key, plain: &[u8]) -> Result<Self, PacketError> {
        check_kid(kid)?;
        let mut iv = [0; GCM_IV_BYTES];
        fill(&mut iv)?;
        let wrapped = gcm(kid, kek)?
            .encrypt(&Nonce::from(iv), plain)
            .map_err(|_| PacketError::Seal)?;
        Ok(Self {
            kid: kid.to_owned(),
            wrapped,
            wrap: Wrap::Gcm(iv),
            format,
        })
    }

    /// Which key opens the packet: a `kbs:///` URI.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Which JSON the packet was read from or is written as.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// How the key is wrapped, by its name in the JSON.
    #[must_use]
    pub fn wrap_type(&self) -> &'static str {
        match self.wrap {
            Wrap::Gcm(_) => GCM,
            Wrap::Ctr(_) => CTR,
        }
    }

    /// Whether an altered packet is noticed when it is opened. For the others only what they wrap can tell.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        matches!(self.wrap, Wrap::Gcm(_))
    }

    /// Unwraps with `kek`.
    ///
    /// # Errors
    /// [`PacketError::KekLength`] and [`PacketError::Open`]; both name the key id.
    pub fn open(&self, kek: &Key) -> Result<Zeroizing<Vec<u8>>, PacketError> {
        match &self.wrap {
            Wrap::Gcm(iv) => gcm(&self.kid, kek)?
                .decrypt(&Nonce::from(*iv), self.wrapped.as_slice())
                .map(Zeroizing::new)
                .map_err(|_| PacketError::Open {
                    kid: self.kid.clone(),
                }),
            Wrap::Ctr(iv) => {
                let kek: &[u8; KEY_BYTES] =
                    kek.expose().try_into().map_err(|_| self.bad_length(kek))?;
                let mut plain = Zeroizing::new(self.wrapped.clone());
                Ctr128BE::<Aes256>::new(kek.into(), iv.into()).apply_keystream(&mut plain);
                Ok(plain)
            }
        }
    }

    /// Reads V1 or V2, told apart by the member `version`.
    ///
    /// # Errors
    /// See [`PacketError`]; each unsupported version, provider and wrap type is named.
    pub fn from_json(json: &[u8]) -> Result<Self, PacketError> {
        if json.len() > PACKET_BYTES_MAX {
            return Err(PacketError::TooLong(json.len()));
        }
        let wire: Wire = serde_json::from_slice(json).map_err(PacketError::Json)?;
        let format = match wire.version.as_deref() {
            None => Format::V1,
            Some(VERSION) => Format::V2,
            Some(other) => return Err(PacketError::Version(other.to_owned())),
        };
        if let Some(provider) = wire.provider.filter(|provider| provider != PROVIDER_KBS) {
            return Err(PacketError::Provider(provider));
        }
        check_kid(&wire.kid)?;
        let iv = STANDARD
            .decode(wire.iv.unwrap_or_default())
            .map_err(|_| PacketError::Member("iv"))?;
        let wrap = match wire.wrap_type.as_deref() {
            Some(GCM) => Wrap::Gcm(iv.try_into().map_err(|_| PacketError::Member("iv"))?),
            Some(CTR) => Wrap::Ctr(iv.try_into().map_err(|_| PacketError::Member("iv"))?),
            other => return Err(PacketError::WrapType(other.unwrap_or_default().to_owned())),
        };
        let wrapped = STANDARD
            .decode(&wire.wrapped_data)
            .map_err(|_| PacketError::Member("wrapped_data"))?;
        if wrapped.len() > OPTIONS_BYTES_MAX + GCM_TAG_BYTES {
            return Err(PacketError::Member("wrapped_data"));
        }
        Ok(Self {
            kid: wire.kid,
            wrapped,
            wrap,
            format,
        })
    }

    /// Writes the JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let (iv, wrap_type) = match &self.wrap {
            Wrap::Gcm(iv) => (STANDARD.encode(iv), GCM),
            Wrap::Ctr(iv) => (STANDARD.encode(iv), CTR),
        };
        let second = self.format == Format::V2;
        let wire = Wire {
            version: second.then(|| VERSION.to_owned()),
            provider: second.then(|| PROVIDER_KBS.to_owned()),
            kid: self.kid.clone(),
            wrapped_data: STANDARD.encode(&self.wrapped),
            iv: Some(iv),
            wrap_type: Some(wrap_type.to_owned()),
            provider_settings: second.then(serde_json::Map::new),
            annotations: second.then(serde_json::Map::new),
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    fn bad_length(&self, kek: &Key) -> PacketError {
        PacketError::KekLength {
            kid: self.kid.clone(),
            found: kek.expose().len(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    kid: String,
    wrapped_data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrap_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider_settings: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

fn check_kid(kid: &str) -> Result<(), PacketError> {
    let path = kid.strip_prefix("kbs:///").filter(|path| !path.is_empty());
    path.map(|_| ())
        .ok_or_else(|| PacketError::KeyId(kid.to_owned()))
}

fn gcm(kid: &str, kek: &Key) -> Result<Aes256Gcm, PacketError> {
    let found = kek.expose().len();
    Aes256Gcm::new_from_slice(kek.expose()).map_err(|_| PacketError::KekLength {
        kid: kid.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::PrivateOptions;

    /// ocicrypt-rs `data/sample_kbc_annotation.json` and the hard-coded KEK of its sample provider.
    const SAMPLE: &[u8] = include_bytes!("../tests/vectors/sample_kbc_annotation.json");
    const SAMPLE_KEK: &str = "d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea";

    #[test]
    fn the_sample_annotation_of_ocicrypt_rs_opens() {
        let packet = Packet::from_json(SAMPLE).unwrap();
        let plain = packet
            .open(&Key::new(hex::decode(SAMPLE_KEK).unwrap()))
            .unwrap();
        let options = PrivateOptions::from_json(&plain).unwrap();
        assert_eq!(
            STANDARD.encode(options.key.expose()),
            "1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs="
        );
        assert_eq!(
            STANDARD.encode(options.nonce.unwrap().0),
            "r10F9oaCu+nWFXfod3l83g=="
        );
    }

    #[test]
    fn both_formats_survive_the_way_there_and_back() {
        let kek = Key::generate().unwrap();
        for format in [Format::V1, Format::V2] {
            let packet = Packet::seal(format, "kbs:///default/key/1", &kek, b"secret").unwrap();
            let again = Packet::from_json(&packet.to_json()).unwrap();
            assert_eq!(again, packet);
            assert_eq!(again.open(&kek).unwrap().as_slice(), b"secret");
        }
    }

    #[test]
    fn another_key_is_refused_and_named() {
        let packet = Packet::seal(
            Format::V2,
            "kbs:///a/b/c",
            &Key::generate().unwrap(),
            b"secret",
        )
        .unwrap();
        let error = packet.open(&Key::generate().unwrap()).unwrap_err();
        assert!(error.to_string().contains("kbs:///a/b/c"), "{error}");
        assert!(matches!(
            packet.open(&Key::new(vec![0; 16])),
            Err(PacketError::KekLength { found: 16, .. })
        ));
    }

    #[test]
    fn what_we_do_not_support_is_named() {
        let base = r#""kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":"AAAAAAAAAAAAAAAA""#;
        let cases = [
            (format!(r#"{{{base},"wrap_type":"A128GCM"}}"#), "A128GCM"),
            (
                format!(r#"{{{base},"wrap_type":"A256GCM","version":"0.2.0"}}"#),
                "0.2.0",
            ),
            (
                format!(
                    r#"{{{base},"wrap_type":"A256GCM","version":"0.1.0","provider":"aliyun"}}"#
                ),
                "aliyun",
            ),
            (
                r#"{"kid":"file:///k","wrapped_data":"","iv":"","wrap_type":"A256GCM"}"#.to_owned(),
                "file:///k",
            ),
        ];
        for (json, name) in cases {
            let error = Packet::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
