//! SMBIOS' tables, as firmware measures them since edk2's stable202505: the whole list, without what is a machine's
//! own.
//!
//! QEMU and firmware make the list together: it tells processors, memory and the VMM's version. So it is an input, as
//! ACPI's tables are: of a guest of the same shape, which has it in `/sys/firmware/dmi/tables/DMI`. Before it is
//! measured, serial numbers, asset tags, the machine's UUID and the like become zeros, and their texts blanks.
//!
//! Sources: DMTF DSP0134 (the structures); edk2's `MdeModulePkg/Universal/SmbiosMeasurementDxe` (what is taken out).

use std::ops::Range;

use evidence::eventlog::EventKind;

use super::event::{Event, Origin};

/// The most bytes of a list: Linux and firmware have some KiB.
pub const SMBIOS_BYTES: usize = 1024 * 1024;

/// Type, length and handle, with which each structure begins.
const HEADER: usize = 4;
/// The type of the last structure; greater ones are the maker's own.
const END: u8 = 127;
/// Structures of which nothing but the header is measured, as of the maker's own: texts, a log, errors, and others.
const EMPTIED: [u8; 5] = [0x0b, 0x0f, 0x12, 0x1f, 0x21];

/// What is taken out of a type of structure.
struct Filter {
    kind: u8,
    /// Fields that are the number of a text.
    texts: &'static [usize],
    /// Others: where they are, and how many bytes they have.
    fields: &'static [(usize, usize)],
}

const FILTERS: [Filter; 9] = [
    // System: serial number; UUID, wake-up type.
    Filter {
        kind: 0x01,
        texts: &[0x07],
        fields: &[(0x08, 16), (0x18, 1)],
    },
    // Board: serial number, place in the chassis.
    Filter {
        kind: 0x02,
        texts: &[0x07, 0x0a],
        fields: &[],
    },
    // Chassis: serial number, asset tag.
    Filter {
        kind: 0x03,
        texts: &[0x07, 0x08],
        fields: &[],
    },
    // Processor: serial number, asset tag, part number; voltage, speed, counts of cores and threads.
    Filter {
        kind: 0x04,
        texts: &[0x20, 0x21, 0x22],
        fields: &[
            (0x11, 1),
            (0x16, 2),
            (0x23, 1),
            (0x24, 1),
            (0x25, 1),
            (0x2a, 2),
            (0x2c, 2),
            (0x2e, 2),
        ],
    },
    // Memory device: serial number, asset tag, part number.
    Filter {
        kind: 0x11,
        texts: &[0x18, 0x19, 0x1a],
        fields: &[],
    },
    // Battery: serial number; its other serial number, date.
    Filter {
        kind: 0x16,
        texts: &[0x07],
        fields: &[(0x10, 2), (0x12, 2)],
    },
    // Reset: how often.
    Filter {
        kind: 0x17,
        texts: &[],
        fields: &[(0x05, 2)],
    },
    // Cooling device: speed.
    Filter {
        kind: 0x1b,
        texts: &[],
        fields: &[(0x0c, 2)],
    },
    // Power supply: serial number, asset tag, model.
    Filter {
        kind: 0x27,
        texts: &[0x08, 0x09, 0x0a],
        fields: &[],
    },
];

/// A list that is none, or whose measurement is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// It is empty, or too long.
    #[error("SMBIOS' tables have {0} bytes: they have 1 to {SMBIOS_BYTES}")]
    Length(usize),
    /// It breaks off.
    #[error("SMBIOS' tables break off at byte {0}: take the whole of /sys/firmware/dmi/tables/DMI")]
    Broken(usize),
    /// A field that is the number of a text which is not there.
    #[error("the structure of type {0} in SMBIOS' tables has no text of a number that is in it")]
    Text(u8),
}

/// The event.
pub(super) fn event(tables: &[u8]) -> Result<Event, SmbiosError> {
    let kind = EventKind::EfiHandoffTables;
    Ok(Event::of(1, kind, Origin::Smbios, &filtered(tables)?))
}

/// The list as it is measured, up to its last structure.
fn filtered(tables: &[u8]) -> Result<Vec<u8>, SmbiosError> {
    if tables.is_empty() || tables.len() > SMBIOS_BYTES {
        return Err(SmbiosError::Length(tables.len()));
    }
    let mut tables = tables.to_vec();
    let mut at = 0;
    loop {
        let rest = &mut tables[at..];
        let (formatted, whole) = lengths(rest).ok_or(SmbiosError::Broken(at))?;
        let structure = &mut rest[..whole];
        let kind = structure[0];
        filter(structure, formatted)?;
        at += whole;
        if kind == END {
            tables.truncate(at);
            return Ok(tables);
        }
    }
}

/// The lengths of the first structure: what it says itself, and with its texts, which end with two zeros.
fn lengths(tables: &[u8]) -> Option<(usize, usize)> {
    let formatted = usize::from(*tables.get(1)?);
    let texts = tables.get(formatted..)?;
    let end = texts.windows(2).position(|pair| pair == [0, 0])?;
    (formatted >= HEADER).then_some((formatted, formatted + end + 2))
}

/// Takes out what is taken out of this type of structure, as far as this one has it.
fn filter(structure: &mut [u8], formatted: usize) -> Result<(), SmbiosError> {
    let kind = structure[0];
    if kind > END || EMPTIED.contains(&kind) {
        structure[HEADER..].fill(0);
        return Ok(());
    }
    let Some(filter) = FILTERS.iter().find(|filter| filter.kind == kind) else {
        return Ok(());
    };
    for at in filter.texts.iter().filter(|at| **at < formatted) {
        let number = usize::from(structure[*at]);
        if number > 0 {
            let text = text(structure, formatted, number).ok_or(SmbiosError::Text(kind))?;
            structure[text].fill(b' ');
        }
        structure[*at] = 0;
    }
    for (at, bytes) in filter.fields {
        if at + bytes <= formatted {
            structure[*at..at + bytes].fill(0);
        }
    }
    Ok(())
}

/// Where the text of a number is, which counts from one.
fn text(structure: &[u8], formatted: usize, number: usize) -> Option<Range<usize>> {
    let mut start = formatted;
    for (count, text) in structure[formatted..].split(|byte| *byte == 0).enumerate() {
        if text.is_empty() {
            return None;
        }
        let end = start + text.len();
        if count + 1 == number {
            return Some(start..end);
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: &[u8] = &[END, 4, 9, 0, 0, 0];

    fn system(serial: &[u8], uuid: u8) -> Vec<u8> {
        let mut structure = vec![1, 0x1b, 7, 1, 1, 2, 0, 3];
        structure.extend([uuid; 16]);
        structure.extend([6, 0, 0]);
        structure.extend(b"QEMU\0Standard PC\0");
        structure.extend(serial);
        structure.extend([0, 0]);
        structure
    }

    #[test]
    fn what_is_a_machines_own_is_taken_out_and_the_rest_stays() {
        let list = |serial: &[u8], uuid| [&system(serial, uuid), LAST].concat();
        let one = filtered(&list(b"A1", 5)).unwrap();
        assert_eq!(one, filtered(&list(b"B2", 7)).unwrap());
        assert_ne!(one, filtered(&list(b"longer", 5)).unwrap(), "blanks");
        assert_eq!(one.len(), list(b"A1", 5).len());
        let texts = one.windows(3).any(|three| three == [0, b' ', b' ']);
        assert!(
            texts && one.windows(4).any(|word| word == b"QEMU"),
            "{one:x?}"
        );
        // Texts of the maker are no part of it, and nothing behind the end is.
        let maker = [&[11, 5, 1, 0, 1][..], b"x\0\0", LAST, b"behind"].concat();
        let wanted = [&[11, 5, 1, 0, 0][..], b"\0\0\0", LAST].concat();
        assert_eq!(filtered(&maker).unwrap(), wanted);
        let own = [&[200, 5, 1, 0, 9][..], b"\0\0", LAST].concat();
        let wanted = [&[200, 5, 1, 0, 0][..], b"\0\0", LAST].concat();
        assert_eq!(filtered(&own).unwrap(), wanted);
        // Of an older structure, which ends within the UUID, the text alone.
        let short = [&[1, 10, 7, 1, 0, 0, 0, 1, 9, 9][..], b"A1\0\0", LAST].concat();
        let wanted = [&[1, 10, 7, 1, 0, 0, 0, 0, 9, 9][..], b"  \0\0", LAST].concat();
        assert_eq!(filtered(&short).unwrap(), wanted);
    }

    #[test]
    fn what_firmware_would_make_of_it_is_known_or_it_is_refused() {
        assert_eq!(filtered(&[]), Err(SmbiosError::Length(0)));
        let long = vec![0; SMBIOS_BYTES + 1];
        assert_eq!(filtered(&long), Err(SmbiosError::Length(long.len())));
        let whole = [&system(b"A1", 5), LAST].concat();
        let first = system(b"A1", 5).len();
        for end in 1..whole.len() {
            let at = if end < first { 0 } else { first };
            assert_eq!(
                filtered(&whole[..end]),
                Err(SmbiosError::Broken(at)),
                "{end}"
            );
        }
        assert_eq!(filtered(&[1, 3, 0, 0, 0, 0]), Err(SmbiosError::Broken(0)));
        let mut absent = whole.clone();
        absent[7] = 4;
        assert_eq!(filtered(&absent), Err(SmbiosError::Text(1)));
    }
}
