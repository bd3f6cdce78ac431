//! What is told of a pod, and to whom: the log and traces.
//!
//! The addresses of a collector are OpenTelemetry's own variables too, which containerd has in its environment
//! and hands to its shims:
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>

use tracing::warn;
use url::Url;

/// The variable with a collector's address for traces, whole.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// The variable with a collector's address, without the path.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// The variables that say how the collector is spoken to; the first counts.
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
/// Where OTLP over HTTP is by default, and its path for traces.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";
const PATH: &str = "/v1/traces";

/// Who gets the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogTo {
    /// containerd, by the FIFO in the bundle; the journal where there is none.
    #[default]
    Containerd,
    /// The journal.
    Journal,
    /// Both.
    Both,
}

/// What is told of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observe {
    /// Whether the shim logs what only a developer wants to know.
    pub debug: bool,
    /// Who gets the log.
    pub log_to: LogTo,
    /// Whether traces are sent.
    pub tracing: bool,
    /// The collector, where the configuration names it: without the path.
    pub otlp_endpoint: Option<String>,
}

impl LogTo {
    /// The word of the configuration.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        match word {
            "containerd" => Ok(Self::Containerd),
            "journal" => Ok(Self::Journal),
            "both" => Ok(Self::Both),
            other => Err(format!(
                "{other:?} is not one of \"containerd\", \"journal\", \"both\""
            )),
        }
    }

    /// The same, back.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Journal => "journal",
            Self::Both => "both",
        }
    }
}

impl Observe {
    /// Where traces are sent; nowhere unless somebody asked for it.
    #[must_use]
    pub fn traces(&self) -> Option<Url> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.traces_by(variable)
            .inspect_err(|why| warn!("no traces are sent: {why}"))
            .ok()?
    }

    fn traces_by(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Url>, String> {
        if !self.tracing {
            return Ok(None);
        }
        let below = |base: &str| format!("{}{PATH}", base.trim_end_matches('/'));
        if let Some(base) = &self.otlp_endpoint {
            return endpoint(&below(base)).map(Some);
        }
        let named = variable(TRACES_ENDPOINT).or_else(|| variable(ENDPOINT).map(|it| below(&it)));
        let Some(url) = named else {
            return endpoint(&below(DEFAULT_ENDPOINT)).map(Some);
        };
        if let Some(protocol) = PROTOCOLS.iter().find_map(|name| variable(name))
            && !protocol.starts_with("http/")
        {
            return Err(format!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol:?}, and traces go by http/json alone: \
                 name a collector of HTTP as otlp_endpoint in [cloister]"
            ));
        }
        endpoint(&url).map(Some)
    }
}

/// The address of a collector.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    let no = |why: &str| {
        Err(format!(
            "{why}: use http://HOST:4318, of the node's own collector"
        ))
    };
    match Url::parse(text) {
        Ok(url) if url.scheme() == "https" => no("a shim has no client of TLS"),
        Ok(url) if url.scheme() != "http" => no("it is not http"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            no("an address with a password would be in logs")
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            no("an address has no query")
        }
        Ok(url) if url.host().is_none() => no("it has no host"),
        Ok(url) => Ok(url),
        Err(error) => no(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(observe: &Observe, variables: &[(&str, &str)]) -> Result<Option<Url>, String> {
        observe.traces_by(|name| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn traces_are_off_until_they_are_asked_for_and_the_nearest_address_counts() {
        let all = [
            (ENDPOINT, "http://a:4318/"),
            (TRACES_ENDPOINT, "http://b/x"),
        ];
        assert_eq!(by(&Observe::default(), &all), Ok(None));
        let on = Observe {
            tracing: true,
            ..Observe::default()
        };
        let told = |text: &str| Ok(text.parse().ok());
        assert_eq!(by(&on, &[]), told("http://localhost:4318/v1/traces"));
        assert_eq!(by(&on, &all[..1]), told("http://a:4318/v1/traces"));
        assert_eq!(by(&on, &all), told("http://b/x"));
        let named = Observe {
            otlp_endpoint: Some("http://c:1/".into()),
            ..on.clone()
        };
        assert_eq!(by(&named, &all), told("http://c:1/v1/traces"));
        let grpc = [all[0], (PROTOCOLS[1], "grpc")];
        assert!(by(&on, &grpc).is_err_and(|why| why.contains("http/json")));
        assert!(by(&on, &[(ENDPOINT, "file:///x")]).is_err());
    }

    #[test]
    fn an_address_has_no_password_and_no_query() {
        assert!(endpoint("http://127.0.0.1:4318").is_ok());
        for bad in [
            "",
            "localhost:4318",
            "https://host:4318",
            "http://me:pw@host",
            "ftp://host",
            "http://host?token=x",
            "http://",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }
}
