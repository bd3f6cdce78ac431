//! The owner's settings for images, with what init-data leaves at the broker fetched once.

use std::num::NonZeroUsize;
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use async_trait::async_trait;
use attestation_agent::{Broker, ResourceUri};
use evidence::Tee;
use evidence::init_data::Content;
use evidence::init_data::content::{self, HostMirror, Registries, RegistryRule, Source};
use image_rs::policy::{Files, Location, ValueError, ValueSource};
use image_rs::registry::{
    AuthFile, Mirror, NodeMirror, PullFromMirror, Reach, Registry, RegistryConfig, Rule, Rules,
    Security, Share,
};
use image_rs::signature::Lookaside;
use image_rs::{Policy, PolicyFile};
use transport::{Dial, Proxies, Roots};

use super::PHASE;
use super::fault::{of_broker, of_policy};

/// Settings that are complete.
pub(super) struct Settings {
    pub(super) policy: Policy,
    pub(super) lookaside: Lookaside,
    pub(super) layers_at_once: Option<NonZeroUsize>,
    /// One client for all images of the pod, so that they share connections and tokens.
    pub(super) registry: Registry,
}

/// What everybody speaks plain HTTP to.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

impl Settings {
    /// Reads init-data's part and fetches the broker's.
    pub(super) async fn load(
        content: &Content,
        tee: Option<Tee>,
        broker: Option<&Broker>,
        dial: &Arc<dyn Dial>,
        mirror: Option<&Arc<dyn Dial>>,
    ) -> Result<Self, GuestError> {
        let image = &content.image;
        let policy = match &image.security_policy {
            Some(Source::Inline(json)) => policy(json.as_bytes(), tee, broker).await?,
            Some(Source::Broker(uri)) => policy(&fetch(broker, uri).await?, tee, broker).await?,
            None if tee.is_none() => Policy::accept_anything(),
            None => Policy::reject(),
        };
        let lookaside = match &image.lookaside {
            Some(Source::Inline(json)) => Lookaside::from_json(json.as_bytes()),
            Some(Source::Broker(uri)) => Lookaside::from_json(&fetch(broker, uri).await?),
            None => Ok(Lookaside::default()),
        };
        let lookaside = lookaside.map_err(malformed)?;
        let rules = match &image.registries {
            Some(Source::Inline(registries)) => rules(registries).map_err(malformed)?,
            Some(Source::Broker(uri)) => {
                let text = fetch(broker, uri).await?;
                let text = std::str::from_utf8(&text).map_err(malformed)?;
                Rules::from_toml(text).map_err(malformed)?
            }
            None => Rules::default(),
        };
        let auth = match &image.credentials_uri {
            Some(uri) => AuthFile::from_json(&fetch(broker, uri).await?).map_err(malformed)?,
            None => AuthFile::default(),
        };
        let mut roots = Roots::web();
        for pem in &image.extra_root_certificates {
            roots = roots.and(pem).map_err(malformed)?;
        }
        let layers_at_once = image
            .layers_at_once
            .map(usize::try_from)
            .and_then(Result::ok);
        let layers_at_once = layers_at_once.and_then(NonZeroUsize::new);
        let proxy = &image.proxy;
        let mut reach = Reach::new(roots);
        reach.proxies =
            Proxies::new(&proxy.http, &proxy.https, &proxy.exceptions).map_err(malformed)?;
        // Without a TEE the host is trusted anyway.
        let insecure: &[&str] = if tee.is_none() { &LOOPBACK } else { &[] };
        let config = RegistryConfig {
            insecure: insecure.iter().copied().map(str::to_owned).collect(),
            auth,
            rules,
            ..RegistryConfig::default()
        };
        let mut registry = Registry::open(Arc::clone(dial), &reach, config).map_err(malformed)?;
        if let (Some(dial), Some(share)) = (mirror, share(image.host_mirror, tee)) {
            let mirror = NodeMirror::new(Arc::clone(dial), share).map_err(malformed)?;
            registry = registry.with_node_mirror(mirror);
        }
        Ok(Self {
            policy,
            lookaside,
            layers_at_once,
            registry,
        })
    }
}

/// What the host's mirror may know of. In a TEE it is only what it cannot read, unless the owner says otherwise.
fn share(owner: Option<HostMirror>, tee: Option<Tee>) -> Option<Share> {
    match owner {
        Some(HostMirror::Off) => None,
        Some(HostMirror::Encrypted) => Some(Share::Encrypted),
        Some(HostMirror::All) => Some(Share::All),
        None if tee.is_none() => Some(Share::All),
        None => Some(Share::Encrypted),
    }
}

/// Init-data's rules as the client of registries has them.
fn rules(registries: &Registries) -> Result<Rules, image_rs::registry::RulesError> {
    Rules::new(registries.rules.iter().map(rule).collect())
}

fn rule(rule: &RegistryRule) -> Rule {
    let mirror = |mirror: &content::Mirror| Mirror {
        location: mirror.location.clone(),
        security: security(mirror.insecure),
        pull: match mirror.pull {
            content::PullFromMirror::All => PullFromMirror::All,
            content::PullFromMirror::DigestOnly => PullFromMirror::DigestOnly,
            content::PullFromMirror::TagOnly => PullFromMirror::TagOnly,
        },
    };
    let location = rule.location.clone();
    Rule {
        location: location.filter(|location| *location != rule.prefix),
        prefix: rule.prefix.clone(),
        security: security(rule.insecure),
        blocked: rule.blocked,
        mirror_by_digest_only: rule.mirror_by_digest_only,
        mirrors: rule.mirrors.iter().map(mirror).collect(),
    }
}

fn security(insecure: bool) -> Security {
    if insecure {
        Security::Insecure
    } else {
        Security::Verified
    }
}

async fn fetch(
    broker: Option<&Broker>,
    uri: &str,
) -> Result<zeroize::Zeroizing<Vec<u8>>, GuestError> {
    let Some(broker) = broker else {
        let message = format!("{uri} cannot be fetched: this guest has no broker");
        return Err(GuestError::new(ErrorCode::InitDataInvalid, PHASE, message));
    };
    let uri: ResourceUri = uri.parse().map_err(malformed)?;
    let secret = broker
        .resource(&uri)
        .await
        .map_err(|error| of_broker(&error))?;
    Ok(secret.into_zeroizing())
}

/// The policy with all the keys that it names.
async fn policy(
    json: &[u8],
    tee: Option<Tee>,
    broker: Option<&Broker>,
) -> Result<Policy, GuestError> {
    let file = PolicyFile::from_json(json).map_err(|error| of_policy(&error))?;
    let loaded = file.load(&Values { tee, broker }).await;
    loaded.map_err(|error| of_policy(&error))
}

/// The broker as the holder of a policy's keys.
struct Values<'a> {
    tee: Option<Tee>,
    broker: Option<&'a Broker>,
}

#[async_trait]
impl ValueSource for Values<'_> {
    async fn value(&self, location: &Location) -> Result<Vec<u8>, ValueError> {
        let Location::Broker(uri) = location else {
            // In a TEE a file of the guest is not the owner's word: the host shares directories with it.
            if self.tee.is_some() {
                return Err("in a TEE a key is at the broker (kbs:///) or in the policy".into());
            }
            return Files.value(location).await;
        };
        let broker = self.broker.ok_or("this guest has no broker")?;
        let uri: ResourceUri = uri.parse()?;
        let secret = broker.resource(&uri).await?;
        Ok(secret.expose().to_vec())
    }
}

fn malformed(error: impl std::fmt::Display) -> GuestError {
    GuestError::new(ErrorCode::InitDataInvalid, PHASE, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_policys_keys_are_fetched_before_an_image_is_and_their_want_is_named() {
        let dial: Arc<dyn Dial> = Arc::new(transport::TcpDial);
        for (path, why) in [
            ("kbs:///a/b/cosign", "no broker"),
            ("/etc/cosign.pub", "in a TEE"),
        ] {
            let mut content = Content::default();
            let policy =
                format!(r#"{{"default": [{{"type": "sigstoreSigned", "keyPath": "{path}"}}]}}"#);
            content.image.security_policy = Some(Source::Inline(policy));
            let error = Settings::load(&content, Some(Tee::Sample), None, &dial, None).await;
            let error = error.err().unwrap();
            assert_eq!(error.code, ErrorCode::InitDataInvalid);
            let message = &error.message;
            assert!(message.contains(path) && message.contains(why), "{message}");
        }
    }

    #[test]
    fn in_a_tee_the_host_learns_of_encrypted_layers_only_unless_the_owner_says_so() {
        assert_eq!(share(None, None), Some(Share::All));
        assert_eq!(share(None, Some(Tee::Snp)), Some(Share::Encrypted));
        assert_eq!(
            share(Some(HostMirror::All), Some(Tee::Snp)),
            Some(Share::All)
        );
        for tee in [None, Some(Tee::Snp)] {
            assert_eq!(share(Some(HostMirror::Off), tee), None);
            assert_eq!(
                share(Some(HostMirror::Encrypted), tee),
                Some(Share::Encrypted)
            );
        }
    }

    #[tokio::test]
    async fn a_tee_without_an_image_policy_refuses_every_image() {
        let image: image_rs::Reference = "docker.io/library/busybox".parse().unwrap();
        let dial: Arc<dyn Dial> = Arc::new(transport::TcpDial);
        let content = Content::default();
        let plain = Settings::load(&content, None, None, &dial, None)
            .await
            .unwrap();
        assert!(plain.policy.demand(&image).is_ok());
        let tee = Settings::load(&content, Some(Tee::Sample), None, &dial, None)
            .await
            .unwrap();
        assert!(tee.policy.demand(&image).is_err());
    }
}
