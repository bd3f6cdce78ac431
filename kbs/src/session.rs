//! The challenge, carried by the guest in a cookie that only the broker can write.
//!
//! Nothing is kept here, neither of a guest that only asked nor of one that answered, so any broker
//! with the same key takes the answer. An answer that is sent again is judged again, whole: it earns
//! at most another token for the key that the evidence binds, which its first sender already has.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{
    master::{KeyRing, MasterKeys, Wrapped},
    seal::SealError,
};

const CONTEXT: &str = "kbs challenge 1";
const NONCE_BYTES: usize = 32;
/// Characters of a cookie that is worth opening.
const COOKIE_CHARS: usize = 1024;

/// What a guest has to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Challenge {
    /// Base64 of random bytes.
    pub(crate) nonce: String,
    /// The kind that the guest said it is.
    pub(crate) tee: String,
    /// The name of the appraisal policies that it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
    /// Seconds since 1970.
    expires: u64,
}

/// Makes challenges and takes them back.
pub(crate) struct Challenges {
    keys: KeyRing,
    lifetime: Duration,
}

impl Challenges {
    pub(crate) fn new(keys: KeyRing, lifetime: Duration) -> Self {
        Self { keys, lifetime }
    }

    /// Looks for keys that were added; those that are known stay where that fails.
    pub(crate) fn reload_keys(&self) {
        if let Err(error) = self.keys.reload() {
            tracing::error!(%error, "the challenges' key cannot be read again");
        }
    }

    /// A challenge, and the cookie that carries it.
    pub(crate) fn issue(
        &self,
        tee: &str,
        policy: Option<String>,
        now: SystemTime,
    ) -> Result<(Challenge, String), SessionError> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let challenge = Challenge {
            nonce: BASE64_STANDARD.encode(nonce),
            tee: tee.to_owned(),
            policy,
            expires: seconds(now).saturating_add(self.lifetime.as_secs()),
        };
        let plain = serde_json::to_vec(&challenge).map_err(|_| SessionError::Foreign)?;
        let sealed = self.keys.wrap(CONTEXT, &plain)?;
        let text = BASE64_URL_SAFE_NO_PAD.encode(sealed.bytes);
        Ok((challenge, format!("{}.{text}", sealed.master)))
    }

    /// The challenge in a cookie, if it is ours and still holds.
    pub(crate) fn open(&self, cookie: &str, now: SystemTime) -> Result<Challenge, SessionError> {
        if cookie.len() > COOKIE_CHARS {
            return Err(SessionError::Foreign);
        }
        let (key, text) = cookie.split_once('.').ok_or(SessionError::Foreign)?;
        let sealed = Wrapped {
            master: key.to_owned(),
            bytes: BASE64_URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| SessionError::Foreign)?,
        };
        let plain = self.keys.open(CONTEXT, &sealed)?;
        let challenge: Challenge =
            serde_json::from_slice(&plain).map_err(|_| SessionError::Foreign)?;
        if challenge.expires <= seconds(now) {
            return Err(SessionError::Expired);
        }
        Ok(challenge)
    }
}

/// A cookie that cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the challenge is not of this broker: start again with `auth`")]
    Foreign,
    #[error("the challenge has expired: start again with `auth`")]
    Expired,
}

impl From<SealError> for SessionError {
    fn from(_: SealError) -> Self {
        Self::Foreign
    }
}

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{master::Source, seal::Sealer};

    const LIFE: Duration = Duration::from_secs(300);

    #[test]
    fn a_challenge_holds_for_its_time_at_every_broker_with_the_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), Sealer::new_key().as_bytes()).unwrap();
        let keys = || {
            KeyRing::read(Source::File(file.path().to_owned()))
                .ok()
                .unwrap()
        };
        let broker = || Challenges::new(keys(), LIFE);
        let challenges = broker();
        let now = SystemTime::now();
        let (challenge, cookie) = challenges.issue("sample", None, now).unwrap();
        assert_eq!(BASE64_STANDARD.decode(&challenge.nonce).unwrap().len(), 32);
        assert_eq!(challenges.open(&cookie, now), Ok(challenge.clone()));
        assert_eq!(
            challenges.open(&cookie, now + LIFE),
            Err(SessionError::Expired)
        );
        assert_eq!(broker().open(&cookie, now), Ok(challenge.clone()));

        // A key that is added seals from then on, and the old one still opens.
        crate::master::rotate(file.path()).unwrap();
        assert_eq!(broker().open(&cookie, now), Ok(challenge));
        let (_, newer) = broker().issue("sample", None, now).unwrap();
        assert_ne!(
            newer.split_once('.').unwrap().0,
            cookie.split_once('.').unwrap().0
        );
        challenges.reload_keys();
        assert!(challenges.open(&newer, now).is_ok());
    }

    #[test]
    fn a_cookie_of_another_broker_or_of_nobody_is_refused() {
        let ours = Challenges::new(KeyRing::ephemeral(), LIFE);
        let theirs = Challenges::new(KeyRing::ephemeral(), LIFE);
        let now = SystemTime::now();
        let (_, cookie) = theirs.issue("sample", None, now).unwrap();
        let long = "A".repeat(5000);
        for cookie in [cookie.as_str(), "", "%%", long.as_str()] {
            assert_eq!(ours.open(cookie, now), Err(SessionError::Foreign));
        }
    }
}
