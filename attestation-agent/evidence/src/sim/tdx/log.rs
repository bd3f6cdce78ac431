//! Event logs as firmware and the attestation agent would write them.

use sha2::{Digest, Sha384};

use crate::eventlog::{AAEL_TAG, EventKind, REGISTERS, extended, header, measured_entry};

/// Bytes of a register.
const REGISTER_BYTES: usize = 48;

/// A log in the making, and the registers that its events extend.
#[derive(Debug, Clone)]
pub struct LogBuilder {
    bytes: Vec<u8>,
    registers: [[u8; REGISTER_BYTES]; REGISTERS],
}

impl Default for LogBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LogBuilder {
    /// A log with its header alone.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: header(),
            registers: [[0; REGISTER_BYTES]; REGISTERS],
        }
    }

    /// An event whose digest is the hash of its data.
    #[must_use]
    pub fn event(self, index: u32, kind: EventKind, data: &[u8]) -> Self {
        let digest = Sha384::digest(data).into();
        self.measured(index, kind, data, &digest)
    }

    /// An event whose digest is of something else, as that of a file which the data names.
    #[must_use]
    pub fn measured(
        mut self,
        index: u32,
        kind: EventKind,
        data: &[u8],
        digest: &[u8; REGISTER_BYTES],
    ) -> Self {
        self.bytes.extend(measured_entry(index, kind, data, digest));
        let register = usize::try_from(index)
            .ok()
            .and_then(|index| self.registers.get_mut(index.checked_sub(1)?));
        if let Some(register) = register.filter(|_| kind != EventKind::NoAction) {
            *register = extended(register, digest);
        }
        self
    }

    /// An event of the attestation agent, in RTMR3.
    #[must_use]
    pub fn aael(self, domain: &str, operation: &str, content: &str) -> Self {
        let text = format!("{domain} {operation} {content}");
        let mut data = AAEL_TAG.to_le_bytes().to_vec();
        data.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        data.extend(text.as_bytes());
        self.event(4, EventKind::EventTag, &data)
    }

    /// What RTMR0 to RTMR3 are after these events.
    #[must_use]
    pub fn registers(&self) -> [[u8; REGISTER_BYTES]; REGISTERS] {
        self.registers
    }

    /// The log's bytes, padded as firmware pads them.
    #[must_use]
    pub fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.extend([0xff; 16]);
        bytes
    }
}
