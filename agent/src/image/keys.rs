//! The broker as the source of an image's keys.

use std::sync::{Arc, Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError};
use async_trait::async_trait;
use attestation_agent::{Broker, BrokerError, ResourceUri};
use ocicrypt::{Key, KeyError, KeySource};
use zeroize::Zeroizing;

use super::Images;
use super::fault::{of_broker, of_named};

const NO_BROKER: &str = "this guest has no broker: it is a plain VM, or init-data names none";

impl Images {
    /// A secret of the owner's, through the pod's one session with its broker.
    ///
    /// # Errors
    ///
    /// The guest has no broker, or the secret did not come; a refusal has the broker's ticket.
    pub async fn secret(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        let Some(broker) = &self.broker else {
            let message = format!("{uri}: {NO_BROKER}");
            return Err(GuestError::new(
                ErrorCode::KeyUnwrapFailed,
                "attest",
                message,
            ));
        };
        match broker.resource(uri).await {
            Ok(secret) => Ok(secret.into_zeroizing()),
            Err(error) => Err(of_named(&error)),
        }
    }
}

/// For one pull: it remembers why a key did not come, in full. The pod's one session with its broker serves all keys;
/// those that are asked for at once wait for one attestation, and are then fetched side by side.
#[expect(missing_debug_implementations, reason = "holds the guest's session")]
pub struct BrokerKeys {
    broker: Option<Arc<Broker>>,
    failure: Mutex<Option<GuestError>>,
}

impl BrokerKeys {
    /// Keys of this broker; a guest without one has none.
    #[must_use]
    pub fn new(broker: Option<Arc<Broker>>) -> Self {
        Self {
            broker,
            failure: Mutex::default(),
        }
    }

    /// Why the first key that failed did not come.
    pub(super) fn failure(&self) -> Option<GuestError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn remember(&self, error: GuestError) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }
}

#[async_trait]
impl KeySource for BrokerKeys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        let unavailable = |reason: String| KeyError::Unavailable {
            kid: kid.to_owned(),
            reason,
        };
        let Some(broker) = &self.broker else {
            let reason = NO_BROKER;
            let message = format!("key {kid}: {reason}");
            self.remember(GuestError::new(ErrorCode::KeyUnwrapFailed, "pull", message));
            return Err(unavailable(reason.to_owned()));
        };
        let uri: ResourceUri = kid.parse().map_err(|error| {
            let message = format!("key {kid}: {error}");
            self.remember(GuestError::new(ErrorCode::KeyUnwrapFailed, "pull", message));
            unavailable(format!("{error}"))
        })?;
        match broker.resource(&uri).await {
            Ok(secret) => Ok(Key::new(secret.expose().to_vec())),
            Err(error) => {
                self.remember(of_broker(&error));
                let kid = kid.to_owned();
                Err(match error {
                    BrokerError::NotFound { .. } => KeyError::NotFound { kid },
                    BrokerError::Denied { .. } | BrokerError::Rejected { .. } => KeyError::Denied {
                        kid,
                        reason: error.to_string(),
                    },
                    other => KeyError::Unavailable {
                        kid,
                        reason: other.to_string(),
                    },
                })
            }
        }
    }
}
