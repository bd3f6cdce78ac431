//! Who asks. Each handler takes exactly one of these, so none can be reached without its check.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use axum::extract::{FromRequestParts, RawPathParams};
use http::{HeaderMap, header, request::Parts};
use kbs_protocol::{ErrorKind, ResourcePath, SESSION_COOKIE};

use crate::{
    admin::{AdminError, Administrator, right::Right},
    broker::Broker,
    refusal::Refusal,
    token::{Claims, TokenError},
};

/// Anybody: the handler needs no identity, by design of the protocol.
#[derive(Debug)]
pub(crate) struct Anyone;

/// An administrator who may do what the mark `R` stands for: with the resource that the path names, or
/// where it names none, with at least one.
#[derive(Debug)]
pub(crate) struct Admin<R> {
    administrator: Administrator,
    needs: PhantomData<R>,
}

impl<R: Right> Admin<R> {
    /// Whether they may do it with this resource: for handlers that give several.
    pub(crate) fn may_with(&self, path: &ResourcePath) -> bool {
        self.may(R::NEEDS, Some(&path.to_string()))
    }
}

impl<R> Deref for Admin<R> {
    type Target = Administrator;

    fn deref(&self) -> &Administrator {
        &self.administrator
    }
}

/// A guest whose token this broker signed and that still holds.
#[derive(Debug)]
pub(crate) struct Attested(pub(crate) Arc<Claims>);

/// What a cookie carries: a challenge before, a token after.
pub(crate) enum Session<'a> {
    Challenge(&'a str),
    Token(&'a str),
}

/// In front of a sealed challenge.
pub(crate) const CHALLENGE_MARK: &str = "c.";
/// In front of a token.
pub(crate) const TOKEN_MARK: &str = "t.";

impl FromRequestParts<Arc<Broker>> for Anyone {
    type Rejection = Refusal;

    async fn from_request_parts(_: &mut Parts, _: &Arc<Broker>) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl<R: Right> FromRequestParts<Arc<Broker>> for Admin<R> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, Refusal> {
        let token = bearer(&parts.headers).ok_or_else(|| {
            Refusal::new(
                ErrorKind::AdminAuthAccess,
                "no administrator's token: `kbs token` makes one",
            )
        })?;
        let administrator = broker.admins.verify(token).await.map_err(|e| refuse(&e))?;
        let path = named_resource(parts).await;
        if !administrator.may(R::NEEDS, path.as_deref()) {
            return Err(refuse(&AdminError::Permission {
                role: administrator.role,
                permission: R::NEEDS,
                place: path.map_or_else(String::new, |path| format!(" for {path}")),
            }));
        }
        Ok(Self {
            administrator,
            needs: PhantomData,
        })
    }
}

fn refuse(error: &AdminError) -> Refusal {
    let kind = match error {
        AdminError::Role { .. } | AdminError::NoRole { .. } | AdminError::Permission { .. } => {
            ErrorKind::AdminRoleDenied
        }
        AdminError::Unavailable { .. } => ErrorKind::IssuerUnavailable,
        AdminError::Token
        | AdminError::Audience { .. }
        | AdminError::Time { .. }
        | AdminError::Read { .. }
        | AdminError::Key { .. }
        | AdminError::Issuer { .. } => ErrorKind::AdminAuthAccess,
    };
    Refusal::new(kind, error.to_string())
}

/// The resource that the request's path names, where its route is one of a resource.
async fn named_resource(parts: &mut Parts) -> Option<String> {
    let named = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    let segment = |wanted: &str| {
        let mut named = named.iter();
        named.find_map(|(name, value)| (name == wanted).then_some(value))
    };
    Some(format!(
        "{}/{}/{}",
        segment("repository")?,
        segment("kind")?,
        segment("tag")?
    ))
}

impl FromRequestParts<Arc<Broker>> for Attested {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, Refusal> {
        let token = match session(&parts.headers) {
            Some(Session::Token(token)) => Some(token),
            Some(Session::Challenge(_)) | None => bearer(&parts.headers),
        };
        let token = token
            .ok_or_else(|| Refusal::new(ErrorKind::TokenNotFound, "no token: attest first"))?;
        broker.signer.verify(token).map(Self).map_err(|error| {
            let kind = match &error {
                TokenError::TooLarge | TokenError::Expired | TokenError::Foreign => {
                    ErrorKind::TokenVerifierError
                }
                TokenError::Read(_) | TokenError::Key | TokenError::Sign => ErrorKind::StorageError,
            };
            Refusal::new(kind, error.to_string())
        })
    }
}

/// The session's cookie, where there is one in a form of ours.
pub(crate) fn session(headers: &HeaderMap) -> Option<Session<'_>> {
    let value = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == SESSION_COOKIE).then_some(value))?;
    value.strip_prefix(CHALLENGE_MARK).map_or_else(
        || value.strip_prefix(TOKEN_MARK).map(Session::Token),
        |challenge| Some(Session::Challenge(challenge)),
    )
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}
