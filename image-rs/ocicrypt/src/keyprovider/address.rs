//! Where a key provider listens.
//!
//! Nothing encrypts what is said to it, and what is said to it are layer keys. So it must be on this machine: a socket
//! in the file system, or a loopback address. Another host is refused rather than spoken to in clear.

use std::net::IpAddr;
use std::path::PathBuf;

/// Why an address is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address.
    #[error("{0:?} is no address of a key provider: write unix:///path or 127.0.0.1:port")]
    Form(String),
    /// Another machine.
    #[error(
        "key provider {0:?} is not on this machine, and layer keys would go there in clear: \
         use a loopback address or unix:///path"
    )]
    Remote(String),
    /// A scheme that hides more than it says.
    #[error(
        "key provider {address:?}: scheme {scheme:?} is not supported; write unix:///path or 127.0.0.1:port"
    )]
    Scheme {
        /// The address.
        address: String,
        /// What stands before `:`.
        scheme: String,
    },
}

/// An address on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port of the loopback interface.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Reads an address as gRPC writes it: `host:port`, `unix:///path`, with `tcp://`, `http://` or `dns:///` before a
    /// host where somebody put it.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(bad())
            };
        }
        let plain = ["tcp://", "http://", "dns:///"]
            .into_iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(text);
        if let Some((scheme, _)) = plain.split_once("://") {
            return Err(AddressError::Scheme {
                address: text.to_owned(),
                scheme: scheme.to_owned(),
            });
        }
        let (host, port) = plain.rsplit_once(':').ok_or_else(bad)?;
        let is_port = port.parse::<u16>().is_ok();
        if host.is_empty() || !is_port {
            return Err(bad());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_local =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if is_local {
            Ok(Self::Tcp(plain.to_owned()))
        } else {
            Err(AddressError::Remote(text.to_owned()))
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => formatter.write_str(address),
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_others_write_it() {
        for text in ["unix:///run/a.sock", "unix:/run/a.sock"] {
            assert_eq!(
                Address::parse(text),
                Ok(Address::Unix("/run/a.sock".into()))
            );
        }
        for text in [
            "127.0.0.1:50000",
            "http://127.0.0.1:50000",
            "tcp://127.0.0.1:50000",
        ] {
            assert_eq!(
                Address::parse(text),
                Ok(Address::Tcp("127.0.0.1:50000".to_owned()))
            );
        }
        assert_eq!(
            Address::parse("[::1]:1"),
            Ok(Address::Tcp("[::1]:1".to_owned()))
        );
    }

    #[test]
    fn a_provider_on_another_machine_is_refused() {
        for text in ["10.0.0.1:50000", "kms.example:443", "localhost.example:1"] {
            assert_eq!(
                Address::parse(text),
                Err(AddressError::Remote(text.to_owned()))
            );
        }
        for text in ["https://127.0.0.1:1", "vsock://2:1024"] {
            assert!(
                matches!(Address::parse(text), Err(AddressError::Scheme { .. })),
                "{text}"
            );
        }
        for text in ["", ":1", "127.0.0.1", "127.0.0.1:99999", "unix:relative"] {
            assert!(
                matches!(Address::parse(text), Err(AddressError::Form(_))),
                "{text}"
            );
        }
    }
}
