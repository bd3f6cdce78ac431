//! One caller's view of the services: each request passes the owner's policy, whichever interface it came by.

use std::sync::Arc;

use kbs_protocol::{ResourceUri, Secret};
use ocicrypt::keyprovider::{Input, KeyUnwrapResults, Operation, Output, WireBytes};
use ocicrypt::packet::Packet;
use serde_json::Value;

use super::hold::{Counts, Place};
use super::{Abilities, Ask, Authorize, Caller, MountRequest, Reading, Refused};
use crate::sealed::{Content, SealedError};
use crate::{Hub, HubError};

/// Requests at once, of all callers and of one.
const REQUESTS: usize = 64;
const OF_ONE: usize = 16;
/// Characters of a part of an event.
const EVENT_CHARS: usize = 4096;

/// What a mount may say: options and flags, and bytes of all its words.
const MOUNT_WORDS: usize = 64;
const MOUNT_BYTES: usize = 16 * 1024;

/// Whose events the guest records itself: no workload says that an image was pulled.
const RESERVED: [&str; 2] = ["cloister", "github.com/confidential-containers"];

/// What all callers share.
pub(super) struct Desk {
    pub(super) hub: Arc<Hub>,
    pub(super) authorize: Arc<dyn Authorize>,
    abilities: Abilities,
    requests: Arc<Counts>,
}

impl Desk {
    pub(super) fn new(hub: Arc<Hub>, authorize: Arc<dyn Authorize>, abilities: Abilities) -> Self {
        Self {
            hub,
            authorize,
            abilities,
            requests: Counts::new(REQUESTS, OF_ONE),
        }
    }
}

/// The services for one caller.
#[derive(Clone)]
pub struct Client {
    desk: Arc<Desk>,
    caller: Arc<Caller>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Client");
        debug
            .field("caller", &self.caller.id)
            .finish_non_exhaustive()
    }
}

/// What the services are.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Info {
    /// Of this program.
    pub version: &'static str,
    /// The kind of TEE.
    pub tee: &'static str,
}

/// A request that was not granted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The owner's policy.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too much at once.
    #[error(
        "more than {OF_ONE} requests of one caller at once, or {REQUESTS} of all: ask again later"
    )]
    Busy,
    /// The request.
    #[error("{0}")]
    Invalid(String),
    /// What this guest does not do.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The key that would verify a sealed secret. One text for all causes: they would tell of resources that the
    /// caller does not get.
    #[error("the key that verifies the sealed secret cannot be had from the broker")]
    VerificationKey,
    /// Nothing was measured.
    #[error("not measured: {0}")]
    Measure(String),
    /// A volume was not mounted.
    #[error("{0}")]
    Mount(String),
    /// The service.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl Client {
    pub(super) fn new(desk: Arc<Desk>, caller: Caller) -> Self {
        Self {
            desk,
            caller: Arc::new(caller),
        }
    }

    /// The caller.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// A resource, by its URI or by the path in it.
    ///
    /// # Errors
    /// Says whether the name, the policy or the broker is against it.
    pub async fn resource(&self, name: &str) -> Result<Secret, ApiError> {
        let _turn = self.turn()?;
        let uri = uri(name)?;
        self.allow(&Ask::Resource {
            uri: &uri,
            reading: Reading::Get,
        })?;
        Ok(self.desk.hub.resource(&uri).await?)
    }

    /// A sealed secret's content. The policy is asked about its resource, and before that about the key that verifies
    /// it, where the broker has that: who seals chooses both.
    ///
    /// # Errors
    /// Says whether the secret, the policy or the broker is against it.
    pub async fn unseal(&self, sealed: &[u8]) -> Result<Secret, ApiError> {
        let _turn = self.turn()?;
        let text = std::str::from_utf8(sealed);
        let text = text.map_err(|_| ApiError::Invalid("the sealed secret is no text".into()))?;
        if let Some(uri) = self.desk.hub.key_of(text)? {
            self.allow(&Ask::Resource {
                uri: &uri,
                reading: Reading::Verify,
            })?;
        }
        let payload = self.desk.hub.examine(text).await.map_err(of_examination)?;
        let uri = match &payload.content {
            Content::Vault(uri) => uri,
            Content::Envelope(envelope) => envelope.kek(),
        };
        self.allow(&Ask::Resource {
            uri,
            reading: Reading::Unseal,
        })?;
        Ok(self.desk.hub.open(payload, None).await?.secret)
    }

    /// Answers ocicrypt's question for an unwrapped key.
    ///
    /// # Errors
    /// Says whether the question, the policy or the broker is against it.
    pub async fn unwrap_key(&self, question: &[u8]) -> Result<Secret, ApiError> {
        let _turn = self.turn()?;
        let bad = |why: &str| ApiError::Invalid(format!("the question: {why}"));
        let question: Input = serde_json::from_slice(question)
            .map_err(|_| bad("not the JSON of ocicrypt's protocol"))?;
        if question.op != Operation::KeyUnwrap {
            return Err(bad("`op` is not `keyunwrap`"));
        }
        let annotation = question.unwrap.annotation.as_ref();
        let annotation = annotation.ok_or_else(|| bad("`annotation` is missing"))?;
        let packet = Packet::from_json(annotation.expose()).map_err(HubError::from)?;
        let uri = packet.kid().parse().map_err(HubError::Name)?;
        self.allow(&Ask::Resource {
            uri: &uri,
            reading: Reading::Unwrap,
        })?;
        let options = self.desk.hub.unwrap_key(&packet).await?;
        let output = Output {
            wrap: None,
            unwrap: Some(KeyUnwrapResults {
                options: Some(WireBytes::new(options.expose())),
            }),
        };
        Ok(Secret::from(output.to_json()))
    }

    /// The broker's token. Only the broker's own kind is there.
    ///
    /// # Errors
    /// Says whether the policy or the broker is against it.
    pub async fn token(&self, kind: &str) -> Result<String, ApiError> {
        let _turn = self.turn()?;
        if kind != "kbs" {
            return Err(ApiError::Unsupported("a token of another type than `kbs`"));
        }
        self.allow(&Ask::Token)?;
        Ok(self.desk.hub.token().await?)
    }

    /// Evidence over the caller's data.
    ///
    /// # Errors
    /// Says whether the policy or the TEE is against it.
    pub async fn evidence(&self, runtime_data: Vec<u8>) -> Result<Value, ApiError> {
        let _turn = self.turn()?;
        let ask = Ask::Evidence {
            runtime_data: &runtime_data,
        };
        self.allow(&ask)?;
        Ok(self.desk.hub.evidence(runtime_data).await?)
    }

    /// Measures an event of the caller's. Nothing where the guest has no log that is measured.
    ///
    /// # Errors
    /// Says whether the event, the policy or the log is against it.
    pub async fn measure(
        &self,
        domain: &str,
        operation: &str,
        content: &str,
        register: Option<u64>,
    ) -> Result<Option<()>, ApiError> {
        let _turn = self.turn()?;
        let parts = [domain, operation, content];
        if parts.iter().any(|part| part.len() > EVENT_CHARS) {
            let why = format!("an event's parts have at most {EVENT_CHARS} bytes");
            return Err(ApiError::Invalid(why));
        }
        if RESERVED.contains(&domain) {
            let why = format!("events of {domain} are the guest's own");
            return Err(ApiError::Invalid(why));
        }
        self.allow(&Ask::Measure {
            domain,
            operation,
            content,
            register,
        })?;
        let Some(log) = self.desk.abilities.log.clone() else {
            return Ok(None);
        };
        let [domain, operation, content] = parts.map(str::to_owned);
        // Firmware takes its time, and the guest has other work.
        let extend = move || log.extend(&domain, &operation, &content, register);
        let extended = tokio::task::spawn_blocking(extend).await;
        let extended = extended.map_err(|error| ApiError::Measure(error.to_string()))?;
        let measured = extended.map_err(|error| ApiError::Measure(error.to_string()));
        measured.map(Some)
    }

    /// A volume on a disk of the guest, which encrypts it.
    ///
    /// # Errors
    /// The policy is against it, the guest has no disks, or it says what is wrong with this one.
    pub async fn mount(&self, request: MountRequest) -> Result<(), ApiError> {
        let _turn = self.turn()?;
        check_size(&request)?;
        self.allow(&Ask::Mount {
            volume_type: &request.volume_type,
            options: &request.options,
            flags: &request.flags,
            mount_point: &request.mount_point,
        })?;
        let key = request.options.get(MountRequest::KEY);
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            self.allow(&Ask::Resource {
                uri: &key.parse().map_err(HubError::Name)?,
                reading: Reading::Mount,
            })?;
        }
        let Some(volumes) = &self.desk.abilities.volumes else {
            return Err(ApiError::Unsupported(
                "SecureMount: there are no volumes here",
            ));
        };
        volumes.mount(request).await.map_err(ApiError::Mount)
    }

    /// What everybody may know.
    #[must_use]
    pub fn info(&self) -> Info {
        Info {
            version: env!("CARGO_PKG_VERSION"),
            tee: self.desk.hub.tee().map_or("none", evidence::Tee::name),
        }
    }

    fn allow(&self, ask: &Ask<'_>) -> Result<(), ApiError> {
        Ok(self.desk.authorize.allow(&self.caller, ask)?)
    }

    fn turn(&self) -> Result<Place, ApiError> {
        let place = self.desk.requests.take(&self.caller.id);
        place.ok_or(ApiError::Busy)
    }
}

fn of_examination(error: HubError) -> ApiError {
    match error {
        HubError::VerificationKey { .. } | HubError::Sealed(SealedError::Key { .. }) => {
            ApiError::VerificationKey
        }
        error => error.into(),
    }
}

fn check_size(request: &MountRequest) -> Result<(), ApiError> {
    let options = request.options.iter();
    let options: usize = options.map(|(name, value)| name.len() + value.len()).sum();
    let flags: usize = request.flags.iter().map(String::len).sum();
    let bytes = request.volume_type.len() + request.mount_point.len() + options + flags;
    if request.options.len() + request.flags.len() > MOUNT_WORDS || bytes > MOUNT_BYTES {
        let why = format!(
            "a mount has at most {MOUNT_WORDS} options and flags, of {MOUNT_BYTES} bytes in all"
        );
        return Err(ApiError::Invalid(why));
    }
    Ok(())
}

fn uri(name: &str) -> Result<ResourceUri, HubError> {
    if name.contains("://") {
        return Ok(name.parse()?);
    }
    let path: kbs_protocol::ResourcePath = name.parse()?;
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Peer;

    struct Everything;

    #[async_trait::async_trait]
    impl Authorize for Everything {
        async fn identify(&self, _: Peer) -> Result<Caller, Refused> {
            Err(Refused("nobody connects".to_owned()))
        }

        fn allow(&self, _: &Caller, _: &Ask<'_>) -> Result<(), Refused> {
            Ok(())
        }
    }

    fn desk() -> Arc<Desk> {
        let hub = Hub::new(None, None, Default::default(), None);
        let (hub, abilities) = (Arc::new(hub), Abilities::default());
        Arc::new(Desk::new(hub, Arc::new(Everything), abilities))
    }

    fn client(desk: &Arc<Desk>, id: &str) -> Client {
        let caller = Caller {
            id: id.to_owned(),
            annotations: Default::default(),
        };
        Client::new(Arc::clone(desk), caller)
    }

    #[tokio::test]
    async fn one_caller_leaves_requests_to_others_however_many_it_sends() {
        let desk = desk();
        let [hoarder, other] = ["a", "b"].map(|id| client(&desk, id));
        let mut turns: Vec<_> = (0..OF_ONE).map(|_| hoarder.turn().unwrap()).collect();
        // Another connection of the same caller is no other caller.
        for again in [&hoarder, &client(&desk, "a")] {
            assert!(matches!(again.token("kbs").await, Err(ApiError::Busy)));
        }
        assert!(matches!(other.token("kbs").await, Err(ApiError::Hub(_))));
        turns.pop();
        assert!(matches!(hoarder.token("kbs").await, Err(ApiError::Hub(_))));
    }

    #[tokio::test]
    async fn a_mount_says_no_more_than_a_policy_can_look_at() {
        let client = client(&desk(), "a");
        let mut request = MountRequest::default();
        assert!(matches!(
            client.mount(request.clone()).await,
            Err(ApiError::Unsupported(_))
        ));
        request.flags = vec![String::new(); MOUNT_WORDS + 1];
        let long = MountRequest {
            mount_point: "x".repeat(MOUNT_BYTES + 1),
            ..MountRequest::default()
        };
        for large in [request, long] {
            let refused = client.mount(large).await;
            assert!(matches!(refused, Err(ApiError::Invalid(_))));
        }
    }
}
