//! Real event logs and TDX quotes, read from the vectors beside the workspace.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use evidence::{
    eventlog::{EventClaims, EventLog},
    tdx::{Quote, TdxEvidence},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

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

/// RTMR0, 1 and so on as Trustee publishes them of these guests. The rest, to RTMR3, is zero.
#[test]
fn real_logs_replay_to_the_registers_of_their_guests() {
    for (name, expected) in [
        (
            "CCEL_data",
            &[
                "2dc712306a963eadb894ad47dbaa17df44814151555aee11cbb843becca88950ffd079664902e6f22c66f7c8213543f4",
                "0fa3be56af61208bbd179dc7b124988eb929319154663c539d6f46445ecac2fec287075047ff7bd1922829fec28cd3cf",
            ][..],
        ),
        (
            "CCEL_data_ovmf",
            &[
                "8566f998798db09443b244c62de9a3041fb02e2e6936c4396d784bba2e90177329ec5aba3bb484404f2ab9cc90abe193",
                "775b9f6bfe99f8a31396f0d0218e67ffa796d3b96ccf961cbb0deba48c79c00f082cda1a5567c1c16305f1fc210c13c6",
                "94eaf7a7bf398ed8d888c91057ae0261802e4f3df084213a76ca7f0b5055ac9d2241de43cd58d9e8b49c503bbf25f34a",
            ][..],
        ),
        (
            "CCEL_data_grub",
            &[
                "cec0a104f691f60da2387fea3c2de00c4ac035e2bb479ff02edcce69039d9e9907f0b3e55031da3dc7038f423adebd79",
                "6c289e0c62182d41ebe97bdbc9872d10998a08eaa86adcdc684001a363207ee72942c7522cdf00a4bbc3d784bed7b670",
                "08919d017ba0e52cd6d966351c7de16fe76c1d3d3d3da4554239e4c7d16cb8b82a94e7eaea3a0e6e18eb690b999fd31e",
            ][..],
        ),
    ] {
        let Some(bytes) = vector(&format!("eventlog/{name}")) else {
            return;
        };
        let registers = EventLog::parse(&bytes).unwrap().replay().unwrap();
        let values = registers.map(|register| hex::encode(register.value));
        let (told, rest) = values.split_at(expected.len());
        assert_eq!(told, expected, "{name}");
        assert!(rest.iter().all(|value| *value == "0".repeat(96)), "{name}");
    }
}

/// The registers are chained here from the digests of Trustee's claims, also of the log whose registers nobody
/// has published.
#[test]
fn real_logs_replay_as_their_claims_do() {
    for (name, counts) in [
        ("CCEL_data", [2, 3, 0, 0]),
        ("CCEL_data_ovmf", [14, 4, 2, 0]),
        ("CCEL_data_grub", [20, 9, 8, 0]),
        ("CCEL_AAEL_alibabacloud", [13, 14, 58, 2]),
    ] {
        let Some(bytes) = vector(&format!("eventlog/{name}")) else {
            return;
        };
        let claims = vector(&format!("eventlog/{name}_out.json")).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let mut chained = [([0; 48], 0); 4];
        for event in claims["uefi_event_logs"].as_array().unwrap() {
            assert_eq!(event["digests"][0]["alg"], "SHA-384", "{name}");
            let digest = hex::decode(event["digests"][0]["digest"].as_str().unwrap()).unwrap();
            let index = usize::try_from(event["index"].as_u64().unwrap()).unwrap();
            let (value, events) = &mut chained[index - 1];
            *value = Sha384::new()
                .chain_update(*value)
                .chain_update(digest)
                .finalize()
                .into();
            *events += 1;
        }
        let registers = EventLog::parse(&bytes).unwrap().replay().unwrap();
        let replayed = registers.map(|register| (register.value, register.events));
        assert_eq!(replayed, chained, "{name}");
        assert_eq!(chained.map(|(_, events)| events), counts, "{name}");
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
