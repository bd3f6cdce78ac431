//! Tokens that were verified a moment ago: a guest fetches several resources with one token, and its
//! signature is the same each time.
//!
//! A token is found by its SHA-256, so that only the very bytes that were verified are taken again;
//! its end is looked at each time. What is kept is bounded by the bytes of the tokens: where the young
//! half is full it becomes the old one, and what nobody asked for since is forgotten.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

/// Bytes of tokens in each half. Claims in memory are some times as large as their token.
const HALF_BYTES: usize = 512 * 1024;

type Key = [u8; 32];

/// The tokens.
pub(crate) struct Verified<C>(Mutex<Halves<C>>);

struct Halves<C> {
    young: HashMap<Key, Kept<C>>,
    old: HashMap<Key, Kept<C>>,
    /// Bytes of tokens in the young half.
    bytes: usize,
}

struct Kept<C> {
    claims: Arc<C>,
    bytes: usize,
}

impl<C> Default for Verified<C> {
    fn default() -> Self {
        Self(Mutex::new(Halves {
            young: HashMap::new(),
            old: HashMap::new(),
            bytes: 0,
        }))
    }
}

impl<C> Verified<C> {
    /// The claims of a token that is kept, and else those that `verify` finds, which are kept then.
    pub(crate) fn or<E>(
        &self,
        token: &str,
        verify: impl FnOnce() -> Result<C, E>,
    ) -> Result<Arc<C>, E> {
        let key = Sha256::digest(token).into();
        if let Some(claims) = self.halves(|halves| halves.find(&key)) {
            return Ok(claims);
        }
        let claims = Arc::new(verify()?);
        let kept = Kept {
            claims: Arc::clone(&claims),
            bytes: token.len(),
        };
        self.halves(|halves| halves.keep(key, kept));
        Ok(claims)
    }

    fn halves<T>(&self, act: impl FnOnce(&mut Halves<C>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<C> Halves<C> {
    fn find(&mut self, key: &Key) -> Option<Arc<C>> {
        if let Some(kept) = self.young.get(key) {
            return Some(Arc::clone(&kept.claims));
        }
        let kept = self.old.remove(key)?;
        let claims = Arc::clone(&kept.claims);
        self.keep(*key, kept);
        Some(claims)
    }

    fn keep(&mut self, key: Key, kept: Kept<C>) {
        if self.bytes + kept.bytes > HALF_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += kept.bytes;
        if let Some(before) = self.young.insert(key, kept) {
            self.bytes -= before.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_verified_once_and_what_fails_is_not_kept() {
        let verified = Verified::default();
        let refused = verified.or("a", || Err("refused"));
        assert_eq!(refused.unwrap_err(), "refused");
        let first = verified.or("a", || Ok::<_, &str>("claims")).unwrap();
        let again = verified.or("a", || Err("asked again")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(verified.or("b", || Err("new")).unwrap_err(), "new");
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_bounded() {
        let verified = Verified::default();
        let token = |number: usize| format!("{number:01000}");
        for number in 0..HALF_BYTES / 100 {
            verified
                .or(&token(number), || Ok::<_, ()>("claims"))
                .unwrap();
            verified.or(&token(0), || Err("forgotten")).unwrap();
        }
        assert!(verified.or(&token(1), || Err(())).is_err());
        let kept = verified.halves(|halves| halves.young.len() + halves.old.len());
        assert!(kept * 1000 <= 2 * HALF_BYTES, "{kept}");
    }
}
