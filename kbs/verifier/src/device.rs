//! Devices beside the CPU: the map of their evidence, and CoCo's unsigned `sampledevice`.
//!
//! A device's evidence binds the challenge and the guest's key, as the CPU's does. The CPU's evidence
//! binds the text of the whole map, so that no device can be dropped or exchanged on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use evidence::{Device, sample::SampleEvidence};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use crate::{Failure, REPORT_DATA_BYTES, event_log, failure::shorten, sample::binds};

/// The most devices of one guest.
const DEVICES: usize = 16;
const MAP: &str = "additional_evidence";

/// What a verified device says.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceClaims {
    /// Which device it is.
    pub device: Device,
    /// What only this device has.
    pub evidence: Value,
}

/// What comes beside the primary evidence.
#[derive(Debug, Default)]
pub struct Additional<'a> {
    /// Evidence of each device.
    pub devices: BTreeMap<Device, &'a RawValue>,
    /// The log of a guest without registers ([`event_log`]).
    pub event_log: Option<&'a RawValue>,
}

/// Reads the map and accepts the devices that the configuration lists. An empty text is an empty map.
///
/// # Errors
/// When the text is no map, or a device is unknown or not listed.
pub fn accept<'a>(text: &'a str, accepted: &BTreeSet<Device>) -> Result<Additional<'a>, Failure> {
    let mut additional = Additional::default();
    if text.is_empty() {
        return Ok(additional);
    }
    let Map(map) =
        serde_json::from_str(text).map_err(|error| malformed(MAP, &error.to_string()))?;
    for (name, evidence) in map {
        if name == event_log::NAME {
            additional.event_log = Some(evidence);
            continue;
        }
        let device: Device = name.parse().map_err(|_| Failure::UnknownDevice {
            name: shorten(&name),
        })?;
        if !accepted.contains(&device) {
            return Err(Failure::DeviceNotAccepted { device });
        }
        additional.devices.insert(device, evidence);
    }
    Ok(additional)
}

/// Names and what each has, unread and not too many: a body may be full of small ones.
struct Map<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Map<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(MapVisitor)
    }
}

struct MapVisitor;

impl<'de> Visitor<'de> for MapVisitor {
    type Value = Map<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from a device's name to its evidence")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Map<'de>, A::Error> {
        let mut all: Vec<(String, _)> = Vec::new();
        while let Some((name, evidence)) = access.next_entry()? {
            if all.len() == DEVICES {
                return Err(A::Error::custom("there are more than 16 devices"));
            }
            if all.iter().any(|(other, _)| *other == name) {
                return Err(A::Error::custom("a device is there twice"));
            }
            all.push((name, evidence));
        }
        Ok(Map(all))
    }
}

/// Verifies one device's evidence.
///
/// # Errors
/// Names the member or the binding that is wrong.
pub fn verify<'a>(
    device: Device,
    evidence: impl Deserializer<'a>,
    report_data: &[u8; REPORT_DATA_BYTES],
) -> Result<DeviceClaims, Failure> {
    match device {
        Device::Sample => sample(evidence, report_data),
    }
}

fn sample<'a>(
    evidence: impl Deserializer<'a>,
    report_data: &[u8; REPORT_DATA_BYTES],
) -> Result<DeviceClaims, Failure> {
    let device = Device::Sample;
    let wrong = |detail: &str| malformed(device.name(), detail);
    let sample =
        SampleEvidence::deserialize(evidence).map_err(|error| wrong(&error.to_string()))?;
    if sample.init_data.is_some() {
        return Err(wrong("a device binds no init-data"));
    }
    let found = sample
        .report_data()
        .map_err(|error| wrong(&error.to_string()))?;
    if !binds(&found, report_data) {
        return Err(Failure::ReportData {
            expected: hex::encode(report_data),
            found: hex::encode(found),
        });
    }
    Ok(DeviceClaims {
        device,
        evidence: json!({ "svn": sample.svn }),
    })
}

fn malformed(device: &'static str, detail: &str) -> Failure {
    Failure::DeviceMalformed {
        device,
        detail: shorten(detail),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::*;

    fn listed() -> BTreeSet<Device> {
        BTreeSet::from(Device::ALL)
    }

    #[test]
    fn a_listed_device_that_binds_the_challenge_is_verified() {
        let bound = [7; REPORT_DATA_BYTES];
        let text =
            json!({"sampledevice": {"svn": "1", "report_data": BASE64_STANDARD.encode(bound)}});
        let text = text.to_string();
        let devices = accept(&text, &listed()).unwrap().devices;
        let evidence = devices[&Device::Sample];
        let claims = verify(Device::Sample, evidence, &bound).unwrap();
        assert_eq!(claims.evidence, json!({"svn": "1"}));
        let other = verify(Device::Sample, evidence, &[8; REPORT_DATA_BYTES]);
        assert!(matches!(other, Err(Failure::ReportData { .. })));
    }

    #[test]
    fn a_device_that_cannot_be_judged_is_refused_by_name() {
        let many: Vec<_> = (0..17)
            .map(|number| format!("\"d{number}\":{{}}"))
            .collect();
        let many = format!("{{{}}}", many.join(","));
        for (text, word) in [
            (r#"{"nvidia":{}}"#, "nvidia"),
            (r#"{"sampledevice":{}}"#, "does not accept"),
            ("[]", "malformed"),
            ("x", "malformed"),
            (r#"{"sampledevice":{},"sampledevice":{}}"#, "twice"),
            (&many, "more than 16"),
        ] {
            let failure = accept(text, &BTreeSet::new()).unwrap_err();
            assert!(failure.to_string().contains(word), "{failure}");
            assert_eq!(failure.explain().claim, "additional_evidence");
        }
        for text in ["", "{}"] {
            let nothing = accept(text, &BTreeSet::new()).unwrap();
            assert!(nothing.devices.is_empty() && nothing.event_log.is_none());
        }
    }
}
