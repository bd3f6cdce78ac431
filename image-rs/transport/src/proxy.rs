//! HTTP proxies, as values that the caller gives: nothing is read from the environment.
//!
//! TLS goes through `CONNECT`, so that it ends here as ever and the proxy sees a name and a port. Plain HTTP is asked
//! of the proxy by its whole URL. The notation is that of `http_proxy`, `https_proxy` and `no_proxy`.

use std::{fmt, net::IpAddr, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{BoxedStream, connect::Target};

/// Cap on the head of an answer to `CONNECT`, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// Cap on the entries of a `no_proxy`.
const EXCEPTIONS: usize = 1024;

/// A proxy setting that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The address. It is not quoted, because it may hold a password.
    #[error("{setting} is not a proxy: {cause}; write http://[user:password@]host[:port]")]
    Address {
        /// Which of the settings.
        setting: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// An entry of the list of exceptions.
    #[error(
        "no_proxy has the entry {0:?}: write a host, a .domain, an address, a network such as 10.0.0.0/8, or *"
    )]
    Exception(String),
    /// A cap.
    #[error("no_proxy has more than {EXCEPTIONS} entries")]
    TooMany,
}

/// Which proxy carries what.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

impl Proxies {
    /// From the three settings; an empty one counts as absent.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub fn new(http: &str, https: &str, no_proxy: &str) -> Result<Self, ProxyError> {
        let proxy = |setting, text: &str| match text.trim() {
            "" => Ok(None),
            text => Proxy::parse(setting, text).map(Some),
        };
        let entries = no_proxy.split([',', ' ']).filter(|entry| !entry.is_empty());
        let exceptions: Vec<Exception> = entries
            .take(EXCEPTIONS + 1)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        if exceptions.len() > EXCEPTIONS {
            return Err(ProxyError::TooMany);
        }
        Ok(Self {
            http: proxy("http_proxy", http)?,
            https: proxy("https_proxy", https)?,
            exceptions,
        })
    }

    /// Who carries a connection to `target`; this machine is never behind a proxy.
    pub(crate) fn of(&self, target: &Target) -> Option<&Proxy> {
        let proxy = if target.secure {
            self.https.as_ref()
        } else {
            self.http.as_ref()
        }?;
        let address = target.host.parse::<IpAddr>().ok();
        let here = address.map_or(target.host == "localhost", |address| address.is_loopback());
        let excepted = self
            .exceptions
            .iter()
            .any(|exception| exception.fits(target));
        (!here && !excepted).then_some(proxy)
    }
}

/// One proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) target: Target,
    /// `Basic …`, marked sensitive.
    pub(crate) credentials: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.target)
    }
}

impl Proxy {
    fn parse(setting: &'static str, text: &str) -> Result<Self, ProxyError> {
        let bad = |cause: &str| ProxyError::Address {
            setting,
            cause: cause.to_owned(),
        };
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url = url::Url::parse(&whole).map_err(|error| bad(&error.to_string()))?;
        let secure = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(bad(&format!("the scheme {other} is not spoken"))),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(bad("something follows the port"));
        }
        let host = url.host_str().ok_or_else(|| bad("no host"))?;
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let pair = [
                    decoded(user),
                    b":".to_vec(),
                    decoded(password.unwrap_or("")),
                ]
                .concat();
                let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)));
                let mut value = value.map_err(|_| bad("the user or password is unusable"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            target: Target {
                secure,
                host: host.trim_matches(['[', ']']).to_owned(),
                port: url.port_or_known_default().unwrap_or(80),
            },
            credentials,
        })
    }

    /// Asks for a tunnel to `target`. The error is the proxy's refusal, or the stream's end.
    pub(crate) async fn open(
        &self,
        stream: &mut BoxedStream,
        target: &Target,
    ) -> Result<(), String> {
        let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(credentials) = &self.credentials {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(credentials.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        let sent = async {
            stream.write_all(&head).await?;
            stream.flush().await
        };
        sent.await.map_err(|error| error.to_string())?;
        let answer = read_head(stream).await?;
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or(b"");
        let line = String::from_utf8_lossy(line);
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or("");
        let status = words.next().and_then(|word| word.parse::<u16>().ok());
        match status {
            Some(200..=299) if version.starts_with("HTTP/1.") => Ok(()),
            Some(407) if self.credentials.is_none() => Err(
                "it wants a user and a password: write http://user:password@host:port".to_owned(),
            ),
            Some(407) => Err("it refuses the user and password".to_owned()),
            Some(status) => Err(format!("it answered {status} to CONNECT {target}")),
            None => Err("what answers is not an HTTP proxy".to_owned()),
        }
    }
}

/// Reads to the empty line and no further: the next byte belongs to the tunnel.
async fn read_head(stream: &mut BoxedStream) -> Result<Vec<u8>, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_BYTES {
            return Err(format!("its answer has more than {HEAD_BYTES} bytes"));
        }
        head.push(stream.read_u8().await.map_err(|error| error.to_string())?);
    }
    Ok(head)
}

/// The bytes behind `%xx`.
fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3);
        match digits.and_then(|digits| hex::decode(digits).ok()) {
            Some(escaped) if *byte == b'%' => {
                out.extend(escaped);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

/// Who is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everybody,
    /// A domain with what is below it, or, with a dot in front, only what is below.
    Domain {
        name: String,
        only_below: bool,
        port: Option<u16>,
    },
    Address(IpAddr, Option<u16>),
    Network(IpAddr, u32),
}

impl FromStr for Exception {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let bad = || ProxyError::Exception(text.chars().take(80).collect());
        if text == "*" {
            return Ok(Self::Everybody);
        }
        if let Some((address, length)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| bad())?;
            let length: u32 = length.parse().map_err(|_| bad())?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return if length <= most {
                Ok(Self::Network(address, length))
            } else {
                Err(bad())
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address, None));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address(address, port));
        }
        let host = host.strip_prefix('*').unwrap_or(host);
        let name = host.strip_prefix('.').unwrap_or(host);
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if name.is_empty() || !name.bytes().all(letters) {
            return Err(bad());
        }
        Ok(Self::Domain {
            name: name.to_ascii_lowercase(),
            only_below: host.len() != name.len(),
            port,
        })
    }
}

impl Exception {
    fn fits(&self, target: &Target) -> bool {
        let address = target.host.parse::<IpAddr>().ok();
        let port_fits = |port: &Option<u16>| port.is_none_or(|port| port == target.port);
        match self {
            Self::Everybody => true,
            Self::Address(one, port) => address == Some(*one) && port_fits(port),
            Self::Network(network, length) => {
                address.is_some_and(|address| in_network(address, *network, *length))
            }
            Self::Domain {
                name,
                only_below,
                port,
            } => {
                let host = target.host.to_ascii_lowercase();
                let below = host
                    .strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('.'));
                (below || (host == *name && !only_below)) && port_fits(port)
            }
        }
    }
}

fn in_network(address: IpAddr, network: IpAddr, length: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            (address.to_bits() ^ network.to_bits()) & mask == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            (address.to_bits() ^ network.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(proxies: &Proxies, url: &str) -> Option<String> {
        let target = Target::of(&url.parse().unwrap()).unwrap();
        proxies.of(&target).map(|proxy| proxy.target.to_string())
    }

    #[test]
    fn each_scheme_has_its_proxy_and_exceptions_have_none() {
        let proxies = Proxies::new(
            "proxy.test:3128",
            "http://u%40x:p%3Aq@secure.test",
            "corp.test, .only.test,10.0.0.0/8,2001:db8::/32,port.test:8443,192.0.2.7",
        )
        .unwrap();
        let plain = Some("proxy.test:3128".to_owned());
        let tls = Some("secure.test:80".to_owned());
        for (url, found) in [
            ("http://a.test/", &plain),
            ("https://a.test/", &tls),
            ("https://corp.test/", &None),
            ("https://CORP.test/", &None),
            ("https://r.corp.test:5000/", &None),
            ("https://mycorp.test/", &tls),
            ("https://only.test/", &tls),
            ("https://r.only.test/", &None),
            ("https://10.9.8.7/", &None),
            ("https://11.0.0.1/", &tls),
            ("https://[2001:db8::1]/", &None),
            ("https://[2001:db9::1]/", &tls),
            ("https://port.test:8443/", &None),
            ("https://port.test/", &tls),
            ("https://192.0.2.7/", &None),
            ("http://localhost:5000/", &None),
            ("http://127.0.0.1:5000/", &None),
            ("https://[::1]/", &None),
        ] {
            assert_eq!(carried(&proxies, url), *found, "{url}");
        }
        let proxy = proxies.https.unwrap();
        let value = proxy.credentials.clone().unwrap();
        assert!(value.is_sensitive());
        let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(text).unwrap(), b"u@x:p:q");
        assert!(!format!("{proxy:?}").contains("p:q"));
    }

    #[test]
    fn an_asterisk_excepts_everybody_and_nothing_means_no_proxy() {
        let proxies = Proxies::new("", "http://p.test", "*").unwrap();
        assert_eq!(carried(&proxies, "https://a.test/"), None);
        let none = Proxies::new("", " ", "").unwrap();
        assert_eq!(carried(&none, "https://a.test/"), None);
    }

    #[test]
    fn what_is_no_proxy_is_refused_and_its_password_not_told() {
        for bad in [
            "socks5://u:secret@p.test",
            "http://u:secret@p.test/path",
            "http://u:secret@",
            "http://u:secret@p.test:99999",
        ] {
            let error = Proxies::new("", bad, "").unwrap_err().to_string();
            assert!(error.starts_with("https_proxy is not a proxy"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        for bad in ["10.0.0.0/33", "a b/8", "a.test:x", "?"] {
            let error = Proxies::new("", "", bad);
            assert!(matches!(error, Err(ProxyError::Exception(_))), "{bad}");
        }
        let many = "a,".repeat(EXCEPTIONS + 1);
        assert_eq!(
            Proxies::new("", "", &many).unwrap_err(),
            ProxyError::TooMany
        );
    }
}
