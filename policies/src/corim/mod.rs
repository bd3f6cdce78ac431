//! Reference values out of a CoRIM, under the names that Trustee's extractor gives them: vendor, model,
//! key, name and serial number joined with `/`, then `digests` or `raw_bytes`.
//!
//! A class of ours stands for names without these parts ([`Draft`]).
//!
//! A vendor's manifest says more than we judge; what is no reference value is passed over, and what
//! has a wrong form is an error. A signed CoRIM gives its values to none but who checks its signature:
//! that needs cryptography, which is not here.
//!
//! Source: draft-ietf-rats-corim, sections 4 (CoRIM) and 5 (CoMID).

mod draft;
mod signed;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ciborium::Value;
use serde_json::json;

pub use draft::Draft;
pub use signed::{Algorithm, SignedCorim};

use crate::reference::{Provenance, ReferenceError, ReferenceValue, Version};

/// Bytes of a CoRIM.
pub const CORIM_BYTES: usize = 1024 * 1024;
/// Nesting of its CBOR.
const DEPTH: usize = 32;
/// Reference values of one CoRIM.
const VALUES: usize = 10_000;
/// Tags that older tools put around a CoRIM, and CoRIM's own for an unsigned one.
const OUTER_TAGS: [u64; 2] = [500, 502];
const UNSIGNED: u64 = 501;
const COSE_SIGN1: u64 = 18;
const COMID: u64 = 506;
const UUID: u64 = 37;
const TIME: u64 = 1;
const RAW_BYTES: u64 = 560;

/// A CoRIM that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorimError {
    /// Larger than the cap.
    #[error("CoRIM of {bytes} bytes is larger than {CORIM_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not CBOR, nested too deep, or with bytes behind its end.
    #[error("CoRIM is not one CBOR item of at most {DEPTH} levels")]
    Cbor,
    /// Signed in a way that is not read here.
    #[error(
        "CoRIM is signed by algorithm {found}: ES256 (-7), ES384 (-35) and EdDSA (-8) are read"
    )]
    Algorithm {
        /// The algorithm's number, or what stands in its place.
        found: String,
    },
    /// A header that a reader has to understand.
    #[error("CoRIM's signature has critical headers, and this reader knows none")]
    Critical,
    /// A header where it must not be.
    #[error("CoRIM's signature has header {label} twice")]
    Twice {
        /// Its label.
        label: i128,
    },
    /// A member of another form.
    #[error("CoRIM: {member} must be {expected}")]
    Shape {
        /// The member.
        member: &'static str,
        /// Its form.
        expected: &'static str,
    },
    /// Too many reference values.
    #[error("CoRIM has more than {VALUES} reference values: split it")]
    TooMany,
    /// A value that cannot be kept.
    #[error("CoRIM: {0}")]
    Value(#[from] ReferenceError),
}

/// A CoRIM as it came.
#[derive(Debug)]
pub enum Corim {
    /// Nobody signed it.
    Unsigned(Manifest),
    /// Somebody did, and nobody checked it yet.
    Signed(SignedCorim),
}

/// What a CoRIM says.
#[derive(Debug)]
pub struct Manifest(Value);

impl Corim {
    /// Reads a CoRIM's outside.
    ///
    /// # Errors
    /// When it is too large, not CBOR, of a wrong form, or signed in a way that is not read here.
    pub fn read(bytes: &[u8]) -> Result<Self, CorimError> {
        let mut value = decode(bytes)?;
        loop {
            match value {
                Value::Tag(tag, inner) if OUTER_TAGS.contains(&tag) => value = *inner,
                Value::Tag(UNSIGNED, inner) => return Ok(Self::Unsigned(Manifest(*inner))),
                Value::Tag(COSE_SIGN1, inner) => {
                    return SignedCorim::read(*inner).map(Self::Signed);
                }
                _ => return Err(shape("it", "tagged 501 (unsigned CoRIM) or 18 (signed)")),
            }
        }
    }
}

/// From when until when; always where a side is absent.
type Window = (Option<SystemTime>, Option<SystemTime>);

impl Manifest {
    /// The reference values, each with the manifest's validity. Those of one name are versions of one
    /// value.
    ///
    /// # Errors
    /// When it has a wrong form, or no reference value.
    pub fn reference_values(
        &self,
        provenance: &Provenance,
    ) -> Result<Vec<ReferenceValue>, CorimError> {
        self.within(provenance, (None, None))
    }

    fn within(
        &self,
        provenance: &Provenance,
        (begin, end): Window,
    ) -> Result<Vec<ReferenceValue>, CorimError> {
        let (not_before, not_after) = match member(&self.0, 4, "CoRIM")? {
            Some(map) => validity(map, "rim-validity")?,
            None => (None, None),
        };
        let mut values: Vec<ReferenceValue> = Vec::new();
        for (name, value) in found(&self.0)? {
            let version = Version {
                value,
                provenance: provenance.clone(),
                not_before,
                not_after,
            };
            let version = version.within(begin, end);
            if let Some(known) = values.iter_mut().find(|known| known.name == name) {
                known.add(version)?;
            } else {
                let mut new = ReferenceValue::new(&name)?;
                new.add(version)?;
                values.push(new);
            }
        }
        Ok(values)
    }
}

fn found(corim: &Value) -> Result<Found, CorimError> {
    let tags = required(corim, 1, "tags").and_then(|tags| array(tags, "tags"))?;
    let mut found = Vec::new();
    for tag in tags {
        if let Value::Tag(COMID, inner) = tag {
            let Value::Bytes(bytes) = &**inner else {
                return Err(shape("a CoMID", "bytes"));
            };
            comid(&decode(bytes)?, &mut found)?;
        }
    }
    if found.is_empty() {
        return Err(shape(
            "tags",
            "CoMIDs with at least one digest or raw value",
        ));
    }
    Ok(found)
}

fn decode(bytes: &[u8]) -> Result<Value, CorimError> {
    if bytes.len() > CORIM_BYTES {
        return Err(CorimError::TooLarge { bytes: bytes.len() });
    }
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH)
        .map_err(|_| CorimError::Cbor)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(CorimError::Cbor)
    }
}

fn validity(map: &Value, name: &'static str) -> Result<Window, CorimError> {
    let time = |key| {
        let moment = member(map, key, name)?;
        moment.map(|moment| time(moment, name)).transpose()
    };
    Ok((time(0)?, time(1)?))
}

fn time(value: &Value, name: &'static str) -> Result<SystemTime, CorimError> {
    match value {
        Value::Tag(TIME, inner) => seconds(inner),
        _ => None,
    }
    .ok_or(shape(
        name,
        "a map of times (tag 1) in whole seconds since 1970",
    ))
}

fn seconds(value: &Value) -> Option<SystemTime> {
    let whole = u64::try_from(value.as_integer()?).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(whole))
}

type Found = Vec<(String, serde_json::Value)>;

fn comid(comid: &Value, found: &mut Found) -> Result<(), CorimError> {
    let triples = required(comid, 4, "triples")?;
    let Some(references) = member(triples, 0, "triples")? else {
        return Ok(());
    };
    for triple in array(references, "reference-triples")? {
        let [environment, measurements] = array(triple, "a reference triple")? else {
            return Err(shape(
                "a reference triple",
                "an environment and measurements",
            ));
        };
        let mut path = Vec::new();
        let mut named = false;
        if let Some(class) = member(environment, 0, "environment")? {
            push_text(&mut path, class, 1)?;
            push_text(&mut path, class, 2)?;
            named = is_named(class)?;
        }
        for measurement in array(measurements, "measurements")? {
            measured(measurement, path.clone(), named, found)?;
        }
    }
    Ok(())
}

/// Whether a class says that a measurement's key is the name.
fn is_named(class: &Value) -> Result<bool, CorimError> {
    Ok(match member(class, 0, "class")? {
        Some(Value::Tag(UUID, id)) => id.as_bytes().is_some_and(|id| **id == draft::NAMED),
        _ => false,
    })
}

fn measured(
    measurement: &Value,
    mut path: Vec<String>,
    named: bool,
    found: &mut Found,
) -> Result<(), CorimError> {
    if let Some(key) = member(measurement, 0, "measurement")? {
        path.extend(key_text(key)?);
    }
    let value = required(measurement, 1, "mval")?;
    push_text(&mut path, value, 11)?;
    push_text(&mut path, value, 8)?;
    let path = path.join("/");
    let mut add = |last: &str, value| {
        if found.len() >= VALUES {
            return Err(CorimError::TooMany);
        }
        let name = if named {
            path.clone()
        } else {
            format!("{path}/{last}")
        };
        found.push((name, value));
        Ok(())
    };
    if let Some(digests) = member(value, 2, "mval")? {
        let digests = array(digests, "digests")?.iter().map(digest);
        add("digests", json!(digests.collect::<Result<Vec<_>, _>>()?))?;
    }
    match member(value, 4, "mval")? {
        Some(Value::Tag(RAW_BYTES, inner)) => match &**inner {
            Value::Bytes(bytes) => add("raw_bytes", json!(hex::encode(bytes))),
            _ => Err(shape("raw-value", "bytes")),
        },
        Some(_) | None => Ok(()),
    }
}

fn digest(value: &Value) -> Result<String, CorimError> {
    match array(value, "a digest")? {
        [_, Value::Bytes(bytes)] => Ok(hex::encode(bytes)),
        _ => Err(shape("a digest", "an algorithm and bytes")),
    }
}

/// The name of a measurement; of a kind that Trustee does not name, none.
fn key_text(key: &Value) -> Result<Option<String>, CorimError> {
    match key {
        Value::Text(text) => Ok(Some(text.clone())),
        Value::Integer(number) => Ok(Some(format!("claim{}", i128::from(*number)))),
        Value::Tag(UUID, inner) => match inner.as_bytes() {
            Some(bytes) if bytes.len() == 16 => {
                let hex = hex::encode(bytes);
                let parts = [
                    &hex[..8],
                    &hex[8..12],
                    &hex[12..16],
                    &hex[16..20],
                    &hex[20..],
                ];
                Ok(Some(parts.join("-")))
            }
            _ => Err(shape("mkey", "a UUID of 16 bytes")),
        },
        _ => Ok(None),
    }
}

fn push_text(path: &mut Vec<String>, map: &Value, key: i128) -> Result<(), CorimError> {
    match member(map, key, "a name")? {
        Some(Value::Text(text)) => path.push(text.clone()),
        Some(_) => return Err(shape("vendor, model, name and serial number", "texts")),
        None => {}
    }
    Ok(())
}

/// A member of a map; one that is there twice is an error.
fn member<'a>(
    map: &'a Value,
    key: i128,
    name: &'static str,
) -> Result<Option<&'a Value>, CorimError> {
    let entries = map.as_map().ok_or(shape(name, "a map"))?;
    let is = |entry: &&(Value, Value)| entry.0.as_integer().map(i128::from) == Some(key);
    let mut found = entries.iter().filter(is);
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(shape(name, "a map without a key twice")),
        (first, _) => Ok(first.map(|entry| &entry.1)),
    }
}

fn required<'a>(map: &'a Value, key: i128, name: &'static str) -> Result<&'a Value, CorimError> {
    member(map, key, name)?.ok_or(shape(name, "there"))
}

fn array<'a>(value: &'a Value, name: &'static str) -> Result<&'a [Value], CorimError> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or(shape(name, "a list"))
}

const fn shape(member: &'static str, expected: &'static str) -> CorimError {
    CorimError::Shape { member, expected }
}
