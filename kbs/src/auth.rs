//! Who asks. Each handler takes exactly one of these, so none can be reached without its check.

use std::{marker::PhantomData, ops::Deref, sync::Arc, time::SystemTime};

use axum::extract::{FromRequestParts, RawPathParams};
use http::{HeaderMap, header, request::Parts};
use kbs_protocol::{ErrorKind, ResourcePath, SESSION_COOKIE};

use crate::{
    admin::{AdminError, Administrator, right::Right},
    broker::Broker,
    refusal::Refusal,
    session::Challenge,
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

/// A guest that holds a challenge of this broker which has not ended. A handler that takes one and a
/// body reads the body of nobody else.
#[derive(Debug)]
pub(crate) struct Challenged(pub(crate) Challenge);

/// Cookies that are tried: each costs a look at its signature.
const COOKIES: usize = 4;
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
        | AdminError::Critical
        | AdminError::AudienceForm
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

impl FromRequestParts<Arc<Broker>> for Challenged {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, Refusal> {
        let now = SystemTime::now();
        let mut detail = "no challenge in the cookie: start with `auth`".to_owned();
        for cookie in sessions(&parts.headers, CHALLENGE_MARK) {
            match broker.challenges.open(cookie, now) {
                Ok(challenge) => return Ok(Self(challenge)),
                Err(error) => detail = error.to_string(),
            }
        }
        Err(Refusal::new(ErrorKind::SessionNotFound, detail))
    }
}

impl FromRequestParts<Arc<Broker>> for Attested {
    type Rejection = Refusal;

    /// A cookie counts where it holds; else the next one does, and after them the bearer.
    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, Refusal> {
        let mut refused = None;
        let tokens = sessions(&parts.headers, TOKEN_MARK).chain(bearer(&parts.headers));
        for token in tokens {
            match broker.signer.verify(token) {
                Ok(claims) => return Ok(Self(claims)),
                Err(error) => refused = Some(error),
            }
        }
        let Some(error) = refused else {
            let detail = "no token: attest first";
            return Err(Refusal::new(ErrorKind::TokenNotFound, detail));
        };
        Err(no_token(&error))
    }
}

/// The refusal of a token.
pub(crate) fn no_token(error: &TokenError) -> Refusal {
    let kind = match error {
        TokenError::TooLarge | TokenError::Expired | TokenError::Foreign => {
            ErrorKind::TokenVerifierError
        }
        TokenError::Read { .. }
        | TokenError::KeyFile { .. }
        | TokenError::Key
        | TokenError::Sign => ErrorKind::StorageError,
    };
    Refusal::new(kind, error.to_string())
}

/// What the session's cookies carry that begins with a mark. A client may have several by one name,
/// such as one that another broker set.
fn sessions<'a>(headers: &'a HeaderMap, mark: &'static str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == SESSION_COOKIE)
        .filter_map(move |(_, value)| value.strip_prefix(mark))
        .take(COOKIES)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}
