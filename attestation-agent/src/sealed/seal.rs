//! The owner's side: signs the way to a secret, or a secret that it encrypts.

use aes_gcm::{Aes256Gcm, KeyInit, aead::Aead};
use aes_kw::KwAes256;
use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use kbs_protocol::{ResourceUri, Secret, limit::RESOURCE_BYTES};
use p256::{
    SecretKey,
    ecdsa::{Signature, SigningKey, signature::Signer},
    elliptic_curve::{Generate, sec1::ToSec1Point},
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::{
    PREFIX, SealedError, Terms,
    jwk::COORDINATE_BYTES,
    jws::ES256,
    payload::{GCM, GCM_IV_BYTES, KBS, KEY_BYTES, VERSION, WRAPPED_BYTES},
    shown,
};

/// The key with which an owner signs, as a private JWK on the owner's disk.
pub struct SealKey(SecretKey);

#[derive(Serialize, Deserialize)]
struct PrivateJwk {
    kty: String,
    crv: String,
    alg: String,
    x: String,
    y: String,
    d: String,
}

impl Drop for PrivateJwk {
    fn drop(&mut self) {
        self.d.zeroize();
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey").finish_non_exhaustive()
    }
}

impl SealKey {
    /// A new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(SecretKey::generate_from_rng(&mut rand::rng()))
    }

    /// Reads a private JWK.
    ///
    /// # Errors
    /// It is none of P-256.
    pub fn from_jwk(json: &[u8]) -> Result<Self, SealedError> {
        let bad = |cause| SealedError::Key {
            kid: "of the owner".to_owned(),
            cause,
        };
        let jwk: PrivateJwk =
            serde_json::from_slice(json).map_err(|_| bad("not a private JWK with alg ES256"))?;
        if (jwk.kty.as_str(), jwk.crv.as_str(), jwk.alg.as_str()) != ("EC", "P-256", ES256) {
            return Err(bad("not of `EC`, `P-256` and `ES256`"));
        }
        let d = BASE64_URL_SAFE_NO_PAD.decode(&jwk.d).map(Zeroizing::new);
        let d = d.map_err(|_| bad("`d` is not base64url"))?;
        SecretKey::from_slice(&d)
            .map(Self)
            .map_err(|_| bad("`d` is no scalar of the curve"))
    }

    /// The private JWK, for the owner's disk.
    #[must_use]
    pub fn to_jwk(&self) -> Zeroizing<String> {
        let (x, y) = self.coordinates();
        let d = Zeroizing::new(self.0.to_bytes());
        let jwk = PrivateJwk {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            alg: ES256.to_owned(),
            x,
            y,
            d: BASE64_URL_SAFE_NO_PAD.encode(d.as_slice()),
        };
        Zeroizing::new(serde_json::to_string(&jwk).unwrap_or_default())
    }

    /// The public JWK, for the broker or init-data.
    #[must_use]
    pub fn public_jwk(&self) -> String {
        let (x, y) = self.coordinates();
        json!({"kty": "EC", "crv": "P-256", "alg": ES256, "x": x, "y": y}).to_string()
    }

    fn coordinates(&self) -> (String, String) {
        let point = self.0.public_key().to_sec1_point(false);
        let (x, y) = point.as_bytes()[1..].split_at(COORDINATE_BYTES);
        let text = |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        (text(x), text(y))
    }
}

/// Seals with one key, under the name by which guests find its public half.
#[derive(Debug)]
pub struct Sealer {
    key: SigningKey,
    kid: String,
}

impl Sealer {
    /// A sealer whose public key guests find as `kid`: a `kbs:///` URI, or a name of init-data.
    #[must_use]
    pub fn new(key: &SealKey, kid: &str) -> Self {
        Self {
            key: SigningKey::from(&key.0),
            kid: kid.to_owned(),
        }
    }

    /// A secret that stays at the broker.
    #[must_use]
    pub fn vault(&self, resource: &ResourceUri, terms: &Terms) -> String {
        self.sign(&json!({
            "version": VERSION,
            "type": "vault",
            "name": resource.to_string(),
            "provider": KBS,
            "provider_settings": {},
            "annotations": terms.to_annotations(),
        }))
    }

    /// A secret that travels, under a key that the broker's `kek` wraps.
    ///
    /// # Errors
    /// The secret is larger than a resource may be, or `kek` has not 32 bytes.
    pub fn envelope(
        &self,
        secret: &Secret,
        key_id: &ResourceUri,
        kek: &Secret,
        terms: &Terms,
    ) -> Result<String, SealedError> {
        if secret.expose().len() > RESOURCE_BYTES {
            return Err(SealedError::TooLarge);
        }
        let kek: &[u8; KEY_BYTES] =
            kek.expose()
                .try_into()
                .map_err(|_| SealedError::Unsupported {
                    member: "key",
                    found: shown(&key_id.to_string()),
                    fix: "a key of 32 bytes",
                })?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let mut iv = [0; GCM_IV_BYTES];
        rand::rng().fill_bytes(&mut *key);
        rand::rng().fill_bytes(&mut iv);
        let mut wrapped = [0; WRAPPED_BYTES];
        KwAes256::new(kek.into())
            .wrap_key(&*key, &mut wrapped)
            .map_err(|_| SealedError::Open("key"))?;
        let data = Aes256Gcm::new((&*key).into())
            .encrypt((&iv).into(), secret.expose())
            .map_err(|_| SealedError::Open("secret"))?;
        Ok(self.sign(&json!({
            "version": VERSION,
            "type": "envelope",
            "provider": KBS,
            "key_id": key_id.to_string(),
            "encrypted_key": BASE64_STANDARD.encode(wrapped),
            "encrypted_data": BASE64_STANDARD.encode(data),
            "wrap_type": GCM,
            "iv": BASE64_STANDARD.encode(iv),
            "provider_settings": {},
            "annotations": terms.to_annotations(),
        })))
    }

    fn sign(&self, payload: &Value) -> String {
        let header = json!({"alg": ES256, "kid": self.kid});
        let part = |json: &Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let input = format!("{}.{}", part(&header), part(payload));
        let signature: Signature = self.key.sign(input.as_bytes());
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes());
        format!("{PREFIX}{input}.{signature}")
    }
}

#[cfg(test)]
mod tests;
