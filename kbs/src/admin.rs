//! Administrators: a signed token with a role and an end, under a key that the configuration names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::session::seconds;

/// Bytes of a token worth looking at.
const TOKEN_BYTES: usize = 16 * 1024;
/// The audience of tokens that we make; a token without an audience is taken too, as Trustee does.
const AUDIENCE: &str = "kbs";

/// What an administrator's token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    exp: u64,
}

/// Verifies administrators' tokens.
pub struct AdminKeys {
    keys: Vec<(Algorithm, DecodingKey)>,
    roles: BTreeSet<String>,
}

impl std::fmt::Debug for AdminKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminKeys")
            .field("keys", &self.keys.len())
            .field("roles", &self.roles)
            .finish()
    }
}

impl AdminKeys {
    /// Reads public keys in PEM: Ed25519 or P-256.
    ///
    /// # Errors
    /// When one cannot be read, or is another kind of key.
    pub fn read(paths: &[PathBuf], roles: &BTreeSet<String>) -> Result<Self, AdminError> {
        let keys = paths.iter().map(|path| public_key(path));
        let keys = keys.collect::<Result<_, _>>()?;
        Ok(Self {
            keys,
            roles: roles.clone(),
        })
    }

    /// The role in a token, if it is under one of the keys and may administer.
    ///
    /// # Errors
    /// When it is under none, has ended, or its role may not.
    pub(crate) fn verify(&self, token: &str) -> Result<String, AdminError> {
        if token.len() > TOKEN_BYTES {
            return Err(AdminError::Token);
        }
        let claims = self
            .keys
            .iter()
            .find_map(|(algorithm, key)| {
                let mut rule = Validation::new(*algorithm);
                rule.validate_nbf = true;
                rule.set_audience(&[AUDIENCE]);
                rule.set_required_spec_claims(&["exp"]);
                jsonwebtoken::decode::<Claims>(token, key, &rule).ok()
            })
            .ok_or(AdminError::Token)?
            .claims;
        if self.roles.contains(&claims.role) {
            return Ok(claims.role);
        }
        Err(AdminError::Role { role: claims.role })
    }
}

/// Makes an administrator's token with a private key in PKCS#8 PEM, P-256 or Ed25519.
///
/// # Errors
/// When the key cannot be read or does not sign.
pub fn make_token(key: &Path, role: &str, lifetime: Duration) -> Result<String, AdminError> {
    #[derive(Serialize)]
    struct Made<'a> {
        #[serde(flatten)]
        claims: Claims,
        iss: &'a str,
        aud: [&'a str; 1],
        iat: u64,
    }
    let (algorithm, encoding) = private_key(key)?;
    let now = seconds(SystemTime::now());
    let claims = Made {
        claims: Claims {
            role: role.to_owned(),
            sub: None,
            exp: now.saturating_add(lifetime.as_secs()),
        },
        iss: "kbs token",
        aud: [AUDIENCE],
        iat: now,
    };
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &encoding).map_err(|_| AdminError::Key {
        path: key.to_owned(),
    })
}

/// Reads a public key in PEM: Ed25519 or P-256.
pub(crate) fn public_key(path: &Path) -> Result<(Algorithm, DecodingKey), AdminError> {
    let pem = read(path)?;
    let ec = DecodingKey::from_ec_pem(&pem).map(|key| (Algorithm::ES256, key));
    let ed = || DecodingKey::from_ed_pem(&pem).map(|key| (Algorithm::EdDSA, key));
    ec.or_else(|_| ed()).map_err(|_| AdminError::Key {
        path: path.to_owned(),
    })
}

/// Reads a private key in PKCS#8 PEM: Ed25519 or P-256.
pub(crate) fn private_key(path: &Path) -> Result<(Algorithm, EncodingKey), AdminError> {
    let pem = read(path)?;
    let ec = EncodingKey::from_ec_pem(&pem).map(|key| (Algorithm::ES256, key));
    let ed = || EncodingKey::from_ed_pem(&pem).map(|key| (Algorithm::EdDSA, key));
    ec.or_else(|_| ed()).map_err(|_| AdminError::Key {
        path: path.to_owned(),
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AdminError> {
    let pem = fs::read(path).map_err(|source| AdminError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Zeroizing::new(pem))
}

/// An administrator who is none.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A key file cannot be read.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key of another kind.
    #[error("{path} is no Ed25519 or P-256 key in PEM", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// Under none of the keys, altered, for another audience, without a role, or past its time.
    #[error("the administrator's token does not verify: `kbs token` makes one")]
    Token,
    /// A role that may not administer.
    #[error("role `{role}` is not allowed to administer")]
    Role {
        /// The role.
        role: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_for_its_key_role_and_time_only() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        let (key, cert) = crate::token::new_key().unwrap();
        fs::write(&private, key.as_bytes()).unwrap();
        fs::write(&public, cert).unwrap();
        let roles = BTreeSet::from(["admin".to_owned()]);
        let keys = AdminKeys::read(std::slice::from_ref(&public), &roles).unwrap();
        let make =
            |role: &str, life| make_token(&private, role, Duration::from_secs(life)).unwrap();
        assert_eq!(keys.verify(&make("admin", 60)).unwrap(), "admin");
        assert!(matches!(
            keys.verify(&make("reader", 60)),
            Err(AdminError::Role { .. })
        ));
        assert!(matches!(keys.verify("a.b.c"), Err(AdminError::Token)));
        let (other, _) = crate::token::new_key().unwrap();
        fs::write(&private, other.as_bytes()).unwrap();
        assert!(matches!(
            keys.verify(&make("admin", 60)),
            Err(AdminError::Token)
        ));
    }

    #[test]
    fn ed25519_keys_of_openssl_are_taken() {
        // RFC 8032, section 7.1, test 1.
        const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        fs::write(&private, PRIVATE).unwrap();
        fs::write(&public, PUBLIC).unwrap();
        let roles = BTreeSet::from(["admin".to_owned()]);
        let keys = AdminKeys::read(&[public], &roles).unwrap();
        let token = make_token(&private, "admin", Duration::from_secs(60)).unwrap();
        assert_eq!(keys.verify(&token).unwrap(), "admin");
    }
}
