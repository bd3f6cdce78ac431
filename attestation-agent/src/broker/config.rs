//! Which broker, and how long it may take.

use std::time::Duration;

use evidence::{Tee, init_data::content::BrokerLocation};
use transport::{ClientConfig, PlainHttp, Roots, RootsError, Timeouts};
use url::Url;

/// Where the broker is and how it is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `https://host[:port][/path]`.
    pub url: String,
    /// The certificates in PEM that it must chain to. Where absent, the public web roots.
    pub root_cert_pem: Option<String>,
    /// Whether a URL may be plain HTTP, where nothing tells the broker from somebody else.
    pub plain_http: bool,
    /// The end of all attempts for one resource, its attestation included.
    pub deadline: Duration,
    /// The deadlines of one attempt.
    pub timeouts: Timeouts,
}

impl BrokerConfig {
    /// How long one resource may take, unless said otherwise. Several fit in the two minutes that a
    /// kubelet gives to a request. Connections that are refused end the attempts within three seconds.
    pub const DEADLINE: Duration = Duration::from_secs(30);

    /// A broker behind TLS.
    #[must_use]
    pub fn new(url: impl Into<String>, root_cert_pem: Option<String>) -> Self {
        Self {
            url: url.into(),
            root_cert_pem,
            plain_http: false,
            deadline: Self::DEADLINE,
            timeouts: Timeouts::default(),
        }
    }

    /// The broker that init-data names. Plain HTTP is for kinds without hardware, which are for
    /// development.
    #[must_use]
    pub fn of_init_data(location: &BrokerLocation, tee: Tee) -> Self {
        Self {
            plain_http: !tee.is_hardware(),
            ..Self::new(&location.url, location.root_cert_pem.clone())
        }
    }

    pub(super) fn check(&self) -> Result<(String, ClientConfig), ConfigError> {
        let bad = |cause: &str| ConfigError::Url {
            url: self.url.chars().take(128).collect(),
            cause: cause.to_owned(),
        };
        let url = Url::parse(&self.url).map_err(|error| bad(&error.to_string()))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it has a query or a fragment"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("it has a user"));
        }
        let plain_http = match (url.scheme(), &self.root_cert_pem) {
            ("https", _) => PlainHttp::Refuse,
            ("http", _) if !self.plain_http => return Err(ConfigError::PlainHttp),
            ("http", Some(_)) => return Err(ConfigError::PinnedPlainHttp),
            ("http", None) => PlainHttp::Allow,
            _ => return Err(bad("the scheme is not https")),
        };
        let roots = match &self.root_cert_pem {
            Some(pem) => Roots::pinned(pem)?,
            None => Roots::web(),
        };
        let base = url.as_str().trim_end_matches('/').to_owned();
        let client = ClientConfig {
            roots,
            plain_http,
            timeouts: self.timeouts,
        };
        Ok((base, client))
    }
}

/// A broker that cannot be spoken to as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The URL.
    #[error("the broker's url `{url}`: {cause}: write `https://host[:port]`")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Plain HTTP, and a real TEE.
    #[error(
        "the broker's url is plain http, so anybody on the way could answer for it: write `https://` and pin its certificate"
    )]
    PlainHttp,
    /// Plain HTTP, and a certificate that would never be looked at.
    #[error(
        "the broker's certificate is pinned, but its url is plain http: write `https://`, or remove the certificate"
    )]
    PinnedPlainHttp,
    /// The certificate.
    #[error("the broker's certificate: {0}")]
    Roots(#[from] RootsError),
    /// No key pair could be made.
    #[error("make the guest's key pair: {0}")]
    KeyPair(#[from] kbs_protocol::KeyError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_development_only() {
        let location = BrokerLocation {
            url: "http://kbs:8080".to_owned(),
            root_cert_pem: None,
        };
        let check = |tee| BrokerConfig::of_init_data(&location, tee).check();
        assert_eq!(check(Tee::Snp).err(), Some(ConfigError::PlainHttp));
        assert_eq!(check(Tee::Tdx).err(), Some(ConfigError::PlainHttp));
        assert_eq!(check(Tee::Sample).unwrap().0, "http://kbs:8080");
    }

    #[test]
    fn a_pin_is_never_left_unused() {
        let mut config = BrokerConfig::new("http://kbs", Some("PEM".to_owned()));
        config.plain_http = true;
        assert_eq!(config.check().err(), Some(ConfigError::PinnedPlainHttp));
    }

    #[test]
    fn urls_that_say_too_much_are_refused() {
        for url in [
            "kbs:8080",
            "ftp://a",
            "https://u@a",
            "https://a?x",
            "https://a#x",
            "https://",
        ] {
            let error = BrokerConfig::new(url, None).check().err();
            assert!(matches!(error, Some(ConfigError::Url { .. })), "{url}");
        }
        let (base, _) = BrokerConfig::new("https://a/b/", None).check().unwrap();
        assert_eq!(base, "https://a/b");
    }
}
