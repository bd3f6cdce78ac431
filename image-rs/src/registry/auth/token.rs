//! Tokens at hand, and one place for each registry, repository and action where the next one is waited for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Challenge;
use crate::registry::RegistryError;
use crate::registry::send::Action;

/// What a token lasts that does not say; the token specification's own rule.
const LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// What a token lasts at most, whatever it says.
const LIFE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Repositories whose tokens are kept.
const SLOTS_MAX: usize = 1024;

/// An `Authorization` that was accepted once.
#[derive(Clone)]
pub(in crate::registry) struct Token {
    pub(in crate::registry) header: HeaderValue,
    until: Option<Instant>,
}

impl Token {
    /// One that lasts as long as the credentials.
    pub(in crate::registry) fn lasting(header: HeaderValue) -> Self {
        let until = None;
        Self { header, until }
    }

    /// One that was asked for at `asked`. It is renewed when a tenth of its life is left, because a request takes time.
    pub(in crate::registry) fn expiring(
        header: HeaderValue,
        asked: Instant,
        seconds: Option<u64>,
    ) -> Self {
        let life = seconds
            .map_or(LIFE_DEFAULT, Duration::from_secs)
            .min(LIFE_MAX);
        let until = Some(asked + life.mul_f64(0.9));
        Self { header, until }
    }

    pub(in crate::registry) fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Where the token of one registry, repository and action stands.
#[derive(Default)]
pub(in crate::registry) struct Slot {
    /// Counts what was asked for, so that who waited for the lock sees that another one has asked.
    number: AtomicU64,
    pub(in crate::registry) state: Mutex<State>,
}

#[derive(Default)]
pub(in crate::registry) struct State {
    /// What the registry wants; empty until it said so.
    pub(in crate::registry) challenges: Vec<Challenge>,
    /// The outcome of the last request for a token.
    pub(in crate::registry) outcome: Option<Result<Token, RegistryError>>,
}

impl Slot {
    pub(in crate::registry) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Keeps an outcome; only for who holds the lock of the state.
    pub(in crate::registry) fn keep(
        &self,
        state: &mut State,
        outcome: Result<Token, RegistryError>,
    ) -> Result<Token, RegistryError> {
        state.outcome = Some(outcome.clone());
        self.number.fetch_add(1, Ordering::Release);
        outcome
    }
}

/// Registry as it is dialled, repository, action.
type Key = (String, String, Action);

/// All slots.
#[derive(Clone, Default)]
pub(in crate::registry) struct Tokens(Arc<std::sync::Mutex<HashMap<Key, Arc<Slot>>>>);

impl Tokens {
    pub(in crate::registry) fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&key) {
            slots.clear();
        }
        slots.entry(key).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_ends_before_its_time_does() {
        let token =
            |seconds| Token::expiring(HeaderValue::from_static("x"), Instant::now(), seconds);
        for (seconds, life) in [(Some(100), 100), (None, 60), (Some(u64::MAX), 24 * 3600)] {
            let token = token(seconds);
            tokio::time::advance(Duration::from_secs(life * 8 / 10)).await;
            assert!(token.is_fresh(), "{life}");
            tokio::time::advance(Duration::from_secs(life / 10 + 1)).await;
            assert!(!token.is_fresh(), "{life}");
        }
        assert!(!token(Some(0)).is_fresh());
        assert!(Token::lasting(HeaderValue::from_static("x")).is_fresh());
    }

    #[test]
    fn each_repository_has_a_slot_of_its_own() {
        let tokens = Tokens::default();
        let key = |repository: &str, action| ("r.test".to_owned(), repository.to_owned(), action);
        let one = tokens.slot(key("a", Action::Pull));
        assert!(Arc::ptr_eq(&one, &tokens.slot(key("a", Action::Pull))));
        assert!(!Arc::ptr_eq(&one, &tokens.slot(key("b", Action::Pull))));
        assert!(!Arc::ptr_eq(&one, &tokens.slot(key("a", Action::Push))));
    }
}
