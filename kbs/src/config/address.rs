//! The addresses of servers in a configuration: one that could never be asked is refused when it is
//! read, and not when somebody waits for its answer.

use std::net::SocketAddr;

use http::Uri;
use rustls::pki_types::ServerName;

/// The hosts that may be spoken to without TLS where others may not: they are this machine.
pub(crate) const NEAR: [&str; 3] = ["127.0.0.1", "[::1]", "localhost"];

/// Who may be spoken to without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Whoever is named so.
    Anybody,
    /// This machine.
    Near,
}

/// What is wrong with an address, if anything is. A query is for those to which no path is appended.
pub(crate) fn fault(text: &str, plain: Plain, query: bool) -> Option<&'static str> {
    let Ok(uri) = text.parse::<Uri>() else {
        return Some("not an address: write https://HOST");
    };
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Some("it begins with neither https:// nor http://"),
    };
    let Some(authority) = uri.authority() else {
        return Some("it names no host");
    };
    let host = authority.host();
    if authority.as_str().contains('@') {
        return Some("no user or password may be in it");
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if ServerName::try_from(bare).is_err() {
        return Some("its host is neither a name nor an IP address");
    }
    if host.len() != authority.as_str().len() && authority.port_u16().is_none_or(|port| port == 0) {
        return Some("its port is not 1 to 65535");
    }
    if text.contains('#') || (!query && uri.query().is_some()) {
        return Some("neither a query nor a fragment may be in it");
    }
    if !secure && plain == Plain::Near && !NEAR.contains(&host) {
        return Some("it needs https://: only 127.0.0.1, [::1] and localhost may do without TLS");
    }
    None
}

/// Whether two servers of one process cannot listen there both. `[::]` takes IPv4 as well.
pub(super) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |address: SocketAddr, other: SocketAddr| {
        address.ip().is_unspecified() && (address.is_ipv6() || other.is_ipv4())
    };
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || all(one, other) || all(other, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_a_host_and_a_port_that_is_one() {
        for good in [
            "https://a.example",
            "https://a.example:8443/realms/x/",
            "https://[2001:db8::1]:1",
            "https://127.0.0.1/",
            "http://127.0.0.1:4318",
            "http://[::1]:4318",
            "http://localhost",
        ] {
            assert_eq!(fault(good, Plain::Near, false), None, "{good}");
        }
        for bad in [
            "",
            "a.example",
            "a.example:80",
            "/path",
            "http://",
            "https://",
            "https:///path",
            "https://:443",
            "https://a b",
            "https://a..b",
            "https://a:",
            "https://a:0",
            "https://a:65536",
            "https://a:b",
            "https://u@a",
            "https://u:p@a",
            "https://a?b=c",
            "https://a#b",
            "ftp://a",
            "unix:/socket",
        ] {
            assert!(fault(bad, Plain::Anybody, false).is_some(), "{bad}");
        }
        assert_eq!(fault("https://a/keys?p=1", Plain::Near, true), None);
        assert!(fault("https://a/keys?p=1#2", Plain::Near, true).is_some());
        for plain in ["http://a.example", "http://10.0.0.1", "http://127.0.0.2"] {
            assert_eq!(fault(plain, Plain::Anybody, false), None);
            assert!(fault(plain, Plain::Near, false).is_some(), "{plain}");
        }
    }

    #[test]
    fn one_port_is_for_one_server() {
        let collide = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(collide(one, other), super::collide(other, one));
            super::collide(one, other)
        };
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "0.0.0.0:80"),
        ] {
            assert!(collide(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("0.0.0.0:0", "127.0.0.1:0"),
        ] {
            assert!(!collide(one, other), "{one} {other}");
        }
    }
}
