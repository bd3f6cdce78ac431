//! What tells the agent's connections from those of a container, which reaches the same port: a value that
//! the agent makes at its start, says with `READY` before there is any container, and repeats on every line.

use std::fmt;
use std::str::FromStr;

use crate::LineError;

/// Bytes of a key.
pub const HOST_KEY_BYTES: usize = 16;

/// The key of one guest's agent.
#[derive(Clone, Copy)]
pub struct HostKey([u8; HOST_KEY_BYTES]);

impl HostKey {
    /// A key of random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HOST_KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for HostKey {
    /// Takes the same time wherever they differ.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(other.0);
        pairs.fold(0, |differ, (ours, theirs)| differ | (ours ^ theirs)) == 0
    }
}

impl Eq for HostKey {}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey")
    }
}

impl fmt::Display for HostKey {
    /// As it stands in a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for HostKey {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let digits = text.as_bytes();
        let plain = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
        if digits.len() != 2 * HOST_KEY_BYTES || !digits.iter().all(plain) {
            return Err(LineError::Key);
        }
        let mut bytes = [0; HOST_KEY_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| LineError::Key)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| LineError::Key)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_form_and_is_shown_to_nobody() {
        let key = HostKey::from_bytes([0xab; HOST_KEY_BYTES]);
        assert_eq!(key.to_string().parse::<HostKey>().unwrap(), key);
        assert_ne!(HostKey::from_bytes([0; HOST_KEY_BYTES]), key);
        assert_eq!(format!("{key:?}"), "HostKey");
        let long = "ab".repeat(HOST_KEY_BYTES + 1);
        let short = "ab".repeat(HOST_KEY_BYTES - 1);
        let signed = format!("+b{short}");
        for text in ["", &long, &short, &signed, &"AB".repeat(HOST_KEY_BYTES)] {
            assert!(text.parse::<HostKey>().is_err(), "{text}");
        }
    }
}
