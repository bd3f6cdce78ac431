//! Credentials: `auth.json` as Docker and podman write it, and the answers to `Basic` and `Bearer` challenges.
//!
//! The file's content is given by the caller (in a guest it comes from the broker); credential helpers are programs
//! and are not run. The longest path that matches counts: `host/namespace/repository`, …, `host`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, StatusCode};
use serde::Deserialize;
use transport::bytes_capped;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Action, Ask, ERROR_BYTES_MAX, RegistryError};
use crate::reference::Reference;

/// Cap on the JSON of an `auth.json`, in bytes.
const AUTH_FILE_BYTES_MAX: usize = 1024 * 1024;
/// Cap on the answer of a token service, in bytes; real tokens have some thousand.
const TOKEN_BYTES_MAX: usize = 256 * 1024;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// A cap.
    #[error("the registry credentials have more than {AUTH_FILE_BYTES_MAX} bytes")]
    TooLong,
    /// Not an `auth.json`. The text is not quoted, because it holds passwords.
    #[error("the registry credentials are not an auth.json")]
    Json,
    /// An entry without a usable password.
    #[error(
        "the credentials for {0} have no user and password in \"auth\"; identity tokens are not supported"
    )]
    Entry(String),
}

/// The credentials of an `auth.json`.
#[expect(missing_debug_implementations, reason = "holds passwords")]
#[derive(Default)]
pub struct AuthFile(BTreeMap<String, Entry>);

/// `user:password`.
pub(super) type Credential = Zeroizing<String>;

impl AuthFile {
    /// Reads the JSON.
    ///
    /// # Errors
    /// See [`AuthFileError`]; an entry is looked at only when it is needed.
    pub fn from_json(json: &[u8]) -> Result<Self, AuthFileError> {
        if json.len() > AUTH_FILE_BYTES_MAX {
            return Err(AuthFileError::TooLong);
        }
        let file: File = serde_json::from_slice(json).map_err(|_| AuthFileError::Json)?;
        Ok(Self(
            file.auths
                .into_iter()
                .map(|(name, entry)| (normal(&name), entry))
                .collect(),
        ))
    }

    /// The credentials for `image`, if there are any.
    pub(super) fn find(&self, image: &Reference) -> Result<Option<Credential>, AuthFileError> {
        let mut name = image.name();
        loop {
            if let Some(entry) = self.0.get(&name) {
                return entry.credential(&name).map(Some);
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
}

#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Entry {
    fn credential(&self, name: &str) -> Result<Credential, AuthFileError> {
        let bad = || AuthFileError::Entry(name.to_owned());
        if self.auth.is_empty() && !self.username.is_empty() {
            return Ok(Zeroizing::new(format!(
                "{}:{}",
                self.username, self.password
            )));
        }
        let bytes = Zeroizing::new(STANDARD.decode(self.auth.trim()).map_err(|_| bad())?);
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| bad())?
            .trim_end_matches('\0');
        if text.split_once(':').is_none_or(|(user, _)| user.is_empty()) {
            return Err(bad());
        }
        Ok(Zeroizing::new(text.to_owned()))
    }
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
    let hub = ["index.docker.io", "registry-1.docker.io"].contains(&name);
    if hub {
        "docker.io".to_owned()
    } else {
        name.trim_end_matches('/').to_owned()
    }
}

/// What a registry wants before it answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads one `WWW-Authenticate`; `None` for a scheme that we do not speak.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut values = parameters(rest);
        let realm = values.remove("realm")?;
        Some(Self::Bearer {
            realm,
            service: values.remove("service"),
            scope: values.remove("scope"),
        })
    }
}

/// `key="value",…`; a comma inside quotes belongs to the value.
fn parameters(mut rest: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        out.insert(key, value.to_owned());
        rest = after;
    }
    out
}

/// The `Authorization` that answers a challenge; `None` when there is nothing to answer with.
pub(super) async fn answer(
    http: &transport::Client,
    challenge: &Challenge,
    credential: Option<Credential>,
    ask: &Ask<'_>,
) -> Result<Option<HeaderValue>, RegistryError> {
    match challenge {
        Challenge::Basic => Ok(credential.and_then(|credential| basic(&credential))),
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => {
            let url = token_url(realm, service.as_deref(), scope.as_deref(), ask)?;
            token(http, realm, &url, credential, ask).await.map(Some)
        }
    }
}

fn basic(credential: &str) -> Option<HeaderValue> {
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(credential)));
    secret_header(&text)
}

/// Marked sensitive, so that no log of headers shows it.
fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn token_url(
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    ask: &Ask<'_>,
) -> Result<String, RegistryError> {
    let bad = |error: url::ParseError| RegistryError::Url {
        what: ask.what.clone(),
        reason: error.to_string(),
    };
    let mut url = url::Url::parse(realm).map_err(bad)?;
    let actions = match ask.action {
        Action::Pull => "pull",
        Action::Push => "pull,push",
    };
    let wanted = format!("repository:{}:{actions}", ask.image.repository());
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", scope.unwrap_or(&wanted));
    }
    Ok(url.into())
}

async fn token(
    http: &transport::Client,
    realm: &str,
    url: &str,
    credential: Option<Credential>,
    ask: &Ask<'_>,
) -> Result<HeaderValue, RegistryError> {
    let no_token = |detail: String| {
        let (what, realm) = (ask.what.clone(), realm.to_owned());
        RegistryError::Token {
            what,
            realm,
            detail,
        }
    };
    let mut request = Request::get(url)
        .body(Bytes::new())
        .map_err(|error| no_token(error.to_string()))?;
    if let Some(value) = credential.and_then(|credential| basic(&credential)) {
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let answer = http
        .send(request)
        .await
        .map_err(|error| no_token(error.to_string()))?;
    let status = answer.status();
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        let body = bytes_capped(answer.into_body(), ERROR_BYTES_MAX)
            .await
            .unwrap_or_default();
        return Err(RegistryError::from_status(&ask.what, status, &body));
    }
    if !status.is_success() {
        return Err(no_token(format!("status {status}")));
    }
    let body = bytes_capped(answer.into_body(), TOKEN_BYTES_MAX)
        .await
        .map_err(|error| no_token(error.to_string()))?;
    let wire: Token =
        serde_json::from_slice(&body).map_err(|_| no_token("its answer is not JSON".to_owned()))?;
    let text = wire.token.as_ref().or(wire.access_token.as_ref());
    let header = text.and_then(|text| secret_header(&Zeroizing::new(format!("Bearer {text}"))));
    header.ok_or_else(|| no_token("its answer has no token".to_owned()))
}

#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_counts() {
        let file = AuthFile::from_json(
            br#"{"auths":{"ghcr.io":{"auth":"YTox"},"ghcr.io/org":{"auth":"YToy"},
                "https://index.docker.io/v1/":{"auth":"YToz"},"bad.io":{"auth":"","identitytoken":"x"}}}"#,
        )
        .unwrap();
        let find = |image: &str| {
            file.find(&image.parse().unwrap())
                .map(|found| found.map(|text| text.to_string()))
        };
        assert_eq!(find("ghcr.io/org/app").unwrap().as_deref(), Some("a:2"));
        assert_eq!(find("ghcr.io/organic/app").unwrap().as_deref(), Some("a:1"));
        assert_eq!(find("busybox").unwrap().as_deref(), Some("a:3"));
        assert_eq!(find("quay.io/a").unwrap(), None);
        assert!(
            find("bad.io/a")
                .unwrap_err()
                .to_string()
                .contains("identity tokens")
        );
    }

    #[test]
    fn challenges_are_read_with_commas_in_their_scope() {
        let text = r#"Bearer realm="https://auth.io/token",service="r.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(text),
            Some(Challenge::Bearer {
                realm: "https://auth.io/token".to_owned(),
                service: Some("r.io".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
    }
}
