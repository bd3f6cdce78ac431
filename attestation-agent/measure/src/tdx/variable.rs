//! UEFI variables in the forms in which firmware measures them.
//!
//! A variable of Secure Boot counts with its owner and its name, also where it is absent; a boot
//! variable counts by its value alone.

use evidence::eventlog::EventKind;

use super::{
    bytes::wide,
    event::{Event, Origin},
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

/// The variables of Secure Boot; one that is absent is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SecureBoot<'a> {
    /// Whether it is on: empty where the firmware has no Secure Boot, else one byte.
    pub secure_boot: &'a [u8],
    /// `PK`, the platform's key.
    pub pk: &'a [u8],
    /// `KEK`, keys that may change the lists.
    pub kek: &'a [u8],
    /// `db`, what may start.
    pub db: &'a [u8],
    /// `dbx`, what may not.
    pub dbx: &'a [u8],
    /// `dbt`, which leaves no event where it is absent.
    pub dbt: Option<&'a [u8]>,
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
    /// Neither off nor on.
    #[error("the variable SecureBoot is empty, 0 or 1 in one byte")]
    SecureBoot,
    /// A boot order of a firmware that has none.
    #[error("{0} boot options: there are at most {BOOT_OPTIONS}, and none twice")]
    BootOptions(usize),
}

impl SecureBoot<'_> {
    /// Whether it is on, so that what starts needs an authority.
    pub(super) fn is_on(&self) -> bool {
        self.secure_boot == [1]
    }

    pub(super) fn events(&self) -> Result<Vec<Event>, VariableError> {
        if !matches!(self.secure_boot, [] | [0 | 1]) {
            return Err(VariableError::SecureBoot);
        }
        let variables = [
            (GLOBAL, "SecureBoot", Some(self.secure_boot)),
            (GLOBAL, "PK", Some(self.pk)),
            (GLOBAL, "KEK", Some(self.kek)),
            (SECURITY, "db", Some(self.db)),
            (SECURITY, "dbx", Some(self.dbx)),
            (SECURITY, "dbt", self.dbt),
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
    fn an_absent_variable_leaves_an_event_and_an_absent_order_none() {
        assert_eq!(SecureBoot::default().events().unwrap().len(), 5);
        let with_dbt = SecureBoot {
            dbt: Some(&[]),
            ..SecureBoot::default()
        };
        assert_eq!(with_dbt.events().unwrap().len(), 6);
        assert!(boot_events(1, &[]).unwrap().is_empty());
    }

    #[test]
    fn what_no_firmware_has_is_refused() {
        let other = SecureBoot {
            secure_boot: &[2],
            ..SecureBoot::default()
        };
        assert_eq!(other.events(), Err(VariableError::SecureBoot));
        let long = vec![0; VARIABLE_BYTES + 1];
        let long = SecureBoot {
            db: &long,
            ..SecureBoot::default()
        };
        let said = long.events().unwrap_err().to_string();
        assert!(said.contains("the variable db"), "{said}");
        let option = BootOption {
            number: 0,
            value: vec![1],
        };
        let twice = [option.clone(), option];
        assert_eq!(boot_events(1, &twice), Err(VariableError::BootOptions(2)));
    }
}
