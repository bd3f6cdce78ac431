//! Credentials as Docker and podman keep them: `auth.json`, `config.json`.
//!
//! The content is given by the caller (in a guest it comes from the broker). The longest path that matches counts:
//! `host/namespace/repository`, …, `host`. Credential helpers are programs and are not run: an entry that would need
//! one is an error when, and only when, it is the one to be used.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::reference::Reference;
use crate::registry::conf::nearest;

/// Cap on the JSON of an `auth.json`, in bytes.
const AUTH_FILE_BYTES_MAX: usize = 1024 * 1024;
/// The user under which Docker keeps an identity token in `auth`.
const TOKEN_USER: &str = "<token>";
/// The keys that are read here; Docker's file has many more, about its command line.
const KEYS: [&str; 3] = ["auths", "credHelpers", "credsStore"];
/// A key with fewer edits than this is a misspelt one of ours, and not another of Docker's.
const EDITS_MAX: usize = 2;

/// Why credentials cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthFileError {
    /// A cap.
    #[error("the registry credentials have more than {AUTH_FILE_BYTES_MAX} bytes")]
    TooLong,
    /// Not an `auth.json`. The text is not quoted, because it holds passwords.
    #[error("the registry credentials are not an auth.json: {0}")]
    Json(String),
    /// A key that is nearly one of ours.
    #[error("the registry credentials have the key {found:?}: did you mean {meant:?}?")]
    Key {
        /// As it is written.
        found: String,
        /// What it was meant to be.
        meant: &'static str,
    },
    /// An entry without usable credentials.
    #[error(
        "the credentials for {0} are not usable: write \"auth\" with the base64 text of user:password, or an \"identitytoken\""
    )]
    Entry(String),
    /// An entry for another kind of registry.
    #[error(
        "the credentials for {0} are an identity token, and the registry has no token service: write user and password"
    )]
    NoService(String),
    /// An entry whose credentials a program has.
    #[error(
        "the credentials for {entry} are with the program docker-credential-{helper} ({key}), and no program is run \
         here: write them into \"auths\" and remove the entry of {key}"
    )]
    Helper {
        /// Which entry.
        entry: String,
        /// The suffix of the program's name.
        helper: String,
        /// `credHelpers` or `credsStore`.
        key: &'static str,
    },
}

/// The credentials of an `auth.json`.
#[expect(missing_debug_implementations, reason = "holds passwords")]
#[derive(Default)]
pub struct AuthFile {
    entries: BTreeMap<String, Entry>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// How to speak to one registry.
pub(in crate::registry) enum Credential {
    /// `user:password`.
    Password(Zeroizing<String>),
    /// What the token service gives tokens for (an OAuth 2 refresh token).
    Identity(Zeroizing<String>),
    /// The token itself.
    Token(Zeroizing<String>),
}

impl AuthFile {
    /// Reads the JSON.
    ///
    /// # Errors
    /// See [`AuthFileError`]; an entry is looked at only when it is needed.
    pub fn from_json(json: &[u8]) -> Result<Self, AuthFileError> {
        if json.len() > AUTH_FILE_BYTES_MAX {
            return Err(AuthFileError::TooLong);
        }
        // Twice, because to keep unknown values while the known ones are read would copy passwords.
        let keys: BTreeMap<String, IgnoredAny> =
            serde_json::from_slice(json).map_err(|error| unquoted(&error))?;
        for found in keys.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let close = nearest(found, KEYS.into_iter());
            let meant = close.and_then(|close| KEYS.into_iter().find(|key| *key == close));
            if let Some(meant) = meant
                && strsim::damerau_levenshtein(found, meant) <= EDITS_MAX
            {
                let found = found.clone();
                return Err(AuthFileError::Key { found, meant });
            }
        }
        let file: File = serde_json::from_slice(json).map_err(|error| unquoted(&error))?;
        let entries = file
            .auths
            .into_iter()
            .map(|(name, entry)| (normal(&name), entry));
        let helpers = file
            .helpers
            .into_iter()
            .map(|(name, helper)| (normal(&name), helper));
        Ok(Self {
            entries: entries.collect(),
            helpers: helpers.filter(|(_, helper)| !helper.is_empty()).collect(),
            store: file.store.filter(|store| !store.is_empty()),
        })
    }

    /// The credentials for `image`, if there are any.
    pub(in crate::registry) fn find(
        &self,
        image: &Reference,
    ) -> Result<Option<Credential>, AuthFileError> {
        let mut name = image.name();
        loop {
            let helper = |helper: &str, key| AuthFileError::Helper {
                entry: name.clone(),
                helper: helper.chars().take(80).collect(),
                key,
            };
            if let Some(program) = self.helpers.get(&name) {
                return Err(helper(program, "credHelpers"));
            }
            match (self.entries.get(&name), &self.store) {
                (Some(entry), _) if !entry.is_empty() => return entry.credential(&name).map(Some),
                // This is how Docker notes that the store has them.
                (Some(_), Some(store)) => return Err(helper(store, "credsStore")),
                (Some(_) | None, _) => {}
            }
            match name.rfind('/') {
                Some(end) => name.truncate(end),
                None => return Ok(None),
            }
        }
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity: String,
    #[serde(default, rename = "registrytoken")]
    token: String,
    /// Written by old versions of Docker, and of no use to anybody.
    #[serde(default)]
    email: Option<String>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        let fields = [&self.auth, &self.username, &self.identity, &self.token];
        fields.into_iter().all(String::is_empty)
    }

    fn credential(&self, name: &str) -> Result<Credential, AuthFileError> {
        let bad = || AuthFileError::Entry(name.to_owned());
        let own = |text: &str| Zeroizing::new(text.to_owned());
        if !self.token.is_empty() {
            return Ok(Credential::Token(own(&self.token)));
        }
        if !self.identity.is_empty() {
            return Ok(Credential::Identity(own(&self.identity)));
        }
        let pair = if self.auth.is_empty() {
            Zeroizing::new(format!("{}:{}", self.username, self.password))
        } else {
            let bytes = Zeroizing::new(STANDARD.decode(self.auth.trim()).map_err(|_| bad())?);
            own(std::str::from_utf8(&bytes)
                .map_err(|_| bad())?
                .trim_end_matches('\0'))
        };
        match pair.split_once(':') {
            Some((TOKEN_USER, token)) if !token.is_empty() => Ok(Credential::Identity(own(token))),
            Some((user, _)) if !user.is_empty() => Ok(Credential::Password(pair)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password",
            Self::Identity(_) => "Identity",
            Self::Token(_) => "Token",
        })
    }
}

/// What is wrong with the JSON, without a value of it: only where it is, and which key is not known.
fn unquoted(error: &serde_json::Error) -> AuthFileError {
    let text = error.to_string();
    let key = text
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split('`').next());
    let place = format!("line {}, column {}", error.line(), error.column());
    AuthFileError::Json(match key {
        Some(key) => {
            let key: String = key.chars().take(80).collect();
            format!("{place}: unknown key {key:?}")
        }
        None => place,
    })
}

/// Old entries are URLs: `https://index.docker.io/v1/`.
fn normal(name: &str) -> String {
    let bare = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"));
    let name = bare.map_or(name, |bare| {
        bare.trim_end_matches('/')
            .trim_end_matches("/v1")
            .trim_end_matches("/v2")
    });
    let name = name.trim_end_matches('/');
    let (host, path) = name.split_at(name.find('/').unwrap_or(name.len()));
    let host = host.to_ascii_lowercase();
    if ["index.docker.io", "registry-1.docker.io"].contains(&host.as_str()) {
        format!("docker.io{path}")
    } else {
        format!("{host}{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &AuthFile, image: &str) -> Result<Option<String>, AuthFileError> {
        let found = file.find(&image.parse().unwrap())?;
        Ok(found.map(|credential| match credential {
            Credential::Password(text) => format!("password {}", *text),
            Credential::Identity(text) => format!("identity {}", *text),
            Credential::Token(text) => format!("token {}", *text),
        }))
    }

    #[test]
    fn the_longest_path_counts() {
        let file = AuthFile::from_json(
            br#"{"auths":{"ghcr.io":{"auth":"YTox","email":"a@b"},"ghcr.io/org":{"auth":"YToy"},
                "https://index.docker.io/v1/":{"auth":"YToz"},"QUAY.io/team/":{"username":"u","password":"p"},
                "bad.io":{"auth":"OnB3"},"worse.io":{"auth":"secret!"},"empty.io/a":{},"empty.io":{"auth":"YTo0"}},
                "psFormat":"table","HttpHeaders":{"User-Agent":"x"}}"#,
        )
        .unwrap();
        let password = |text: &str| Ok(Some(format!("password {text}")));
        assert_eq!(found(&file, "ghcr.io/org/app"), password("a:2"));
        assert_eq!(found(&file, "ghcr.io/organic/app"), password("a:1"));
        assert_eq!(found(&file, "busybox"), password("a:3"));
        assert_eq!(found(&file, "quay.io/team/x/y"), password("u:p"));
        assert_eq!(found(&file, "quay.io/a"), Ok(None));
        assert_eq!(found(&file, "empty.io/a"), password("a:4"));
        for (image, entry) in [("bad.io/a", "bad.io"), ("worse.io/a", "worse.io")] {
            let error = found(&file, image).unwrap_err();
            assert_eq!(error, AuthFileError::Entry(entry.to_owned()));
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn tokens_are_told_from_passwords() {
        let file = AuthFile::from_json(
            br#"{"auths":{"a.io":{"auth":"MDAwMDo=","identitytoken":"refresh"},
                "b.io":{"auth":"PHRva2VuPjpyZWZyZXNo"},"c.io":{"registrytoken":"bearer"}}}"#,
        )
        .unwrap();
        assert_eq!(
            found(&file, "a.io/x"),
            Ok(Some("identity refresh".to_owned()))
        );
        assert_eq!(
            found(&file, "b.io/x"),
            Ok(Some("identity refresh".to_owned()))
        );
        assert_eq!(found(&file, "c.io/x"), Ok(Some("token bearer".to_owned())));
    }

    #[test]
    fn a_helper_is_an_error_only_where_it_would_be_asked() {
        let file = AuthFile::from_json(
            br#"{"auths":{"own.io":{"auth":"YTox"},"stored.io":{},"helped.io":{"auth":"YToy"}},
                "credHelpers":{"helped.io":"ecr-login","unset.io":""},"credsStore":"desktop"}"#,
        )
        .unwrap();
        assert_eq!(
            found(&file, "own.io/a"),
            Ok(Some("password a:1".to_owned()))
        );
        assert_eq!(found(&file, "public.io/a"), Ok(None));
        assert_eq!(found(&file, "unset.io/a"), Ok(None));
        for (image, helper, key) in [
            ("helped.io/a", "ecr-login", "credHelpers"),
            ("stored.io/a", "desktop", "credsStore"),
        ] {
            let error = found(&file, image).unwrap_err().to_string();
            for word in [image.split('/').next().unwrap(), helper, key, "\"auths\""] {
                assert!(error.contains(word), "{error}");
            }
        }
    }

    #[test]
    fn a_misspelt_key_is_named_and_no_value_is_quoted() {
        let error = |json: &str| {
            AuthFile::from_json(json.as_bytes())
                .err()
                .unwrap()
                .to_string()
        };
        assert!(
            error(r#"{"auth":{"a.io":{"auth":"c2VjcmV0"}}}"#).contains("did you mean \"auths\"?")
        );
        assert!(error(r#"{"credHelper":{}}"#).contains("\"credHelpers\""));
        let unknown = error(r#"{"auths":{"a.io":{"pasword":"secret"}}}"#);
        assert!(
            unknown.contains("\"pasword\"") && !unknown.contains("secret"),
            "{unknown}"
        );
        let wrong = error(r#"{"auths":{"a.io":{"auth":["secret"]}}}"#);
        assert!(!wrong.contains("secret"), "{wrong}");
        let wrong = error(r#"{"auths":"secret"}"#);
        assert!(!wrong.contains("secret"), "{wrong}");
        assert!(error(&" ".repeat(AUTH_FILE_BYTES_MAX + 1)).contains("bytes"));
    }
}
