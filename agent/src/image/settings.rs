//! The owner's settings for images, with what init-data leaves at the broker fetched once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use attestation_agent::{Broker, ResourceUri};
use evidence::Tee;
use evidence::init_data::Content;
use evidence::init_data::content::{Registries, RegistryRule, Source};
use image_rs::registry::{AuthFile, Registry, RegistryConfig};
use image_rs::{Policy, Reference};
use transport::{Client, ClientConfig, Dial, PlainHttp, Roots};

use super::PHASE;
use super::fault::of_broker;

/// Settings that are complete.
pub(super) struct Settings {
    pub(super) policy: Policy,
    pub(super) layers_at_once: Option<NonZeroUsize>,
    registries: Registries,
    /// The text, because each client of a registry owns its parsed form.
    credentials: Option<zeroize::Zeroizing<Vec<u8>>>,
    roots: Roots,
}

impl Settings {
    /// Reads init-data's part and fetches the broker's.
    pub(super) async fn load(
        content: &Content,
        tee: Option<Tee>,
        broker: Option<&Broker>,
    ) -> Result<Self, GuestError> {
        let image = &content.image;
        let policy = match &image.security_policy {
            Some(Source::Inline(json)) => parse_policy(json.as_bytes())?,
            Some(Source::Broker(uri)) => parse_policy(&fetch(broker, uri).await?)?,
            None if tee.is_none() => Policy::accept_anything(),
            None => Policy::reject(),
        };
        let registries = match &image.registries {
            Some(Source::Inline(registries)) => registries.clone(),
            Some(Source::Broker(uri)) => {
                let text = fetch(broker, uri).await?;
                let text = std::str::from_utf8(&text).map_err(malformed)?;
                Registries::parse(text).map_err(malformed)?
            }
            None => Registries::default(),
        };
        let credentials = match &image.credentials_uri {
            Some(uri) => Some(fetch(broker, uri).await?),
            None => None,
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
        Ok(Self {
            policy,
            layers_at_once,
            registries,
            credentials,
            roots,
        })
    }

    /// A client for the image's registry.
    pub(super) fn registry(
        &self,
        image: &Reference,
        tee: Option<Tee>,
        dial: &Arc<dyn Dial>,
    ) -> Result<Registry, GuestError> {
        let mut insecure = BTreeSet::new();
        // Without a TEE the host is trusted anyway, and everybody speaks plain HTTP to loopback.
        if tee.is_none() && is_loopback(image.registry()) {
            insecure.insert(image.registry().to_owned());
        }
        if let Some(rule) = self.rule(image) {
            check_rule(rule, image)?;
            if rule.insecure {
                insecure.insert(image.registry().to_owned());
            }
        }
        let auth = match &self.credentials {
            Some(json) => AuthFile::from_json(json).map_err(malformed)?,
            None => AuthFile::default(),
        };
        let mut config = ClientConfig::new(self.roots.clone());
        if !insecure.is_empty() {
            config.plain_http = PlainHttp::Hosts(insecure.clone());
        }
        let client = Client::new(Arc::clone(dial), config).map_err(malformed)?;
        Ok(Registry::new(client, RegistryConfig { insecure, auth }))
    }

    /// The rule with the longest prefix counts, as in containers-registries.conf(5).
    fn rule(&self, image: &Reference) -> Option<&RegistryRule> {
        let name = image.name();
        let fits = |rule: &&RegistryRule| matches(&rule.prefix, &name, image.registry());
        self.registries
            .rules
            .iter()
            .filter(fits)
            .max_by_key(|rule| rule.prefix.len())
    }
}

fn check_rule(rule: &RegistryRule, image: &Reference) -> Result<(), GuestError> {
    if rule.blocked {
        let message = format!("{image} is blocked by the registry rule {:?}", rule.prefix);
        return Err(GuestError::new(ErrorCode::ImageDenied, PHASE, message));
    }
    let moves = rule
        .location
        .as_ref()
        .is_some_and(|location| *location != rule.prefix);
    if moves || !rule.mirrors.is_empty() {
        let message = format!(
            "the registry rule {:?} has a mirror or another location, which is not supported",
            rule.prefix
        );
        return Err(GuestError::new(ErrorCode::Unimplemented, PHASE, message));
    }
    Ok(())
}

fn matches(prefix: &str, name: &str, registry: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = registry.split(':').next().unwrap_or_default();
        return host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.'));
    }
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `localhost` and addresses of loopback, with or without a port.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
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

fn parse_policy(json: &[u8]) -> Result<Policy, GuestError> {
    Policy::from_json(json).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> GuestError {
    GuestError::new(ErrorCode::InitDataInvalid, PHASE, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_names_that_only_look_like_it() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5055",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "localhost.example",
            "127.0.0.1.example:80",
            "10.0.0.1:5000",
            "docker.io",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn rules_match_whole_parts_of_a_name() {
        assert!(matches("r.example", "r.example/a/b", "r.example"));
        assert!(matches("r.example/a", "r.example/a/b", "r.example"));
        assert!(!matches("r.example/a", "r.example/ab", "r.example"));
        assert!(matches("*.example", "r.example/a", "r.example"));
        assert!(!matches("*.example", "example/a", "example"));
    }

    #[tokio::test]
    async fn a_tee_without_an_image_policy_refuses_every_image() {
        let image: Reference = "docker.io/library/busybox".parse().unwrap();
        let content = Content::default();
        let plain = Settings::load(&content, None, None).await.unwrap();
        assert!(plain.policy.check(&image).is_ok());
        let tee = Settings::load(&content, Some(Tee::Sample), None)
            .await
            .unwrap();
        assert!(tee.policy.check(&image).is_err());
    }
}
