//! Events of the attestation agent in a log (AAEL), as guest-components writes them: what it records while
//! a guest runs, behind what firmware and kernel recorded while it started.
//!
//! An event is a text of three words, `<domain> <operation> <content>`, with a tag and its length before
//! it, and its digest is of all that. Domain and operation have no blank in them, so that the three can be
//! told apart again.

use sha2::{Digest, Sha384};

use super::{AAEL_TAG, DigestAlgorithm, EventKind, REGISTERS, SPEC_ID};

/// The most bytes of an event's text.
pub const AAEL_TEXT_BYTES: usize = 64 * 1024;
/// Bytes of the digests that extend registers.
const DIGEST_BYTES: usize = 48;
/// What is put behind a log: nothing follows.
pub const LOG_END: [u8; 8] = [0xff; 8];

/// An event, as it is given to the attestation agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AaelEvent<'a> {
    /// Whose event it is.
    pub domain: &'a str,
    /// What happened.
    pub operation: &'a str,
    /// And with what.
    pub content: &'a str,
}

/// A text that could be read as another event, or that is no event's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AaelError {
    /// No word.
    #[error(
        "a runtime event's domain and operation are words, without a space or a control character"
    )]
    Word,
    /// No line.
    #[error("a runtime event's content is one line")]
    Line,
    /// Too long.
    #[error("a runtime event of {0} bytes: at most {AAEL_TEXT_BYTES} are recorded")]
    Length(usize),
}

impl AaelEvent<'_> {
    /// The event's data, whose hash extends a register.
    ///
    /// # Errors
    /// When the three could not be told apart in it, or it is too long.
    pub fn data(&self) -> Result<Vec<u8>, AaelError> {
        let word = |text: &str| {
            !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        };
        if !word(self.domain) || !word(self.operation) {
            return Err(AaelError::Word);
        }
        if self.content.contains(['\n', '\0']) {
            return Err(AaelError::Line);
        }
        let text = format!("{} {} {}", self.domain, self.operation, self.content);
        let length = u32::try_from(text.len()).ok();
        let length = length.filter(|_| text.len() <= AAEL_TEXT_BYTES);
        let length = length.ok_or(AaelError::Length(text.len()))?;
        let mut data = AAEL_TAG.to_le_bytes().to_vec();
        data.extend(length.to_le_bytes());
        data.extend(text.as_bytes());
        Ok(data)
    }
}

/// The register of a TD for the number of a TPM's (UEFI 2.10, table 38.4): 1 to 4, as logs have it, for
/// RTMR0 to RTMR3.
#[must_use]
pub const fn register_of_pcr(pcr: u64) -> u32 {
    match pcr {
        1 | 7 => 1,
        2..=6 => 2,
        8..=15 => 3,
        _ => 4,
    }
}

/// An entry of a log (`TCG_PCR_EVENT2`) with the SHA-384 of its data, and that digest. The index is the
/// register's, from 1 to [`REGISTERS`].
#[must_use]
pub fn entry(index: u32, data: &[u8]) -> (Vec<u8>, [u8; DIGEST_BYTES]) {
    let digest = Sha384::digest(data).into();
    (
        measured_entry(index, EventKind::EventTag, data, &digest),
        digest,
    )
}

/// An entry whose digest is of something else than its data.
pub(crate) fn measured_entry(
    index: u32,
    kind: EventKind,
    data: &[u8],
    digest: &[u8; DIGEST_BYTES],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(18 + digest.len() + data.len());
    for number in [index, kind.number(), 1] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(DigestAlgorithm::Sha384.id().to_le_bytes());
    bytes.extend(digest);
    put_sized(&mut bytes, data);
    bytes
}

/// What a log begins with that has SHA-384 digests alone, where firmware has written none.
#[must_use]
pub fn header() -> Vec<u8> {
    let mut spec = SPEC_ID.to_vec();
    // Class, version 2.0, and the size of a machine word.
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    spec.extend(1u32.to_le_bytes());
    spec.extend(DigestAlgorithm::Sha384.id().to_le_bytes());
    spec.extend(48u16.to_le_bytes());
    // No vendor's data.
    spec.push(0);
    let mut bytes = 1u32.to_le_bytes().to_vec();
    bytes.extend(EventKind::NoAction.number().to_le_bytes());
    bytes.extend([0; 20]);
    put_sized(&mut bytes, &spec);
    bytes
}

/// A register's value after a digest has extended it.
#[must_use]
pub fn extended(register: &[u8; DIGEST_BYTES], digest: &[u8; DIGEST_BYTES]) -> [u8; DIGEST_BYTES] {
    let value = Sha384::new().chain_update(register).chain_update(digest);
    value.finalize().into()
}

/// Whether a log may name this register.
#[must_use]
pub fn is_register(index: u32) -> bool {
    usize::try_from(index).is_ok_and(|index| (1..=REGISTERS).contains(&index))
}

fn put_sized(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend(length.to_le_bytes());
    to.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventlog::EventLog;

    fn event<'a>(domain: &'a str, operation: &'a str, content: &'a str) -> AaelEvent<'a> {
        AaelEvent {
            domain,
            operation,
            content,
        }
    }

    #[test]
    fn a_text_that_could_be_another_event_is_refused() {
        let refused = |domain, operation, content| event(domain, operation, content).data();
        assert_eq!(refused("a b", "c", "d"), Err(AaelError::Word));
        assert_eq!(refused("a", "", "d"), Err(AaelError::Word));
        assert_eq!(refused("a", "b", "c\nd"), Err(AaelError::Line));
        assert!(refused("a", "b", "").is_ok());
        let long = "x".repeat(AAEL_TEXT_BYTES);
        assert_eq!(
            refused("a", "b", &long),
            Err(AaelError::Length(AAEL_TEXT_BYTES + 4))
        );
    }

    #[test]
    fn the_digest_is_the_peers() {
        // Recorded from a guest-components attestation-agent.
        let data = event("domain", "operation", "content").data().unwrap();
        let (bytes, digest) = entry(4, &data);
        assert_eq!(
            hex::encode(digest),
            "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02"
        );
        let log = [&header()[..], &bytes, &LOG_END].concat();
        let log = EventLog::parse(&log).unwrap();
        assert!(log.events()[0].digest_matches());
        let [.., last] = log.replay().unwrap();
        assert_eq!(last.value, extended(&[0; 48], &digest));
    }

    #[test]
    fn a_tpms_numbers_become_a_tds() {
        let of = [0, 1, 2, 6, 7, 8, 15, 16, 17, 23].map(register_of_pcr);
        assert_eq!(of, [4, 1, 2, 2, 1, 3, 3, 4, 4, 4]);
        assert!(is_register(1) && is_register(4) && !is_register(0) && !is_register(5));
    }
}
