//! The attestation token: an EAR (EAT attestation result) as a JWT, signed with ES256.
//!
//! Members are at the places where Trustee has them, so that its release policies read ours. Unlike
//! Trustee's it has a `kid`, and the key is published at `/.well-known/jwks.json`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use kbs_protocol::{TeePubKey, limit::TOKEN_BYTES};
use p256::{
    SecretKey,
    elliptic_curve::Generate,
    pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
};
use policies::appraisal::Appraisal;
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
        UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{decided::Decided, file, record::guest, session::seconds, verified::Verified};

const PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";
/// Where the guest's key is in the claims.
const TEE_PUBKEY: &str =
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey";

/// Signs tokens and verifies its own.
pub struct TokenSigner {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// The header in base64url, with its dot. It is the same in all tokens, so that one with
    /// another header is not ours, whatever it says.
    head: String,
    kid: String,
    jwk: Value,
    issuer: String,
    lifetime: Duration,
    verified: Verified<Claims>,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Header<'a> {
    typ: &'a str,
    alg: &'a str,
    kid: &'a str,
}

/// What is signed; see [RFC 7519](https://www.rfc-editor.org/rfc/rfc7519) and the EAR draft.
#[derive(Serialize)]
struct Issued<'a> {
    eat_profile: &'a str,
    iss: &'a str,
    jti: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    #[serde(rename = "ear.verifier-id")]
    verifier: VerifierId<'a>,
    #[serde(serialize_with = "by_name")]
    submods: &'a [Submod],
}

#[derive(Serialize)]
struct VerifierId<'a> {
    developer: &'a str,
    build: &'a str,
}

fn by_name<S: Serializer>(submods: &[Submod], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(submods.iter().map(|part| (&part.name, part)))
}

impl TokenSigner {
    /// Reads the private key, PKCS#8 PEM of P-256.
    ///
    /// # Errors
    /// When it cannot be read or is another kind of key.
    pub fn read(path: &Path, issuer: &str, lifetime: Duration) -> Result<Self, TokenError> {
        let pem = file::read_text(path, file::SMALL).map_err(|source| TokenError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_pem(&pem, issuer, lifetime).map_err(|_| TokenError::KeyFile {
            path: path.to_owned(),
        })
    }

    fn from_pem(pem: &str, issuer: &str, lifetime: Duration) -> Result<Self, TokenError> {
        let secret = SecretKey::from_pem(pem).map_err(|_| TokenError::Key)?;
        let public = secret.public_key();
        let der = public.to_public_key_der().map_err(|_| TokenError::Key)?;
        let kid = hex::encode(&Sha256::digest(der.as_bytes())[..16]);
        let point = public.to_sec1_bytes();
        let (x, y) = point[1..].split_at((point.len() - 1) / 2);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
            "x": base64url(x), "y": base64url(y),
        });
        let random = SystemRandom::new();
        let scalar = Zeroizing::new(secret.to_bytes());
        let key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &scalar,
            &point,
            &random,
        )
        .map_err(|_| TokenError::Key)?;
        let header = Header {
            typ: "JWT",
            alg: "ES256",
            kid: &kid,
        };
        let header = serde_json::to_vec(&header).map_err(|_| TokenError::Key)?;
        Ok(Self {
            key,
            random,
            head: base64url(&header) + ".",
            kid,
            jwk,
            issuer: issuer.to_owned(),
            lifetime,
            verified: Verified::default(),
        })
    }

    /// The public half as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    /// A token over appraisals and the evidence that they judged. Its `jti` is `id`.
    ///
    /// # Errors
    /// When the claims make a token that no header can carry.
    pub fn issue(
        &self,
        id: &str,
        submods: &[Submod],
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let now = seconds(now);
        let claims = Issued {
            eat_profile: PROFILE,
            iss: &self.issuer,
            jti: id,
            iat: now,
            nbf: now,
            exp: now.saturating_add(self.lifetime.as_secs()),
            verifier: VerifierId {
                developer: "cloister",
                build: concat!("cloister-kbs ", env!("CARGO_PKG_VERSION")),
            },
            submods,
        };
        let claims = serde_json::to_vec(&claims).map_err(|_| TokenError::Sign)?;
        let mut token = String::with_capacity(self.head.len() + claims.len() / 3 * 4 + 96);
        token.push_str(&self.head);
        BASE64_URL_SAFE_NO_PAD.encode_string(&claims, &mut token);
        let signature = self
            .key
            .sign(&self.random, token.as_bytes())
            .map_err(|_| TokenError::Sign)?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        Ok(token)
    }

    /// The claims of a token that this broker signed and that still holds.
    ///
    /// # Errors
    /// When it is not ours, altered, or past its time.
    pub(crate) fn verify(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        let claims = self.verified.or(token, || self.verify_anew(token))?;
        claims.holds(SystemTime::now())?;
        Ok(claims)
    }

    fn verify_anew(&self, token: &str) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let payload = signed.strip_prefix(&self.head).ok_or(TokenError::Foreign)?;
        let decode = |text| {
            BASE64_URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| TokenError::Foreign)
        };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Foreign)?;
        let claims: Value =
            serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Foreign)?;
        if claims["iss"] != self.issuer.as_str() {
            return Err(TokenError::Foreign);
        }
        let expires = claims["exp"].as_u64().ok_or(TokenError::Foreign)?;
        let tee_pubkey = claims
            .pointer(TEE_PUBKEY)
            .and_then(|key| TeePubKey::deserialize(key).ok())
            .ok_or(TokenError::Foreign)?;
        let claims = Claims::new(claims, tee_pubkey, expires);
        claims.holds(SystemTime::now())?;
        Ok(claims)
    }
}

/// One part of a guest: its CPU, or a device.
#[derive(Debug, Clone)]
pub struct Submod {
    /// Its name in the token, as `cpu0`.
    pub name: String,
    /// The name of the policy that appraised it, as `default`.
    pub policy: String,
    /// What that policy says.
    pub appraisal: Appraisal,
    /// What it judged.
    pub evidence: Value,
}

impl Serialize for Submod {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        const OURS: [&str; 4] = [
            "ear.status",
            "ear.trustworthiness-vector",
            "ear.appraisal-policy-id",
            "ear.veraison.annotated-evidence",
        ];
        let mut members = to.serialize_map(None)?;
        members.serialize_entry(OURS[0], self.appraisal.status.as_str())?;
        members.serialize_entry(OURS[1], &self.appraisal.vector)?;
        members.serialize_entry(OURS[2], &self.policy)?;
        members.serialize_entry(OURS[3], &self.evidence)?;
        let mut names = BTreeSet::from(OURS);
        for extension in &self.appraisal.extensions {
            // A policy adds members and replaces none.
            if names.insert(&extension.name) {
                members.serialize_entry(&extension.name, &extension.value)?;
            }
        }
        members.end()
    }
}

/// The claims of a verified token.
#[derive(Debug)]
pub(crate) struct Claims {
    /// All of them, as a release policy sees them.
    pub(crate) claims: Value,
    /// The key that a resource is sealed to.
    pub(crate) tee_pubkey: TeePubKey,
    /// The ticket of the attestation.
    pub(crate) id: String,
    /// How the record names the guest.
    pub(crate) subject: String,
    /// What was decided about it.
    pub(crate) decided: Decided,
    /// Seconds since 1970 from which on it does not hold.
    expires: u64,
}

impl Claims {
    pub(crate) fn new(claims: Value, tee_pubkey: TeePubKey, expires: u64) -> Self {
        Self {
            id: claims["jti"].as_str().unwrap_or_default().to_owned(),
            subject: guest(&tee_pubkey),
            decided: Decided::default(),
            claims,
            tee_pubkey,
            expires,
        }
    }

    fn holds(&self, now: SystemTime) -> Result<(), TokenError> {
        if self.expires <= seconds(now) {
            return Err(TokenError::Expired);
        }
        Ok(())
    }
}

/// A new P-256 private key in PKCS#8 PEM, and its public half.
///
/// # Errors
/// When the key cannot be written as PEM.
pub fn new_key() -> Result<(Zeroizing<String>, String), TokenError> {
    let secret = SecretKey::generate_from_rng(&mut rand::rng());
    let private = secret
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|_| TokenError::Key)?;
    let public = secret
        .public_key()
        .to_public_key_pem(LineEnding::LF)
        .map_err(|_| TokenError::Key)?;
    Ok((private, public))
}

/// A token that could not be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key file cannot be read.
    #[error("read the signing key {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The key in a file is of another kind.
    #[error("{path} is no P-256 key in PKCS#8 PEM: `kbs init` writes such a file", path = path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
    },
    /// The key is of another kind.
    #[error("the signing key is not P-256 in PKCS#8 PEM")]
    Key,
    /// The signature could not be made.
    #[error("the token could not be signed")]
    Sign,
    /// Larger than the cap.
    #[error("the token is larger than {TOKEN_BYTES} bytes")]
    TooLarge,
    /// Past its time.
    #[error("the token has expired: attest again")]
    Expired,
    /// Not signed by this broker, altered, or without the guest's key.
    #[error("the token is not of this broker, or was altered")]
    Foreign,
}

fn base64url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kbs_protocol::{KeyKind, TeeKeyPair};
    use policies::appraisal::Status;

    use super::*;

    fn signer() -> TokenSigner {
        let (pem, _) = new_key().unwrap();
        TokenSigner::from_pem(&pem, "test", Duration::from_secs(60)).unwrap()
    }

    fn cpu(evidence: Value) -> [Submod; 1] {
        [Submod {
            name: "cpu0".to_owned(),
            policy: "default".to_owned(),
            appraisal: Appraisal {
                status: Status::Contraindicated,
                vector: BTreeMap::from([("hardware".to_owned(), 97)]),
                reasons: Vec::new(),
                judgements: Vec::new(),
                extensions: Vec::new(),
            },
            evidence,
        }]
    }

    #[test]
    fn a_token_is_verified_until_it_ends_and_only_by_its_signer() {
        let signer = signer();
        let key = TeeKeyPair::generate(KeyKind::P256).unwrap().public();
        let evidence = json!({"runtime_data_claims": {"tee-pubkey": key}});
        let now = SystemTime::now();
        let token = signer.issue("t", &cpu(evidence.clone()), now).unwrap();
        let claims = signer.verify(&token).unwrap();
        assert_eq!(claims.tee_pubkey, key);
        assert_eq!(
            claims.claims["submods"]["cpu0"]["ear.status"],
            "contraindicated"
        );
        let old = signer
            .issue("t", &cpu(evidence), now - Duration::from_secs(61))
            .unwrap();
        assert!(matches!(signer.verify(&old), Err(TokenError::Expired)));
        assert!(matches!(
            self::signer().verify(&token),
            Err(TokenError::Foreign)
        ));
        let (head, signature) = token.rsplit_once('.').unwrap();
        for altered in [
            head.to_owned(),
            format!("{head}A.{signature}"),
            format!("{head}."),
        ] {
            assert!(signer.verify(&altered).is_err());
        }
        let none = format!(
            "{}.{}.",
            base64url(br#"{"alg":"none"}"#),
            head.split_once('.').unwrap().1
        );
        assert!(signer.verify(&none).is_err());
    }

    #[test]
    fn a_token_without_a_key_releases_nothing() {
        let signer = signer();
        let token = signer
            .issue("t", &cpu(json!({})), SystemTime::now())
            .unwrap();
        assert!(matches!(signer.verify(&token), Err(TokenError::Foreign)));
    }
}
