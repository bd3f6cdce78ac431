//! One request to one place: its URL, its credentials, and its attempts.
//!
//! ```text
//! send: attempts and pauses ─► send_authorised: token, one challenge ─► send_once: scheme, redirects
//! ```
//!
//! A challenge counts only when the registry itself made it: what stands behind a redirect cannot ask for credentials.

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use transport::{Body, Redirected, bytes_capped};

use super::auth::{self, AuthFileError, Challenge, Credential, Slot, State};
use super::rules::Site;
use super::{Registry, RegistryError, Security, node};

/// Cap on the body of an error answer.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// What stands for the words of a place that we were redirected to.
const REDIRECTED: &[u8] = b"the words of a place behind a redirect are not told";

/// What is to be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Pull,
    Push,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) enum Address {
    /// At the place itself, behind the repository's name.
    Path(String),
    /// The same in the extensions of the distribution API.
    Extension(String),
    /// Where the place said: uploads.
    Url(String),
}

/// One request to a repository.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) address: Address,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) site: &'a Site,
    pub(super) action: Action,
    /// What to call it in an error.
    pub(super) what: String,
    /// Whether no other place can be asked.
    pub(super) is_last: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: String, site: &'a Site, what: String) -> Self {
        Self {
            method: Method::GET,
            address: Address::Path(path),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            site,
            action: Action::Pull,
            what,
            is_last: true,
        }
    }

    /// What a token is asked for: just this.
    pub(super) fn scope(&self) -> String {
        let actions = match self.action {
            Action::Pull => "pull",
            Action::Push => "pull,push",
        };
        format!("repository:{}:{actions}", self.site.image.repository())
    }

    fn url(&self, scheme: &str) -> String {
        let image = &self.site.image;
        let (host, repository) = if self.site.is_node {
            (node::HOST, node::REPOSITORY)
        } else {
            (image.endpoint(), image.repository())
        };
        match &self.address {
            Address::Url(url) => url.clone(),
            Address::Path(path) => format!("{scheme}://{host}/v2/{repository}/{path}"),
            Address::Extension(path) => {
                format!("{scheme}://{host}/extensions/v2/{repository}/{path}")
            }
        }
    }
}

impl Registry {
    /// Sends, and makes every status but 2xx an error.
    pub(super) async fn send_ok(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let answer = self.send(ask).await?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(self.refusal(ask, answer).await)
        }
    }

    /// Sends, again and again where that may help. Who is busy to the end is an error, too.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let retry = &self.config.retry;
        let attempts = self.attempts(ask.site, ask.is_last);
        let mut attempt = 1;
        loop {
            let result = self.send_authorised(ask).await;
            let (again, asked) = match &result {
                Ok(answer) => (busy(answer.status()), retry.asked(answer.headers())),
                Err(error) => (error.is_transient(), None),
            };
            if !again {
                return result;
            }
            // Another place is there at once; this one wants us to wait.
            if attempt >= attempts || (asked.is_some() && !ask.is_last) {
                return match result {
                    Ok(answer) => Err(still_busy(ask, attempt, answer).await),
                    Err(error) => Err(error),
                };
            }
            let pause = asked.unwrap_or_else(|| retry.pause(attempt));
            tracing::debug!(what = ask.what, attempt, ?pause, "a request is tried again");
            drop(result);
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Sends with the token at hand, and once more with the answer to a challenge.
    pub(super) async fn send_authorised(
        &self,
        ask: &Ask<'_>,
    ) -> Result<Response<Body>, RegistryError> {
        // It has nobody's credentials, and what it challenges is its own business.
        if ask.site.is_node {
            return self.send_once(ask, None).await;
        }
        let image = &ask.site.image;
        let key = (
            image.endpoint().to_owned(),
            image.repository().to_owned(),
            ask.action,
        );
        let slot = self.tokens.slot(key);
        let (seen, token) = self.token_at_hand(&slot, ask).await?;
        let answer = self.send_once(ask, token).await?;
        let is_redirected = answer.extensions().get::<Redirected>().is_some();
        if answer.status() != StatusCode::UNAUTHORIZED || is_redirected {
            return Ok(answer);
        }
        let challenges = Challenge::all(answer.headers());
        match self.next_token(&slot, seen, challenges, ask).await? {
            Some(token) => self.send_once(ask, Some(token)).await,
            None => Ok(answer),
        }
    }

    /// The token that is known, renewed if its time is over.
    async fn token_at_hand(
        &self,
        slot: &Slot,
        ask: &Ask<'_>,
    ) -> Result<(u64, Option<HeaderValue>), RegistryError> {
        let before = slot.number();
        let mut state = slot.state.lock().await;
        let token = match &state.outcome {
            None => None,
            Some(Ok(token)) if token.is_fresh() => Some(token.header.clone()),
            Some(outcome) if slot.number() != before => Some(outcome.clone()?.header),
            Some(_) => self.ask_token(slot, &mut state, ask).await?,
        };
        Ok((slot.number(), token))
    }

    /// The answer to challenges that came while the token of number `seen` was the newest.
    async fn next_token(
        &self,
        slot: &Slot,
        seen: u64,
        challenges: Vec<Challenge>,
        ask: &Ask<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut state = slot.state.lock().await;
        match &state.outcome {
            Some(outcome) if slot.number() != seen => Ok(Some(outcome.clone()?.header)),
            _ => {
                state.challenges = challenges;
                self.ask_token(slot, &mut state, ask).await
            }
        }
    }

    async fn ask_token(
        &self,
        slot: &Slot,
        state: &mut State,
        ask: &Ask<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let credentials = |source| RegistryError::Credentials {
            what: ask.what.clone(),
            source,
        };
        let image = &ask.site.image;
        let credential = self.config.auth.find(image).map_err(credentials)?;
        if let ([Challenge::Basic], Some(Credential::Identity(_))) =
            (state.challenges.as_slice(), &credential)
        {
            return Err(credentials(AuthFileError::NoService(
                image.registry().to_owned(),
            )));
        }
        let http = self.client(ask.site.security);
        let answered = auth::answer(http, &state.challenges, credential.as_ref(), ask).await;
        match answered.transpose() {
            None => Ok(None),
            Some(outcome) => Ok(Some(slot.keep(state, outcome)?.header)),
        }
    }

    /// Sends once. Where the owner allows any security, TLS is tried first, and what was spoken is kept in mind.
    async fn send_once(
        &self,
        ask: &Ask<'_>,
        token: Option<HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        let host = ask.site.image.endpoint();
        let scheme = self.scheme(ask.site);
        let url = self.url(ask);
        let sent = self.transmit(ask, url, token.clone()).await;
        if scheme.is_some() || matches!(ask.address, Address::Url(_)) {
            return sent;
        }
        match sent {
            Ok(answer) => {
                self.schemes.keep(host, "https");
                Ok(answer)
            }
            Err(error) if speaks_no_tls(&error, host) => {
                match self.transmit(ask, ask.url("http"), token).await {
                    Ok(answer) => {
                        self.schemes.keep(host, "http");
                        Ok(answer)
                    }
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The URL of a request, with the scheme that its place is known to speak.
    pub(super) fn url(&self, ask: &Ask<'_>) -> String {
        ask.url(self.scheme(ask.site).unwrap_or("https"))
    }

    fn scheme(&self, site: &Site) -> Option<&'static str> {
        match site.security {
            Security::Verified => Some("https"),
            Security::PlainHttp => Some("http"),
            Security::Insecure => self.schemes.of(site.image.endpoint()),
        }
    }

    async fn transmit(
        &self,
        ask: &Ask<'_>,
        url: String,
        token: Option<HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        let request = Request::builder().method(ask.method.clone()).uri(url);
        let mut request = request
            .body(ask.body.clone())
            .map_err(|error| RegistryError::Url {
                what: ask.what.clone(),
                reason: error.to_string(),
            })?;
        *request.headers_mut() = ask.headers.clone();
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        let http = self.client_to(ask.site);
        let sent = match ask.method {
            Method::GET | Method::HEAD if !ask.site.is_node => http.send_following(request).await,
            _ => http.send(request).await,
        };
        sent.map_err(|source| RegistryError::Unreachable {
            what: ask.what.clone(),
            source,
        })
    }

    /// The error that an answer without success is; the registry's own words are told, cut short.
    pub(super) async fn refusal(&self, ask: &Ask<'_>, answer: Response<Body>) -> RegistryError {
        let status = answer.status();
        let mut error = RegistryError::from_status(&ask.what, status, &told(answer).await);
        let image = &ask.site.image;
        if let RegistryError::Unauthorized { detail, .. } = &mut error
            && !ask.site.is_node
            && matches!(self.config.auth.find(image), Ok(None))
        {
            let registry = image.registry();
            detail.push_str(&format!("; no credentials for {registry} were given"));
        }
        error
    }
}

async fn still_busy(ask: &Ask<'_>, attempts: u32, answer: Response<Body>) -> RegistryError {
    let status = answer.status();
    RegistryError::busy(&ask.what, status, attempts, &told(answer).await)
}

/// What an error may tell of an answer's body. Of one from behind a redirect nothing: a registry could lead us to a
/// service that only we reach, and the host, which sees our errors, would read its answer.
pub(super) async fn told(answer: Response<Body>) -> Bytes {
    if answer.extensions().get::<Redirected>().is_some() {
        return Bytes::from_static(REDIRECTED);
    }
    let body = bytes_capped(answer.into_body(), ERROR_BYTES_MAX).await;
    body.unwrap_or_default()
}

/// A registry that may do better in a moment.
pub(super) fn busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether a place may still speak plain HTTP. Without a port in its name that is another port, which may be the only
/// one that it listens on.
fn speaks_no_tls(error: &RegistryError, host: &str) -> bool {
    use transport::{Error, Phase};
    let RegistryError::Unreachable { source, .. } = error else {
        return false;
    };
    let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
    match source {
        // A server of plain HTTP answers the first bytes of TLS with an error, or waits for more.
        Error::Tls { .. } => true,
        Error::Dial { .. } => !has_port,
        Error::Timeout { phase, .. } => {
            *phase == Phase::Tls || (*phase == Phase::Dial && !has_port)
        }
        _ => false,
    }
}
