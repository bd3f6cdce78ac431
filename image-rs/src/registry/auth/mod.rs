//! As whom a registry is spoken to: credentials, the answers to its challenges, and the tokens they bring.
//!
//! A token is kept for one registry, one repository and one action, and is never sent to another. What is asked of a
//! token service is what we are about to do, whatever scope the registry wrote into its challenge. Requests that run
//! side by side share one request for a token, and one refusal.

mod challenge;
mod file;
mod token;

pub use file::{AuthFile, AuthFileError};

pub(super) use challenge::Challenge;
pub(super) use file::Credential;
pub(super) use token::{Slot, State, Token, Tokens};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, StatusCode};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::time::Instant;
use transport::bytes_capped;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::send::{Ask, busy, told};
use super::{RegistryError, Security};
use crate::shown::shown;

/// Cap on the answer of a token service, in bytes; real tokens have some thousand.
const TOKEN_BYTES_MAX: usize = 256 * 1024;
/// Who we are to a token service that gives tokens for an identity.
const CLIENT_ID: &str = "cloister";

/// The `Authorization` that answers the challenges; `None` when there is nothing to answer with.
pub(super) async fn answer(
    http: &transport::Client,
    challenges: &[Challenge],
    credential: Option<&Credential>,
    ask: &Ask<'_>,
) -> Result<Option<Token>, RegistryError> {
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer { realm, service } => Some((realm, service.as_deref())),
        Challenge::Basic => None,
    });
    match (bearer, credential) {
        (Some(_), Some(Credential::Token(token))) => Ok(bearer_header(token).map(Token::lasting)),
        (Some((realm, service)), credential) => {
            let service = Service {
                http,
                realm,
                service,
                ask,
            };
            service.token(credential).await.map(Some)
        }
        (None, Some(Credential::Password(pair))) if challenges.contains(&Challenge::Basic) => {
            Ok(basic(pair).map(Token::lasting))
        }
        (None, _) => Ok(None),
    }
}

/// A token service, and what it is asked for.
struct Service<'a> {
    http: &'a transport::Client,
    realm: &'a str,
    service: Option<&'a str>,
    ask: &'a Ask<'a>,
}

impl Service<'_> {
    async fn token(&self, credential: Option<&Credential>) -> Result<Token, RegistryError> {
        let asked = Instant::now();
        let request = match credential {
            Some(Credential::Identity(identity)) => self.exchange(identity)?,
            Some(Credential::Password(pair)) => self.query(basic(pair))?,
            Some(Credential::Token(_)) | None => self.query(None)?,
        };
        let sent = match request.method() {
            &http::Method::GET => self.http.send_following(request).await,
            _ => self.http.send(request).await,
        };
        let answer =
            sent.map_err(|error| self.no_token(error.is_transient(), error.to_string()))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    RegistryError::from_status(&self.ask.what, status, &told(answer).await)
                }
                _ => self.no_token(busy(status), format!("status {status}")),
            });
        }
        let body = bytes_capped(answer.into_body(), TOKEN_BYTES_MAX).await;
        let body = body.map_err(|error| self.no_token(error.is_transient(), error.to_string()))?;
        let wire: Wire = serde_json::from_slice(&body)
            .map_err(|_| self.no_token(false, "its answer is not JSON".to_owned()))?;
        let text = [&wire.token, &wire.access_token].into_iter().flatten();
        let text = text.into_iter().find(|text| !text.is_empty());
        let header = text.and_then(|text| bearer_header(text));
        let header = header
            .ok_or_else(|| self.no_token(false, "its answer has no usable token".to_owned()))?;
        Ok(Token::expiring(header, asked, wire.expires_in))
    }

    /// `GET`, with a password or as nobody.
    fn query(&self, credentials: Option<HeaderValue>) -> Result<Request<Bytes>, RegistryError> {
        let mut url = self.url()?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &self.ask.scope());
        }
        let mut request = self.build(Request::get(url.as_str()), Bytes::new())?;
        if let Some(value) = credentials {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// `POST` with `grant_type=refresh_token`, the way of identity tokens.
    fn exchange(&self, identity: &str) -> Result<Request<Bytes>, RegistryError> {
        let url = self.url()?;
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &self.ask.scope())
            .append_pair("refresh_token", identity);
        if let Some(service) = self.service {
            form.append_pair("service", service);
        }
        let body = Bytes::from_owner(Zeroizing::new(form.finish().into_bytes()));
        let mut request = self.build(Request::post(url.as_str()), body)?;
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form_type);
        Ok(request)
    }

    fn build(
        &self,
        builder: http::request::Builder,
        body: Bytes,
    ) -> Result<Request<Bytes>, RegistryError> {
        let json = HeaderValue::from_static("application/json");
        let request = builder.header(ACCEPT, json).body(body);
        request.map_err(|error| self.bad_realm(error.to_string()))
    }

    /// The realm, which gets our credentials: TLS, unless the owner does without it for this registry.
    fn url(&self) -> Result<url::Url, RegistryError> {
        let url = url::Url::parse(self.realm).map_err(|error| self.bad_realm(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.bad_realm("it has a user in it".to_owned()));
        }
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.ask.site.security != Security::Verified => Ok(url),
            "http" => Err(self
                .bad_realm("it is not https, and the registry is not named insecure".to_owned())),
            other => Err(self.bad_realm(format!("the scheme {other} is not spoken"))),
        }
    }

    fn bad_realm(&self, reason: String) -> RegistryError {
        RegistryError::Realm {
            what: self.ask.what.clone(),
            realm: self.shown(),
            reason,
        }
    }

    fn no_token(&self, transient: bool, detail: String) -> RegistryError {
        RegistryError::Token {
            what: self.ask.what.clone(),
            realm: self.shown(),
            transient,
            detail,
        }
    }

    /// Without a user, and without a query, in which there may be a secret.
    fn shown(&self) -> String {
        let text = match url::Url::parse(self.realm) {
            Ok(url) => {
                let port = url.port().map(|port| format!(":{port}"));
                format!(
                    "{}://{}{}{}",
                    url.scheme(),
                    url.host_str().unwrap_or_default(),
                    port.unwrap_or_default(),
                    url.path()
                )
            }
            Err(_) => self
                .realm
                .split(['?', '@'])
                .next()
                .unwrap_or_default()
                .to_owned(),
        };
        shown(&text)
    }
}

fn basic(pair: &str) -> Option<HeaderValue> {
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair)));
    secret_header(&text)
}

fn bearer_header(token: &str) -> Option<HeaderValue> {
    secret_header(&Zeroizing::new(format!("Bearer {token}")))
}

/// Marked sensitive, so that no log of headers shows it.
fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
struct Wire {
    token: Option<String>,
    access_token: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<u64>,
}

/// Some services write the number as text, or one that cannot be; then the token lasts as long as one that says
/// nothing.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    })
}
