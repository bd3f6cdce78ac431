//! How QEMU's q35 lays out a guest's memory.
//!
//! Above a certain size, memory is split: the part below 4 GiB leaves room for devices, and the rest
//! begins at 4 GiB. Where the split is decides what the list of memory says, and where a patched
//! kernel's initramfs goes.

use super::BELOW_4G;

/// The most memory of a guest: what an address of 46 bits reaches less the hole, rounded down.
pub const MEMORY_BYTES: u64 = 32 << 40;
/// Less than this holds neither firmware nor kernel.
const LEAST_BYTES: u64 = 64 << 20;
/// A size is a number of these, as QEMU's `-m` gives it.
const UNIT: u64 = 1 << 20;

/// From this size on the part below 4 GiB is [`SPLIT_LOW`].
const LARGE: u64 = 0xb000_0000;
const SPLIT_LOW: u64 = 0x8000_0000;

/// A guest's memory at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    bytes: u64,
}

/// A size that is not one of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes of memory: a guest has a whole number of MiB, from 64 MiB up to 32 TiB")]
pub struct MemoryError(pub u64);

impl Memory {
    /// So many bytes, without memory that is plugged later.
    ///
    /// # Errors
    /// When no guest has this size.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        if (LEAST_BYTES..=MEMORY_BYTES).contains(&bytes) && bytes.is_multiple_of(UNIT) {
            Ok(Self { bytes })
        } else {
            Err(MemoryError(bytes))
        }
    }

    /// All of it.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// The part below 4 GiB.
    pub(super) fn below_4g(self) -> u64 {
        if self.bytes >= LARGE {
            SPLIT_LOW
        } else {
            self.bytes
        }
    }

    /// Where memory is: start and length, one part or two.
    pub(super) fn parts(self) -> Vec<(u64, u64)> {
        let below = self.below_4g();
        let mut parts = vec![(0, below)];
        if self.bytes > below {
            parts.push((BELOW_4G, self.bytes - below));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_guest_has_two_parts_and_no_byte_is_lost() {
        let parts = |mib: u64| Memory::new(mib << 20).unwrap().parts();
        assert_eq!(parts(2048), [(0, 0x8000_0000)]);
        // Between 2 GiB and 2816 MiB all of it is below: the split depends on the whole size.
        assert_eq!(parts(2815), [(0, 2815 << 20)]);
        assert_eq!(
            parts(2816),
            [(0, 0x8000_0000), (BELOW_4G, (2816 << 20) - 0x8000_0000)]
        );
        assert_eq!(parts(10240), [(0, 0x8000_0000), (BELOW_4G, 8 << 30)]);
    }

    #[test]
    fn a_size_that_no_guest_has_is_refused() {
        for bytes in [0, 63 << 20, (64 << 20) + 1, MEMORY_BYTES + UNIT, u64::MAX] {
            assert_eq!(Memory::new(bytes), Err(MemoryError(bytes)));
        }
    }
}
