//! The firmware's variable store, which its section of variables (CFV) begins with.
//!
//! A TD's firmware has no other place for variables than its own image, so that what it finds of Secure
//! Boot at its start is here. It is a volume with a store of authenticated variables (edk2's
//! `MdeModulePkg/Include/Guid/VariableFormat.h`).

use super::bytes::{place_at, u16_at};
use crate::guid::guid;

/// Where a volume has its signature, and the length of its head.
const SIGNATURE_AT: usize = 0x28;
const SIGNATURE: &[u8] = b"_FVH";
const HEAD_BYTES_AT: usize = 0x30;

/// A store of authenticated variables.
const STORE: [u8; 16] = guid(0xaaf3_2c78, 0x947b, 0x439a, 0xa180_2e14_4ec3_7792);
/// GUID, size, format, state and reserved bytes.
const STORE_HEAD_BYTES: usize = 28;
/// Formatted and healthy.
const STORE_STATE: [u8; 2] = [0x5a, 0xfe];

const VARIABLE: u16 = 0x55aa;
/// What an erased store has in the place of a variable.
const NONE: u16 = 0xffff;
const VARIABLE_HEAD_BYTES: usize = 60;
/// The bits of a state that are still set: the variable holds, or holds until its successor does.
const ADDED: u8 = 0x3f;
const LEAVING: u8 = 0x3e;

/// A store that is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the firmware's section of variables (CFV) is not readable: {0}")]
pub struct StoreError(pub &'static str);

/// A variable that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variable<'a> {
    owner: &'a [u8],
    /// In UTF-16, with its zero.
    name: &'a [u8],
    value: &'a [u8],
    state: u8,
}

/// The variables of a firmware's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Store<'a> {
    variables: Vec<Variable<'a>>,
}

impl<'a> Store<'a> {
    pub(super) fn parse(volume: &'a [u8]) -> Result<Self, StoreError> {
        let mut variables = Vec::new();
        let mut rest = area(volume)?;
        loop {
            match u16_at(rest, 0) {
                Some(VARIABLE) => {}
                None | Some(NONE) => return Ok(Self { variables }),
                Some(_) => return Err(StoreError("something else is in the place of a variable")),
            }
            let (variable, bytes) = variable(rest).ok_or(StoreError("a variable is cut off"))?;
            if matches!(variable.state, ADDED | LEAVING) {
                variables.push(variable);
            }
            rest = rest.get(bytes..).unwrap_or_default();
        }
    }

    /// The value of a variable, of which one that holds goes before one that is leaving.
    pub(super) fn get(&self, owner: [u8; 16], name: &[u8]) -> Option<&'a [u8]> {
        let named = |one: &&Variable<'a>| {
            one.owner == owner && one.name.strip_suffix(&[0, 0]) == Some(name)
        };
        let all = || self.variables.iter().filter(named);
        let holds = all().find(|one| one.state == ADDED);
        holds.or_else(|| all().next()).map(|one| one.value)
    }
}

/// The part of a volume that has the variables.
fn area(volume: &[u8]) -> Result<&[u8], StoreError> {
    let signed = volume.get(SIGNATURE_AT..);
    if !signed.is_some_and(|rest| rest.starts_with(SIGNATURE)) {
        return Err(StoreError("it is no volume of firmware"));
    }
    let head = u16_at(volume, HEAD_BYTES_AT).map(usize::from);
    let store = head.and_then(|head| volume.get(head..)).unwrap_or_default();
    if !store.starts_with(&STORE) {
        return Err(StoreError("it has no store of authenticated variables"));
    }
    if store.get(20..22) != Some(&STORE_STATE) {
        return Err(StoreError("its store is not formatted, or not healthy"));
    }
    place_at(store, 16)
        .and_then(|bytes| store.get(STORE_HEAD_BYTES..bytes))
        .ok_or(StoreError("its store is cut off"))
}

/// The variable at the start, and how many bytes further the next one is.
fn variable(rest: &[u8]) -> Option<(Variable<'_>, usize)> {
    let state = *rest.get(2)?;
    let name = place_at(rest, 36)?;
    let value = place_at(rest, 40)?;
    let owner = rest.get(44..VARIABLE_HEAD_BYTES)?;
    let name_end = VARIABLE_HEAD_BYTES.checked_add(name)?;
    let end = name_end.checked_add(value)?;
    let variable = Variable {
        owner,
        name: rest.get(VARIABLE_HEAD_BYTES..name_end)?,
        value: rest.get(name_end..end)?,
        state,
    };
    Some((variable, end.checked_next_multiple_of(4)?))
}
