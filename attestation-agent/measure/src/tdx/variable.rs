//! UEFI variables in the forms in which firmware measures them.
//!
//! A variable of Secure Boot counts with its owner and its name, also where it is absent; a boot
//! variable counts by its value alone.

use evidence::eventlog::EventKind;

use super::{
    bytes::wide,
    event::{Event, Origin},
    store::Store,
};
use crate::guid::guid;

const GLOBAL: [u8; 16] = guid(0x8be4_df61, 0x93ca, 0x11d2, 0xaa0d_00e0_9803_2b8c);
const SECURITY: [u8; 16] = guid(0xd719_b2cb, 0x3d3a, 0x4596, 0xa3bc_dad0_0e67_656f);

/// The volume in which OVMF has its applications.
const VOLUME: [u8; 16] = guid(0x7cb8_bdc9, 0xf8eb, 0x4f34, 0xaaea_3ee4_af65_16a1);

/// The most bytes of a variable: lists of forbidden loaders have some 20 KiB.
const VARIABLE_BYTES: usize = 256 * 1024;
/// The most entries of the boot order.
const BOOT_OPTIONS: usize = 128;

/// The variable `SecureBoot`, which the firmware makes at its start and no image has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SecureBoot {
    /// A firmware that is built without Secure Boot.
    #[default]
    Absent,
    /// One with it and without keys.
    Off,
    /// One with it and with keys: what starts has to be signed.
    On,
}

/// Something that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootOption {
    /// `Boot####`.
    pub number: u16,
    /// The value, an `EFI_LOAD_OPTION`.
    pub value: Vec<u8>,
}

/// A variable that no firmware has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the members are what the text says")]
pub enum VariableError {
    /// Too long.
    #[error("the variable {name} has {bytes} bytes: at most {VARIABLE_BYTES} are measured here")]
    Length { name: String, bytes: usize },
    /// A boot order of a firmware that has none.
    #[error("{0} boot options: there are at most {BOOT_OPTIONS}, and none twice")]
    BootOptions(usize),
}

impl SecureBoot {
    fn value(self) -> &'static [u8] {
        match self {
            Self::Absent => &[],
            Self::Off => &[0],
            Self::On => &[1],
        }
    }
}

/// Whether a platform key is enrolled, with which firmware that has Secure Boot turns it on.
pub(super) fn is_enrolled(store: &Store<'_>) -> bool {
    let key = store.get(GLOBAL, &wide("PK"));
    key.is_some_and(|key| !key.is_empty())
}

/// The events of Secure Boot: a variable that is absent counts as an empty one, but for `dbt`.
pub(super) fn secure_boot_events(
    secure_boot: SecureBoot,
    store: &Store<'_>,
) -> Result<Vec<Event>, VariableError> {
    let stored = |owner, name| store.get(owner, &wide(name));
    let or_empty = |owner, name| Some(stored(owner, name).unwrap_or_default());
    let variables = [
        (GLOBAL, "SecureBoot", Some(secure_boot.value())),
        (GLOBAL, "PK", or_empty(GLOBAL, "PK")),
        (GLOBAL, "KEK", or_empty(GLOBAL, "KEK")),
        (SECURITY, "db", or_empty(SECURITY, "db")),
        (SECURITY, "dbx", or_empty(SECURITY, "dbx")),
        (SECURITY, "dbt", stored(SECURITY, "dbt")),
    ];
    let mut events = Vec::new();
    for (owner, name, value) in variables {
        let Some(value) = value else { continue };
        bounded(name, value)?;
        let origin = Origin::SecureBoot(name);
        let data = variable(owner, name, value);
        let kind = EventKind::EfiVariableDriverConfig;
        events.push(Event::of(1, kind, origin, &data));
    }
    Ok(events)
}

impl BootOption {
    /// An application in OVMF's own volume, as its boot manager registers it.
    pub(super) fn application(number: u16, attributes: u32, name: &str, file: [u8; 16]) -> Self {
        // Type 4 is media: a volume, a file in it, and the end of the path.
        let mut path = vec![4, 7, 20, 0];
        path.extend(VOLUME);
        path.extend([4, 6, 20, 0]);
        path.extend(file);
        path.extend([0x7f, 0xff, 4, 0]);
        let mut value = attributes.to_le_bytes().to_vec();
        value.extend(u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
        value.extend(wide(name));
        value.extend([0, 0]);
        value.extend(path);
        Self { number, value }
    }
}

/// The boot order and what it lists. No order is no event.
pub(super) fn boot_events(index: u32, options: &[BootOption]) -> Result<Vec<Event>, VariableError> {
    let twice = |(at, option): (usize, &BootOption)| {
        options
            .iter()
            .take(at)
            .any(|other| other.number == option.number)
    };
    if options.len() > BOOT_OPTIONS || options.iter().enumerate().any(twice) {
        return Err(VariableError::BootOptions(options.len()));
    }
    if options.is_empty() {
        return Ok(Vec::new());
    }
    let order: Vec<u8> = options
        .iter()
        .flat_map(|option| option.number.to_le_bytes())
        .collect();
    let kind = EventKind::EfiVariableBoot;
    let mut events = vec![Event::of(index, kind, Origin::BootOrder, &order)];
    for option in options {
        let origin = Origin::BootOption(option.number);
        bounded(&format!("Boot{:04x}", option.number), &option.value)?;
        events.push(Event::of(index, kind, origin, &option.value));
    }
    Ok(events)
}

fn bounded(name: &str, value: &[u8]) -> Result<(), VariableError> {
    if value.len() <= VARIABLE_BYTES {
        return Ok(());
    }
    Err(VariableError::Length {
        name: name.to_owned(),
        bytes: value.len(),
    })
}

/// `UEFI_VARIABLE_DATA`.
fn variable(owner: [u8; 16], name: &str, value: &[u8]) -> Vec<u8> {
    let wide = wide(name);
    let mut data = owner.to_vec();
    data.extend((wide.len() as u64 / 2).to_le_bytes());
    data.extend((value.len() as u64).to_le_bytes());
    data.extend(wide);
    data.extend(value);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_order_that_no_firmware_has_is_refused() {
        assert!(boot_events(1, &[]).unwrap().is_empty());
        let option = BootOption {
            number: 0,
            value: vec![1],
        };
        let twice = [option.clone(), option];
        assert_eq!(boot_events(1, &twice), Err(VariableError::BootOptions(2)));
    }
}
