//! Administrators: a signed token with a role and an end, under a key that the configuration names or
//! that an issuer publishes, and what the role may do.

mod form;
mod issuer;
pub(crate) mod right;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind as TokenFault,
};
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{config, file, session::seconds};

use form::{Audience, LEEWAY_SECONDS};
pub(crate) use issuer::Issuer;
pub use issuer::IssuerError;
use issuer::VerifyError;
use right::{Grant, Permission};

/// Bytes of a token worth looking at.
const TOKEN_BYTES: usize = 16 * 1024;
/// The audience of tokens that we make.
const AUDIENCE: &str = "kbs";
/// The claim with the role in a token under one of our own keys, as Trustee has it.
const ROLE_CLAIM: &str = "role";
/// Roles of one token, and characters of a name on the record.
const ROLES: usize = 64;
const NAME_CHARS: usize = 128;

/// Verifies administrators' tokens.
pub struct Admins {
    keys: Vec<DecodingKey>,
    audiences: BTreeSet<String>,
    roles: BTreeMap<String, Grant>,
    issuers: Vec<Arc<Issuer>>,
}

impl std::fmt::Debug for Admins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admins")
            .field("keys", &self.keys.len())
            .field("roles", &self.roles.keys())
            .finish_non_exhaustive()
    }
}

/// Whose token it is, and what its roles allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Administrator {
    /// The roles in the token that are known here.
    pub(crate) role: String,
    /// `sub` of the token, where it has one.
    name: Option<String>,
    grants: Vec<Grant>,
}

impl Administrator {
    /// Without a resource's path, whether there is any for which it is allowed.
    pub(crate) fn may(&self, permission: Permission, path: Option<&str>) -> bool {
        let mut grants = self.grants.iter();
        grants.any(|grant| grant.allows(permission, path))
    }

    /// As the record names them.
    pub(crate) fn who(&self) -> String {
        match &self.name {
            Some(name) => format!("role {} {name}", self.role),
            None => format!("role {}", self.role),
        }
    }
}

impl Admins {
    /// Reads public keys, and what is there of the issuers' keys.
    ///
    /// # Errors
    /// When a file cannot be read, or holds another kind of key.
    pub fn read(config: &config::Admin) -> Result<Self, AdminError> {
        let keys = config.public_keys.iter().map(|path| read_key(path));
        let issuers = config.issuer.iter().map(|one| {
            Issuer::new(one)
                .map(Arc::new)
                .map_err(|cause| AdminError::Issuer {
                    issuer: one.issuer.clone(),
                    cause,
                })
        });
        let all = |name: &String| (name.clone(), Grant::everything());
        let some = |role: &config::Role| {
            let grant = Grant::new(role.allow.clone(), role.resource_prefix.as_deref());
            (role.name.clone(), grant)
        };
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
            audiences: config.audiences.clone(),
            roles: config
                .roles
                .iter()
                .map(all)
                .chain(config.role.iter().map(some))
                .collect(),
            issuers: issuers.collect::<Result<_, _>>()?,
        })
    }

    /// Whose keys have to be kept fresh.
    pub(crate) fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// Who sends a token, if it verifies and one of its roles is known.
    ///
    /// # Errors
    /// When it does not verify, has ended, or none of its roles is known.
    pub(crate) async fn verify(&self, token: &str) -> Result<Administrator, AdminError> {
        if token.len() > TOKEN_BYTES {
            return Err(AdminError::Token);
        }
        if form::is_critical(token) {
            return Err(AdminError::Critical);
        }
        // What it says of itself only tells by whose keys to judge it.
        let issuer = jsonwebtoken::dangerous::insecure_decode_claims::<Value>(token)
            .ok()
            .and_then(|claims| {
                let named = claims.get("iss")?.as_str()?;
                self.issuers.iter().find(|one| one.name == named)
            });
        let Some(issuer) = issuer else {
            return self.administrator(&self.verify_own(token)?, ROLE_CLAIM, None);
        };
        let claims = issuer.verify(token).await.map_err(|error| match error {
            VerifyError::Token => AdminError::Token,
            VerifyError::NoKeys => AdminError::Unavailable {
                issuer: issuer.name.clone(),
            },
        })?;
        self.administrator(&claims, &issuer.role_claim, Some(&issuer.name))
    }

    /// The claims of a token under one of our own keys. One without an audience is taken too, as
    /// Trustee does.
    fn verify_own(&self, token: &str) -> Result<Value, AdminError> {
        let mut refusal = AdminError::Token;
        for key in &self.keys {
            let mut rule = Validation::new_for_family(key.family());
            rule.validate_nbf = true;
            rule.leeway = LEEWAY_SECONDS;
            // It would pass over an `aud` that does not read.
            rule.validate_aud = false;
            rule.set_required_spec_claims(&["exp"]);
            match jsonwebtoken::decode::<Value>(token, key, &rule) {
                Ok(verified) => return self.for_us(verified.claims),
                Err(error) => refusal = refused(&error).unwrap_or(refusal),
            }
        }
        Err(refusal)
    }

    fn for_us(&self, claims: Value) -> Result<Value, AdminError> {
        match Audience::of(&claims, &self.audiences) {
            Audience::Anybody | Audience::Us => Ok(claims),
            Audience::Others => {
                let taken: Vec<&str> = self.audiences.iter().map(String::as_str).collect();
                Err(AdminError::Audience {
                    taken: taken.join(", "),
                })
            }
            Audience::Unreadable => Err(AdminError::AudienceForm),
        }
    }

    /// A name is its issuer's, so the record has both.
    fn administrator(
        &self,
        claims: &Value,
        role_claim: &str,
        issuer: Option<&str>,
    ) -> Result<Administrator, AdminError> {
        let found = roles_in(claims, role_claim);
        let known: Vec<&str> = found
            .iter()
            .copied()
            .filter(|role| self.roles.contains_key(*role))
            .collect();
        if known.is_empty() {
            let Some(role) = found.first() else {
                return Err(AdminError::NoRole {
                    claim: role_claim.to_owned(),
                });
            };
            return Err(AdminError::Role {
                role: role.chars().take(NAME_CHARS).collect(),
            });
        }
        let name = claims.get("sub").and_then(Value::as_str);
        Ok(Administrator {
            grants: known
                .iter()
                .filter_map(|role| self.roles.get(*role).cloned())
                .collect(),
            role: known.join("+"),
            name: name.map(|name| {
                let name: String = name.chars().take(NAME_CHARS).collect();
                issuer.map_or(name.clone(), |issuer| format!("{name} of {issuer}"))
            }),
        })
    }
}

/// What is wrong with a token that one of our keys signed. Claims are looked at when the signature
/// holds, so whoever reads this was given the token by us.
fn refused(error: &jsonwebtoken::errors::Error) -> Option<AdminError> {
    let fault = match error.kind() {
        TokenFault::ExpiredSignature => "has ended",
        TokenFault::ImmatureSignature => "does not hold yet",
        TokenFault::MissingRequiredClaim(_) => "has no end: it needs `exp`",
        _ => return None,
    };
    Some(AdminError::Time { fault })
}

/// One role, or a list of them.
fn roles_in<'a>(claims: &'a Value, claim: &str) -> Vec<&'a str> {
    let found = if claim.starts_with('/') {
        claims.pointer(claim)
    } else {
        claims.get(claim)
    };
    match found {
        Some(Value::String(role)) => vec![role],
        Some(Value::Array(roles)) => roles.iter().take(ROLES).filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn read_key(path: &Path) -> Result<DecodingKey, AdminError> {
    let pem = read(path)?;
    DecodingKey::from_ec_pem(&pem)
        .or_else(|_| DecodingKey::from_ed_pem(&pem))
        .or_else(|_| DecodingKey::from_rsa_pem(&pem))
        .map_err(|_| AdminError::Key {
            path: path.to_owned(),
        })
}

/// Makes an administrator's token with a private key in PKCS#8 PEM, P-256 or Ed25519.
///
/// # Errors
/// When the key cannot be read or does not sign.
pub fn make_token(key: &Path, role: &str, lifetime: Duration) -> Result<String, AdminError> {
    #[derive(Serialize)]
    struct Claims<'a> {
        role: &'a str,
        iss: &'a str,
        aud: [&'a str; 1],
        iat: u64,
        exp: u64,
    }
    let (algorithm, encoding) = private_key(key)?;
    let now = seconds(SystemTime::now());
    let claims = Claims {
        role,
        iss: "kbs token",
        aud: [AUDIENCE],
        iat: now,
        exp: now.saturating_add(lifetime.as_secs()),
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
    file::read(path, file::SMALL).map_err(|source| AdminError::Read {
        path: path.to_owned(),
        source,
    })
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
    #[error("{path} is not a key in PEM of a kind that is taken here, such as Ed25519 or P-256", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// Under none of the keys, or altered.
    #[error(
        "the administrator's token does not verify by a key that is known here: `kbs token` makes one"
    )]
    Token,
    /// It asks for what is not understood here.
    #[error(
        "the administrator's token has `crit` in its header, and nothing that may be listed there is understood here: make it without"
    )]
    Critical,
    /// For nobody.
    #[error("the administrator's token has an `aud` that is neither a text nor a list of texts")]
    AudienceForm,
    /// For somebody else.
    #[error(
        "the administrator's token is for another audience: `admin.audiences` takes {taken} in `aud`"
    )]
    Audience {
        /// What `aud` may be.
        taken: String,
    },
    /// Not at this time.
    #[error("the administrator's token {fault}")]
    Time {
        /// What is wrong with its time.
        fault: &'static str,
    },
    /// It says nothing of what its holder may do.
    #[error("the administrator's token has no role: its claim `{claim}` names one")]
    NoRole {
        /// Where the role is looked for.
        claim: String,
    },
    /// A role that may not administer.
    #[error("role `{role}` is not allowed to administer")]
    Role {
        /// The role.
        role: String,
    },
    /// A role that may, but not this.
    #[error("role `{role}` lacks the permission `{permission}`{place}", permission = permission.name())]
    Permission {
        /// The role.
        role: String,
        /// What it lacks.
        permission: Permission,
        /// For which resource, if for one.
        place: String,
    },
    /// An issuer that cannot be used.
    #[error("issuer {issuer}: {cause}")]
    Issuer {
        /// The issuer.
        issuer: String,
        /// Why.
        cause: IssuerError,
    },
    /// An issuer that has not answered yet.
    #[error("the keys of the issuer {issuer} could not be fetched: try again in ten seconds")]
    Unavailable {
        /// The issuer.
        issuer: String,
    },
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn config(public_key: &Path) -> config::Admin {
        let text = format!(
            "public_keys = [{public_key:?}]
             [[role]]\nname = \"auditor\"\nallow = [\"record:read\"]
             [[role]]\nname = \"team\"\nallow = [\"resource:write\"]\nresource_prefix = \"team\""
        );
        toml::from_str(&text).unwrap()
    }

    fn claims(more: &Value) -> Value {
        let mut claims = serde_json::json!({"exp": seconds(SystemTime::now()) + 60});
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    #[tokio::test]
    async fn a_token_is_taken_for_its_key_role_and_time_only() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        let (key, cert) = crate::token::new_key().unwrap();
        fs::write(&private, key.as_bytes()).unwrap();
        fs::write(&public, cert).unwrap();
        let admins = Admins::read(&config(&public)).unwrap();
        let make =
            |role: &str, life| make_token(&private, role, Duration::from_secs(life)).unwrap();
        let admin = admins.verify(&make("admin", 60)).await.unwrap();
        assert_eq!(admin.who(), "role admin");
        assert!(Permission::ALL.iter().all(|right| admin.may(*right, None)));
        assert!(matches!(
            admins.verify(&make("reader", 60)).await,
            Err(AdminError::Role { .. })
        ));
        assert!(matches!(
            admins.verify("a.b.c").await,
            Err(AdminError::Token)
        ));
        let (other, _) = crate::token::new_key().unwrap();
        fs::write(&private, other.as_bytes()).unwrap();
        assert!(matches!(
            admins.verify(&make("admin", 60)).await,
            Err(AdminError::Token)
        ));
    }

    #[tokio::test]
    async fn tokens_of_trustees_form_are_taken_and_roles_allow_what_they_list() {
        let dir = tempfile::tempdir().unwrap();
        let public = dir.path().join("a.pub");
        let (key, cert) = crate::token::new_key().unwrap();
        fs::write(&public, cert).unwrap();
        let admins = Admins::read(&config(&public)).unwrap();
        let key = EncodingKey::from_ec_pem(key.as_bytes()).unwrap();
        let sign = |more: Value| {
            jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims(&more), &key).unwrap()
        };
        for good in [
            serde_json::json!({"role": "admin"}),
            serde_json::json!({"role": "admin", "aud": "kbs", "iss": "somebody"}),
            serde_json::json!({"role": "admin", "aud": ["kbs", "other"]}),
        ] {
            assert!(admins.verify(&sign(good)).await.is_ok());
        }
        for (bad, word) in [
            (
                serde_json::json!({"role": "admin", "aud": "KBS"}),
                "takes kbs in `aud`",
            ),
            (
                serde_json::json!({"role": "admin", "aud": ["other"]}),
                "audience",
            ),
            (serde_json::json!({"role": "admin", "exp": 1}), "has ended"),
            (serde_json::json!({"role": "admin", "exp": "x"}), "`exp`"),
            (
                serde_json::json!({"role": "admin", "nbf": seconds(SystemTime::now()) + 1000}),
                "not hold yet",
            ),
            (
                serde_json::json!({"issuer": "x", "audiences": ["kbs"]}),
                "no role",
            ),
        ] {
            let error = admins.verify(&sign(bad)).await.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let both = serde_json::json!({"role": ["team", "auditor", "x"], "sub": "me"});
        let both = admins.verify(&sign(both)).await.unwrap();
        assert_eq!(both.who(), "role team+auditor me");
        assert!(both.may(Permission::ReadRecord, None));
        assert!(both.may(Permission::WriteResource, Some("team/key/a")));
        assert!(!both.may(Permission::WriteResource, Some("other/key/a")));
        assert!(!both.may(Permission::WritePolicy, None));
    }

    #[tokio::test]
    async fn what_is_not_understood_is_refused_and_clocks_may_differ_by_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let public = dir.path().join("a.pub");
        let (key, cert) = crate::token::new_key().unwrap();
        fs::write(&public, cert).unwrap();
        let admins = Admins::read(&config(&public)).unwrap();
        let key = EncodingKey::from_ec_pem(key.as_bytes()).unwrap();
        let sign = |header: &Header, more: Value| {
            let mut more = more;
            more["role"] = "admin".into();
            jsonwebtoken::encode(header, &claims(&more), &key).unwrap()
        };
        let plain = Header::new(Algorithm::ES256);
        let critical = Header {
            crit: Some(vec!["exp".to_owned()]),
            ..plain.clone()
        };
        let refused = admins.verify(&sign(&critical, serde_json::json!({}))).await;
        assert!(matches!(refused, Err(AdminError::Critical)));
        for odd in [
            serde_json::json!(["kbs", 1]),
            serde_json::json!({"kbs": 1}),
            serde_json::json!([]),
            Value::Null,
        ] {
            let token = sign(&plain, serde_json::json!({ "aud": odd }));
            let refused = admins.verify(&token).await;
            assert!(matches!(refused, Err(AdminError::AudienceForm)), "{odd}");
        }
        let now = seconds(SystemTime::now());
        for (claim, seconds, taken) in [
            ("exp", now - 45, true),
            ("exp", now - 75, false),
            ("nbf", now + 45, true),
            ("nbf", now + 75, false),
        ] {
            let token = sign(&plain, serde_json::json!({ claim: seconds }));
            assert_eq!(
                admins.verify(&token).await.is_ok(),
                taken,
                "{claim} {seconds}"
            );
        }
        let token = sign(&plain, serde_json::json!({"nbf": "soon"}));
        assert!(admins.verify(&token).await.is_err());
    }

    #[tokio::test]
    async fn ed25519_keys_of_openssl_are_taken() {
        // RFC 8032, section 7.1, test 1.
        const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        fs::write(&private, PRIVATE).unwrap();
        fs::write(&public, PUBLIC).unwrap();
        let admins = Admins::read(&config(&public)).unwrap();
        let token = make_token(&private, "admin", Duration::from_secs(60)).unwrap();
        assert_eq!(admins.verify(&token).await.unwrap().role, "admin");
    }
}
