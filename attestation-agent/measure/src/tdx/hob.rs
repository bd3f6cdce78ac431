//! The TD HOB: the list of memory that QEMU writes for the firmware, and the firmware's first event.
//!
//! It is a list of hand-off blocks (PI specification, volume 3): a head, a block for each range of
//! memory, and an end, which the firmware leaves out of its measurement. Ranges that sections of the
//! metadata lie in are there already; the others are to be accepted by the guest.

use sha2::{Digest as _, Sha384};

use super::{Digest, Firmware, Memory, Section, SectionKind, Vmm};

const HEAD: u16 = 1;
const RESOURCE: u16 = 3;
const HEAD_BYTES: u16 = 56;
const RESOURCE_BYTES: u16 = 48;
const END_BYTES: u64 = 8;
const HEAD_VERSION: u32 = 9;

const SYSTEM_MEMORY: u32 = 0;
const UNACCEPTED_MEMORY: u32 = 7;
/// Present, initialised and tested.
const ATTRIBUTES: u32 = 7;

/// A list that QEMU would not write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the members are what the text says")]
pub enum HobError {
    /// A section for which there is no memory.
    #[error(
        "the firmware needs memory at {address:#x}, and a guest of {mib} MiB has none there: give it more"
    )]
    NoMemory { address: u64, mib: u64 },
    /// More ranges than fit.
    #[error("the list of memory needs {needed} bytes, and the firmware has room for {room}")]
    Room { needed: u64, room: u64 },
    /// Another VMM's list.
    #[error("the list of memory (TD HOB) is known here as QEMU writes it, not as {0} does")]
    Vmm(Vmm),
    /// A firmware that has been taken apart.
    #[error("the firmware has no place for the list of memory (TD HOB)")]
    NoPlace,
}

/// A range of memory, and whether it is in the TD already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    bytes: u64,
    added: bool,
}

/// The list's bytes as far as they are measured.
///
/// # Errors
/// When QEMU would not launch this firmware with this memory.
pub fn td_hob(firmware: &Firmware<'_>, memory: Memory) -> Result<Vec<u8>, HobError> {
    if firmware.vmm() != Vmm::Qemu {
        return Err(HobError::Vmm(firmware.vmm()));
    }
    let place = firmware.one(SectionKind::TdHob).ok_or(HobError::NoPlace)?;
    let ranges = ranges(firmware, memory)?;
    let bytes = u64::from(HEAD_BYTES) + u64::from(RESOURCE_BYTES) * ranges.len() as u64 + END_BYTES;
    if bytes > place.bytes {
        return Err(HobError::Room {
            needed: bytes,
            room: place.bytes,
        });
    }
    let mut list = Vec::new();
    head(&mut list, HEAD, HEAD_BYTES);
    list.extend(HEAD_VERSION.to_le_bytes());
    // The boot mode, and four addresses that the firmware does not read.
    list.extend([0; 4 + 4 * 8]);
    list.extend((place.address + bytes).to_le_bytes());
    for range in ranges {
        head(&mut list, RESOURCE, RESOURCE_BYTES);
        // No owner.
        list.extend([0; 16]);
        let kind = if range.added {
            SYSTEM_MEMORY
        } else {
            UNACCEPTED_MEMORY
        };
        list.extend(kind.to_le_bytes());
        list.extend(ATTRIBUTES.to_le_bytes());
        list.extend(range.start.to_le_bytes());
        list.extend(range.bytes.to_le_bytes());
    }
    Ok(list)
}

/// The size of memory whose list has this digest, of those that guests usually have: each MiB up to
/// 64 GiB, and each GiB up to 4 TiB.
#[must_use]
pub fn memory_of(firmware: &Firmware<'_>, digest: &Digest) -> Option<Memory> {
    let small = (64..=64 << 10).map(|mib| mib << 20);
    let large = (65..=4096).map(|gib: u64| gib << 30);
    small
        .chain(large)
        .filter_map(|bytes| Memory::new(bytes).ok())
        .find(|memory| {
            let list = td_hob(firmware, *memory);
            list.is_ok_and(|list| Sha384::digest(list)[..] == digest[..])
        })
}

fn head(list: &mut Vec<u8>, kind: u16, bytes: u16) {
    list.extend(kind.to_le_bytes());
    list.extend(bytes.to_le_bytes());
    list.extend([0; 4]);
}

fn ranges(firmware: &Firmware<'_>, memory: Memory) -> Result<Vec<Range>, HobError> {
    let range = |(start, bytes)| Range {
        start,
        bytes,
        added: false,
    };
    let mut ranges: Vec<_> = memory.parts().into_iter().map(range).collect();
    let given =
        |section: &&Section<'_>| matches!(section.kind, SectionKind::TdHob | SectionKind::Memory);
    for section in firmware.sections().iter().filter(given) {
        take(&mut ranges, section).ok_or(HobError::NoMemory {
            address: section.address,
            mib: memory.bytes() >> 20,
        })?;
    }
    ranges.sort_unstable_by_key(|range| range.start);
    Ok(ranges)
}

/// Cuts a section out of the range that holds it.
fn take(ranges: &mut Vec<Range>, section: &Section<'_>) -> Option<()> {
    let end = section.address + section.bytes;
    let holder = ranges.iter_mut().find(|range| {
        !range.added && range.start <= section.address && end <= range.start + range.bytes
    })?;
    let whole = *holder;
    *holder = Range {
        start: section.address,
        bytes: section.bytes,
        added: true,
    };
    let before = (whole.start, section.address - whole.start);
    let behind = (end, whole.start + whole.bytes - end);
    for (start, bytes) in [before, behind] {
        if bytes > 0 {
            ranges.push(Range {
                start,
                bytes,
                added: false,
            });
        }
    }
    Some(())
}
