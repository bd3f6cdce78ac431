//! What an event's data says, where it has the form of its type.
//!
//! Members and texts are those that Trustee derives, with its rules for padding, so that policies
//! written for it meet the same strings. Data of another form has no details.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::Value;

use super::{device_path, kind::EventKind, log::Reader};

/// `AAEL`, the tag of the attestation agent's own events.
pub const AAEL_TAG: u32 = 0x4141_454c;

/// The prefix of one cloud's boot loader events, after which the text is UTF-16.
const WIDE_PREFIX: &[u8; 2] = &[0x2e, 0];
/// The end of a device path: type, sub-type and length.
const PATH_END_BYTES: usize = 4;

/// An event's text, by its parts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the claims")]
pub struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unicode_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unicode_name_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variable_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variable_data_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variable_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_paths: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Aael>,
}

/// An event of the attestation agent: `<domain> <operation> <content>`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the claims")]
pub struct Aael {
    pub domain: String,
    pub operation: String,
    /// JSON where it is some, else the text.
    pub content: Value,
}

impl Details {
    pub(super) fn of(kind: EventKind, data: &[u8]) -> Self {
        match kind {
            EventKind::PostCode
            | EventKind::Action
            | EventKind::CompactHash
            | EventKind::OmitBootDeviceEvents
            | EventKind::EfiAction => text(data).map(Self::string),
            EventKind::EventTag => tagged(data),
            EventKind::PlatformConfigFlags => Some(Self::string(flags(data))),
            EventKind::Ipl => boot_loader(data).map(Self::string),
            EventKind::EfiVariableDriverConfig
            | EventKind::EfiVariableBoot
            | EventKind::EfiVariableBoot2
            | EventKind::EfiVariableAuthority => variable(data),
            EventKind::EfiBootServicesApplication => image(data),
            EventKind::EfiPlatformFirmwareBlob2 | EventKind::EfiHandoffTables2 => {
                described(data).map(Self::string)
            }
            _ => None,
        }
        .unwrap_or_default()
    }

    fn string(text: String) -> Self {
        Self {
            string: Some(text),
            ..Self::default()
        }
    }
}

fn text(data: &[u8]) -> Option<String> {
    std::str::from_utf8(data).ok().map(str::to_owned)
}

/// The text before its padding and without controls; it may be anything, and is empty then.
fn flags(data: &[u8]) -> String {
    let text = std::str::from_utf8(data).unwrap_or_default();
    text.replace('\u{10}', " ")
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

/// `TCG_PCClientTaggedEvent`.
fn tagged(data: &[u8]) -> Option<Details> {
    let mut rest = Reader(data);
    let tag = rest.u32()?;
    let bytes = usize::try_from(rest.u32()?).ok()?;
    let data = rest.take(bytes)?;
    let string = String::from_utf8_lossy(data).replace('\0', "");
    if tag != AAEL_TAG {
        return Some(Details::string(string));
    }
    let entry = std::str::from_utf8(data).ok()?;
    let mut parts = entry.splitn(3, ' ');
    let (domain, operation, content) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Details {
        string: Some(string),
        unicode_name: Some("AAEL".to_owned()),
        data: Some(Aael {
            domain: domain.to_owned(),
            operation: operation.to_owned(),
            content: serde_json::from_str(content)
                .unwrap_or_else(|_| Value::String(content.to_owned())),
        }),
        ..Details::default()
    })
}

/// The text up to its first zero, in UTF-16 behind the prefix; hex of the data where it is no text.
fn boot_loader(data: &[u8]) -> Option<String> {
    if let Some(wide) = data.strip_prefix(WIDE_PREFIX) {
        let text = wide.get(..wide.len().checked_sub(2)?)?;
        return (text.len() % 2 == 0).then(|| String::from_utf16_lossy(&units(text)));
    }
    if data.len() < 2 {
        return None;
    }
    let end = data.iter().position(|byte| *byte == 0);
    let before = data.get(..end.unwrap_or(data.len()))?;
    Some(text(before).unwrap_or_else(|| hex::encode(data)))
}

/// `UEFI_VARIABLE_DATA`.
fn variable(data: &[u8]) -> Option<Details> {
    let mut rest = Reader(data);
    let guid: &[u8; 16] = rest.array()?;
    let name_units = rest.u64()?;
    let value_bytes = rest.u64()?;
    let name = rest.take(usize::try_from(name_units.checked_mul(2)?).ok()?)?;
    let value = rest.take(usize::try_from(value_bytes).ok()?)?;
    let [a, b, c, d, e] = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex::encode(&guid[part]));
    Some(Details {
        unicode_name: Some(String::from_utf16(&units(name)).ok()?),
        unicode_name_length: Some(name_units),
        variable_data: Some(BASE64_STANDARD.encode(value)),
        variable_data_length: Some(value_bytes),
        variable_name: Some(format!("{a}-{b}-{c}-{d}-{e}")),
        ..Details::default()
    })
}

/// `UEFI_IMAGE_LOAD_EVENT`.
fn image(data: &[u8]) -> Option<Details> {
    let mut rest = Reader(data);
    let _address_and_lengths: &[u8; 24] = rest.array()?;
    let bytes = usize::try_from(rest.u64()?).ok()?;
    if bytes == 0 {
        return Some(Details::default());
    }
    let path = rest.take(bytes.checked_sub(PATH_END_BYTES)?)?;
    Some(Details {
        device_paths: Some(device_path::texts(path)?),
        ..Details::default()
    })
}

/// The description that begins `UEFI_PLATFORM_FIRMWARE_BLOB2` and `UEFI_HANDOFF_TABLE_POINTERS2`:
/// its length, which counts a last zero, and its text.
fn described(data: &[u8]) -> Option<String> {
    let (length, rest) = data.split_first()?;
    let described = rest.get(..usize::from(*length))?;
    text(described.strip_suffix(&[0]).unwrap_or(described))
}

pub(super) fn units(bytes: &[u8]) -> Vec<u16> {
    bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect()
}
