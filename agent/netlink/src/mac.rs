//! The hardware address of an Ethernet interface.

use std::fmt;
use std::str::FromStr;

/// Six bytes, written as `02:00:00:ab:cd:ef`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// The text is no hardware address of Ethernet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address such as 02:00:00:ab:cd:ef")]
pub struct ParseMacError(String);

impl Mac {
    /// Whether it names one interface: neither a group nor nobody.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseMacError(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && is_hex(part));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(refused)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(refused()),
        }
    }
}

/// A sign would be a number to `from_str_radix`.
fn is_hex(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_comes_back() {
        let mac: Mac = "02:00:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:ab:cd:0f");
        assert!(mac.is_unicast());
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "02:00:00:ab:cd",
            "02:00:00:ab:cd:ef:01",
            "2:00:00:ab:cd:ef",
            "+2:00:00:ab:cd:ef",
            "02-00-00-ab-cd-ef",
            "0g:00:00:ab:cd:ef",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_and_nobody_are_no_interface() {
        for text in [
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(!text.parse::<Mac>().unwrap().is_unicast(), "{text}");
        }
    }
}
