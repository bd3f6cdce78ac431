//! The table at the end of an OVMF image, in which firmware says things of itself to a VMM.
//!
//! 32 bytes before the end of the image ends a table whose entries are read backwards: content, length,
//! GUID.
//!
//! Source: edk2's `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`.

use crate::guid::guid;

/// Bytes of an image: QEMU maps at most this below 4 GiB.
pub const FIRMWARE_BYTES: usize = 16 * 1024 * 1024;

/// What stands behind the table: the reset vector.
const BEHIND_TABLE: usize = 32;
/// The length and the GUID of an entry.
const ENTRY_BYTES: usize = 2 + 16;

const FOOTER: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);

/// Why there are no entries, or no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Another firmware.
    #[error(
        "the firmware has no OVMF table at its end: give an OVMF image with its code, not its variables alone"
    )]
    Missing,
    /// It contradicts itself so many bytes before its end.
    #[error(
        "the OVMF table is broken at the entry {0} bytes before its end: build the firmware anew"
    )]
    Broken(usize),
}

/// An entry: its GUID and its content.
pub(crate) type Entry<'a> = ([u8; 16], &'a [u8]);

/// The entries, the last first.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    rest: &'a [u8],
    /// Bytes up to the end of the table.
    end: usize,
}

impl<'a> Entries<'a> {
    pub(crate) fn of(image: &'a [u8]) -> Result<Self, TableError> {
        let all = image.len().checked_sub(BEHIND_TABLE);
        let all = all.and_then(|end| image.get(..end)).unwrap_or_default();
        let (whole, guid, length) = last(all).ok_or(TableError::Missing)?;
        if guid != FOOTER {
            return Err(TableError::Missing);
        }
        // The footer's length is that of the table, itself included.
        let start = all.len().checked_sub(length);
        let rest = start.and_then(|start| whole.get(start..));
        Ok(Self {
            rest: rest.ok_or(TableError::Broken(0))?,
            end: all.len(),
        })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let broken = TableError::Broken(self.end.saturating_sub(self.rest.len()));
        let entry = last(self.rest).and_then(|(before, guid, length)| {
            let content = length.checked_sub(ENTRY_BYTES)?;
            let (rest, content) = before.split_at(before.len().checked_sub(content)?);
            Some((rest, guid, content))
        });
        let Some((rest, guid, content)) = entry else {
            self.rest = &[];
            return Some(Err(broken));
        };
        self.rest = rest;
        Some(Ok((guid, content)))
    }
}

/// What stands before the last entry's length and GUID, the GUID, and the length.
fn last(table: &[u8]) -> Option<(&[u8], [u8; 16], usize)> {
    let (rest, guid) = table.split_last_chunk::<16>()?;
    let (rest, length) = rest.split_last_chunk::<2>()?;
    Some((rest, *guid, u16::from_le_bytes(*length).into()))
}
