//! The broker's client: one attestation serves every secret of the pod.
//!
//! The first request attests; those that come meanwhile wait for it and share its outcome. The token
//! is renewed shortly before its end (see `renewal.rs`), and once when the broker no longer takes it. A refusal that
//! another attestation cannot cure is final at once.

mod config;
mod error;
mod exchange;
mod handshake;
mod renewal;
mod retry;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use evidence::init_data::InitData;
use kbs_protocol::{ErrorKind, Released, ResourceUri, Secret, TeeKeyPair, limit::JWE_BYTES};
use tokio::{
    sync::{Mutex, MutexGuard, watch},
    time::{Instant, timeout_at},
};
use transport::{Client, Dial};

pub use config::{BrokerConfig, ConfigError};
pub use error::{BrokerError, Detail, Step};

use crate::{Attester, EventLog};
pub use exchange::Traced;
use exchange::{Exchange, Failure, Refusal};
use handshake::{Attested, Challenged, Identity};
use retry::{Deadline, Patience, Transient};

/// The client of one broker, for one guest. It is shared by reference.
pub struct Broker {
    exchange: Exchange,
    identity: Identity,
    deadline: Duration,
    /// Attestations that ended, well or not; read before the lock is taken.
    ended: AtomicU64,
    state: Mutex<State>,
    /// Whether the token was used since it came.
    used: AtomicBool,
    /// When the token in use is to be renewed without anybody's asking.
    renewal: watch::Sender<Option<Instant>>,
}

/// What the guest knows of its own attestation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attestation {
    /// Which one it is, counted from one; it grows when the token is renewed.
    pub number: u64,
    /// How long it took, all its attempts included.
    pub took: Duration,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    last_failure: Option<BrokerError>,
    /// How often what the guest is governed by has changed.
    changes: u64,
}

struct Session {
    attested: Attested,
    attestation: Attestation,
}

impl Broker {
    /// A client of the broker over a dialler. Nothing is sent yet.
    ///
    /// # Errors
    /// When the URL or the certificate cannot be used.
    pub fn new(
        config: &BrokerConfig,
        dial: Arc<dyn Dial>,
        attester: Arc<dyn Attester>,
        init_data: Option<&InitData>,
    ) -> Result<Self, ConfigError> {
        let (base, client) = config.check()?;
        Ok(Self {
            exchange: Exchange::new(Client::new(dial, client)?, base),
            identity: Identity {
                attester,
                keys: Arc::new(TeeKeyPair::generate(kbs_protocol::KeyKind::default())?),
                init_data: init_data.map(|data| data.text().to_owned()),
                log: None,
            },
            deadline: config.deadline,
            ended: AtomicU64::new(0),
            state: Mutex::default(),
            used: AtomicBool::new(false),
            renewal: watch::Sender::new(None),
        })
    }

    /// The same with the log of what happens in the guest. Registers that the evidence has answer for it;
    /// where there are none, it goes with the evidence to a broker that asks for it.
    #[must_use]
    pub fn with_event_log(mut self, log: Arc<EventLog>) -> Self {
        self.identity.log = Some(log);
        self
    }

    /// Names the spans (W3C's `traceparent`) under which the broker is asked, for a token and for secrets, until
    /// what is returned is dropped. Of works at the same time the one that began last counts; what does not read
    /// as a header is left out.
    pub fn trace(&self, attest: &str, resource: &str) -> Traced<'_> {
        self.exchange.trace(attest, resource)
    }

    /// Attests now, unless that was done and is still of use.
    ///
    /// # Errors
    /// When the guest cannot be proved; the variant says why.
    pub async fn attest(&self) -> Result<Attestation, BrokerError> {
        let deadline = Deadline::after(self.deadline);
        let (session, _) = self.session(deadline, None, None).await?;
        Ok(session.attestation)
    }

    /// Does what changes the guest while nothing is asked for and nobody attests, and drops the token: the next one
    /// is of the changed guest. A change that fails drops none.
    ///
    /// # Errors
    /// Those of the change.
    pub async fn change<E>(&self, change: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let mut state = self.state.lock().await;
        change.await?;
        state.session = None;
        state.changes += 1;
        Ok(())
    }

    /// The broker's token for this guest. It attests first where that is needed.
    ///
    /// # Errors
    /// When the guest cannot be proved; the variant says why.
    pub async fn token(&self) -> Result<String, BrokerError> {
        let deadline = Deadline::after(self.deadline);
        let (session, _) = self.session(deadline, None, None).await?;
        Ok(session.attested.token.text().to_owned())
    }

    /// A secret of the broker, opened. It attests first where that is needed.
    ///
    /// # Errors
    /// When the secret did not come; the variant says why.
    pub async fn resource(&self, uri: &ResourceUri) -> Result<Secret, BrokerError> {
        let deadline = Deadline::after(self.deadline);
        let (session, released) = self.session(deadline, None, Some(uri)).await?;
        let first = match released {
            Some(released) => self.take(deadline, &session, uri, released).await,
            None => self.fetch(deadline, &session, uri).await,
        };
        match first {
            Err(Failure::Refusal(refusal)) if is_stale(&refusal) => {
                let number = session.attestation.number;
                let (session, _) = self.session(deadline, Some(number), None).await?;
                self.fetch(deadline, &session, uri).await
            }
            first => first,
        }
        .map_err(|failure| refused(uri, failure))
    }

    /// The attestation that is in use, if there is one. It does not wait.
    #[must_use]
    pub fn attestation(&self) -> Option<Attestation> {
        let state = self.state.try_lock().ok()?;
        Some(state.session.as_ref()?.attestation)
    }

    async fn fetch(
        &self,
        deadline: Deadline,
        session: &Session,
        uri: &ResourceUri,
    ) -> Result<Secret, Failure> {
        let path = format!("resource/{}", uri.path());
        let attested = &session.attested;
        let ask = || {
            let bearer = attested.token.bearer();
            self.exchange.get(Step::Resource, &path, bearer, JWE_BYTES)
        };
        let answer = deadline.retry(Step::Resource, ask).await?;
        Ok(attested.open(uri, &answer.json()?)?)
    }

    /// What came with the token. Where the broker was busy with that alone, it is asked again.
    async fn take(
        &self,
        deadline: Deadline,
        session: &Session,
        uri: &ResourceUri,
        released: Released,
    ) -> Result<Secret, Failure> {
        match released {
            Released::Sealed(jwe) => Ok(session.attested.open(uri, &jwe)?),
            Released::Refused { status, error } => {
                let refusal = Failure::Refusal(Refusal::beside(Step::Resource, status, error));
                match refusal.patience() {
                    Patience::Final => Err(refusal),
                    Patience::Short | Patience::Whole => self.fetch(deadline, session, uri).await,
                }
            }
        }
    }

    /// The session in use, or a new one. Whoever waited while another attested takes its outcome, so
    /// that a broker which is down is asked once and not once for each secret. Beside a new one is what the broker
    /// answered to the request for what is wanted, where it takes that with the evidence.
    async fn session(
        &self,
        deadline: Deadline,
        stale: Option<u64>,
        wanted: Option<&ResourceUri>,
    ) -> Result<(Arc<Session>, Option<Released>), BrokerError> {
        let ended_before = self.ended.load(Ordering::Acquire);
        let mut state = timeout_at(deadline.at, self.state.lock())
            .await
            .map_err(|_| deadline.error(Step::Attest))?;
        self.used.store(true, Ordering::Relaxed);
        if let Some(session) = state.usable(stale) {
            return Ok((session, None));
        }
        let ended = self.ended.load(Ordering::Acquire);
        if let Some(failure) = state.last_failure.as_ref().filter(|_| ended > ended_before) {
            return Err(failure.clone());
        }
        self.establish(deadline, &mut state, ended + 1, wanted)
            .await
    }

    async fn establish(
        &self,
        deadline: Deadline,
        state: &mut MutexGuard<'_, State>,
        number: u64,
        wanted: Option<&ResourceUri>,
    ) -> Result<(Arc<Session>, Option<Released>), BrokerError> {
        let started = Instant::now();
        let outcome = self.handshake(deadline, wanted).await;
        let took = started.elapsed();
        self.ended.store(number, Ordering::Release);
        let tee = self.identity.attester.kind();
        match outcome {
            Ok((attested, released)) => {
                let session = self.install(state, attested, Attestation { number, took });
                Ok((session, released))
            }
            Err(error) => {
                tracing::warn!(%tee, number, %error, "not attested");
                state.session = None;
                state.last_failure = Some(error.clone());
                Err(error)
            }
        }
    }
}

impl Broker {
    async fn handshake(
        &self,
        deadline: Deadline,
        wanted: Option<&ResourceUri>,
    ) -> Result<(Attested, Option<Released>), BrokerError> {
        let handshake = || async {
            let challenged = Challenged::ask(&self.exchange, &self.identity).await?;
            challenged
                .answer(&self.exchange, &self.identity, wanted)
                .await
        };
        deadline.retry(Step::Attest, handshake).await
    }

    fn install(
        &self,
        state: &mut MutexGuard<'_, State>,
        attested: Attested,
        attestation: Attestation,
    ) -> Arc<Session> {
        let Attestation { number, took } = attestation;
        let tee = self.identity.attester.kind();
        tracing::info!(%tee, number, took_ms = took.as_millis(), "attested");
        let early = attested.token.renew_early();
        let session = Arc::new(Session {
            attested,
            attestation,
        });
        state.session = Some(session.clone());
        state.last_failure = None;
        self.renewal.send_replace(early);
        session
    }
}

impl State {
    fn usable(&self, stale: Option<u64>) -> Option<Arc<Session>> {
        let session = self.session.as_ref()?;
        let is_stale = stale == Some(session.attestation.number);
        let is_usable = !is_stale && session.attested.token.is_fresh(Instant::now());
        is_usable.then(|| session.clone())
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

/// Only what another attestation can cure. Trustee answers 401 to everything, a denial and a missing
/// resource too, and those stay what they are.
fn is_stale(refusal: &Refusal) -> bool {
    refusal.status == 401 && !is_denial(refusal) && !is_missing(refusal)
}

fn is_denial(refusal: &Refusal) -> bool {
    refusal.status == 403 || refusal.kind() == Some(ErrorKind::PolicyDeny)
}

fn is_missing(refusal: &Refusal) -> bool {
    /// Trustee's name for what its store does not have.
    const TRUSTEE: &str = "/PluginInternalError";
    let is_trustees = |error_type: &str| error_type.ends_with(TRUSTEE);
    refusal.status == 404
        || refusal.kind() == Some(ErrorKind::ResourceNotFound)
        || refusal
            .information
            .as_ref()
            .is_some_and(|i| is_trustees(&i.error_type))
}

fn refused(uri: &ResourceUri, failure: Failure) -> BrokerError {
    match failure {
        Failure::Refusal(refusal) if is_missing(&refusal) => BrokerError::NotFound {
            resource: uri.clone(),
            detail: refusal.detail(),
            ticket: refusal.ticket(),
        },
        // A second 401, with a token that is a moment old, is a denial as well.
        Failure::Refusal(refusal) if is_denial(&refusal) || refusal.status == 401 => {
            BrokerError::Denied {
                resource: uri.clone(),
                detail: refusal.detail(),
                ticket: refusal.ticket(),
            }
        }
        other => other.into_error(),
    }
}
