//! How registries are reached: roots, proxies, deadlines, and two transports, one for the strict and one for the lax.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use transport::{
    Client, ClientConfig, Dial, Pace, PlainHttp, Proxies, Roots, RootsError, Timeouts, Trust, Way,
};

use super::{Registry, RegistryConfig, Security};
use crate::reference::Reference;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// What they must chain to.
    pub roots: Roots,
    /// What single ones (`host` or `host:port`) must chain to instead.
    pub host_roots: BTreeMap<String, Roots>,
    /// Who carries the connections.
    pub proxies: Proxies,
    /// The deadlines of each attempt.
    pub timeouts: Timeouts,
    /// How slow a body may be before it counts as stalled.
    pub pace: Option<Pace>,
}

impl Reach {
    /// With the usual deadlines, and without a proxy.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self {
            roots,
            host_roots: BTreeMap::new(),
            proxies: Proxies::default(),
            timeouts: Timeouts::default(),
            pace: Some(Pace {
                bytes: 64 * 1024,
                within: Duration::from_secs(60),
            }),
        }
    }
}

impl Registry {
    /// A client that dials by `dial`, and reaches each registry as `reach` and the rules of `config` say.
    ///
    /// # Errors
    /// When roots cannot be used.
    pub fn open(
        dial: Arc<dyn Dial>,
        reach: &Reach,
        config: RegistryConfig,
    ) -> Result<Self, RootsError> {
        let with_roots =
            |(host, roots): (&String, &Roots)| (dialled(host), Trust::Roots(roots.clone()));
        let mut way = Way {
            hosts: reach.host_roots.iter().map(with_roots).collect(),
            proxies: reach.proxies.clone(),
            pace: reach.pace,
        };
        let mut client = ClientConfig::new(reach.roots.clone());
        client.timeouts = reach.timeouts;
        let strict = Client::with_way(dial.clone(), client.clone(), &way)?;

        let unverified = config.rules.hosts(|how| how == Security::Insecure);
        let plain = config.rules.hosts(|how| how != Security::Verified);
        let plain = plain.iter().map(|host| with_port(dialled(host), 80));
        let plain = plain.chain(config.insecure.iter().map(|host| dialled(host)));
        client.plain_http = PlainHttp::Hosts(plain.collect());
        let any = |host: &String| (with_port(dialled(host), 443), Trust::Unverified);
        way.hosts.extend(unverified.iter().map(any));
        let lax = Client::with_way(dial, client, &way)?;
        Ok(Self::over(strict, lax, config))
    }
}

/// A registry's host as it is dialled, from how it is written in a name.
fn dialled(host: &str) -> String {
    match format!("{host}/x/x").parse::<Reference>() {
        Ok(image) if image.registry() == host => image.endpoint().to_owned(),
        _ => host.to_owned(),
    }
}

/// The same with the port of its scheme, where it has none.
fn with_port(host: String, port: u16) -> String {
    let name_ends = host.rfind(']').unwrap_or(0);
    if host[name_ends..].contains(':') {
        host
    } else {
        format!("{host}:{port}")
    }
}
