//! What an operator sets besides keys and stores: limits, logs and traces.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    address::{Plain, fault},
};

/// `[limits]`: what one address may have of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests a second, over time; 0 for no limit.
    pub requests_per_second: u32,
    /// Requests at once, before the rate counts. Guests of one host may share its address.
    pub burst: u32,
    /// Connections at once; 0 for no limit but the broker's own. Guests of one host may share its address.
    pub connections: u32,
    /// Do not count what comes from this machine.
    pub exempt_loopback: bool,
    /// Addresses whose `X-Forwarded-For` names the client.
    pub proxies: BTreeSet<IpAddr>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_second: 200,
            burst: 2000,
            connections: 1024,
            exempt_loopback: false,
            proxies: BTreeSet::new(),
        }
    }
}

/// `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How a line looks.
    pub format: Format,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object.
    #[default]
    Json,
    /// For people.
    Text,
}

/// `[telemetry]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where traces go, as OTLP over HTTP: `http://127.0.0.1:4318`. Absent, there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// The root in PEM that its certificate must chain to; public roots where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Put paths with the names of resources into spans, in place of their patterns.
    pub resource_names: bool,
}

impl Telemetry {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let collector = self.otlp_endpoint.as_deref();
        let fault = collector.and_then(|text| fault(text, Plain::Anybody, false));
        fault.map_or(Ok(()), |fault| Err(ConfigError::Collector(fault)))
    }
}
