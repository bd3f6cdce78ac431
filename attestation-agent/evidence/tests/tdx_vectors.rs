//! Real event logs and TDX quotes, read from the vectors beside the workspace.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use evidence::{
    eventlog::{EventClaims, EventLog},
    tdx::{Quote, TdxEvidence},
};
use serde_json::{Value, json};

fn vector(name: &str) -> Option<Vec<u8>> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    if !vectors.exists() {
        eprintln!("skipped: no vectors beside the workspace");
        return None;
    }
    Some(fs::read(vectors.join(name)).unwrap())
}

#[test]
fn claims_of_real_logs_are_trustees() {
    for name in [
        "CCEL_data",
        "CCEL_data_ovmf",
        "CCEL_data_grub",
        "CCEL_AAEL_alibabacloud",
    ] {
        let Some(bytes) = vector(&format!("eventlog/{name}")) else {
            return;
        };
        let expected = vector(&format!("eventlog/{name}_out.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let claims: Vec<_> = log.events().iter().map(EventClaims::from).collect();
        let claims = serde_json::to_value(claims).unwrap();
        for (at, said) in claims.as_array().unwrap().iter().enumerate() {
            assert_eq!(*said, expected["uefi_event_logs"][at], "{name} {at}");
        }
        assert_eq!(claims, expected["uefi_event_logs"], "{name}");
    }
}

/// What the guests' quotes said, by the first bytes of each register and the number of its events.
#[test]
fn real_logs_replay_to_the_registers_of_their_guests() {
    let none = ("00000000000000000000000000000000", 0);
    for (name, expected) in [
        (
            "CCEL_data",
            [
                ("2dc712306a963eadb894ad47dbaa17df", 2),
                ("0fa3be56af61208bbd179dc7b124988e", 3),
                none,
                none,
            ],
        ),
        (
            "CCEL_data_ovmf",
            [
                ("8566f998798db09443b244c62de9a304", 14),
                ("775b9f6bfe99f8a31396f0d0218e67ff", 4),
                ("94eaf7a7bf398ed8d888c91057ae0261", 2),
                none,
            ],
        ),
        (
            "CCEL_data_grub",
            [
                ("cec0a104f691f60da2387fea3c2de00c", 20),
                ("6c289e0c62182d41ebe97bdbc9872d10", 9),
                ("08919d017ba0e52cd6d966351c7de16f", 8),
                none,
            ],
        ),
    ] {
        let Some(bytes) = vector(&format!("eventlog/{name}")) else {
            return;
        };
        let registers = EventLog::parse(&bytes).unwrap().replay().unwrap();
        for (register, (value, events)) in registers.iter().zip(expected) {
            assert_eq!(hex::encode(&register.value[..16]), value, "{name}");
            assert_eq!(register.events, events, "{name}");
        }
    }
}

#[test]
fn real_quotes_are_written_as_they_were_read() {
    for (name, version, kind) in [
        ("quote-v4", 4, 2),
        ("quote-v5", 5, 3),
        ("quote-with-collateral", 4, 2),
    ] {
        let Some(bytes) = vector(&format!("tdx/{name}.dat")) else {
            return;
        };
        let quote = Quote::parse(&bytes).unwrap();
        assert_eq!(quote.header.version, version);
        assert_eq!(quote.body.kind_and_bytes().0, kind);
        let written = quote.to_bytes();
        let (read, tail) = bytes.split_at(written.len());
        assert_eq!(written, read, "{name}");
        assert!(tail.iter().all(|byte| *byte == 0));

        let evidence = TdxEvidence::new(&bytes, None).unwrap();
        let sent = serde_json::to_value(&evidence).unwrap();
        assert_eq!(sent["cc_eventlog"], Value::Null);
        assert_eq!(
            serde_json::from_value::<TdxEvidence>(sent).unwrap(),
            evidence
        );
    }
}

#[test]
fn other_members_and_lengths_are_refused() {
    let Some(bytes) = vector("tdx/quote-v5.dat") else {
        return;
    };
    let good = serde_json::to_value(TdxEvidence::new(&bytes, Some(vec![1])).unwrap()).unwrap();
    assert!(serde_json::from_value::<TdxEvidence>(good.clone()).is_ok());
    let long = "A".repeat(2 << 20);
    for (member, value, expected) in [
        ("other", json!(1), "unknown field `other`"),
        ("quote", json!("%"), "not base64"),
        ("quote", json!(long), "more than 32768 bytes"),
        ("cc_eventlog", json!(long), "more than 1048576 bytes"),
        ("quote", json!(null), "a string"),
    ] {
        let mut changed = good.clone();
        changed[member] = value;
        let error = serde_json::from_value::<TdxEvidence>(changed).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    for length in 0..bytes.len() {
        assert!(Quote::parse(&bytes[..length]).is_err(), "{length} bytes");
    }
    let mut followed = bytes.clone();
    followed.extend([0, 0]);
    assert!(Quote::parse(&followed).is_ok());
    followed.push(1);
    assert!(Quote::parse(&followed).is_err());
}
