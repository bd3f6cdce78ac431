//! Logs that real TDs have left, against what is predicted from the same inputs, as far as these are
//! known: the list of memory, the firmware's variables, keys of Secure Boot, the order of all events,
//! and events of the attestation agent.

use crate::tdvf;

use std::{fs, path::PathBuf};

use evidence::eventlog::{self, DigestAlgorithm, EventKind, EventLog};
use measure::tdx::{
    Dialect, Event, Firmware, Memory, Origin, Prediction, RuntimeEvent, SecureBoot, Vmm, explain,
    memory_of, replay,
};
use tdvf::{GLOBAL, SECURITY, entry, image, kernel, launch, loader, sections, store};

/// A log, or nothing where the vectors are absent.
fn recorded(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/vectors/eventlog")
        .join(name);
    let found = fs::read(&path).ok();
    if found.is_none() {
        support::skip(&format!("there is no ../shared/vectors/eventlog/{name}"));
    }
    found
}

/// The variables of the distribution's firmware of 4 MiB: those of the firmware that left the first log.
fn variables() -> Option<Vec<u8>> {
    const FILE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
    let found = fs::read(FILE).ok();
    if found.is_none() {
        support::skip(&format!("needs `{FILE}`; `.ci/setup` installs it"));
    }
    found
}

/// A firmware of 4 MiB with these variables, and no code of its own.
fn firmware_of(variables: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(variables.len()).unwrap();
    let all = 4 << 20;
    let sections = sections(bytes, all - bytes);
    image(all.try_into().unwrap(), variables, &sections, &[entry()])
}

fn sha384<'a>(event: &eventlog::Event<'a>) -> &'a [u8] {
    let one = event
        .digests
        .iter()
        .find(|one| one.algorithm == DigestAlgorithm::Sha384);
    one.unwrap().digest
}

/// The values of `SecureBoot`, `PK`, `KEK`, `db` and `dbx` that a log tells.
fn secure_boot<'a>(log: &EventLog<'a>) -> Vec<&'a [u8]> {
    log.events()
        .iter()
        .filter(|event| event.kind == EventKind::EfiVariableDriverConfig)
        .map(|event| {
            let units = u64::from_le_bytes(event.data[16..24].try_into().unwrap());
            &event.data[32 + 2 * usize::try_from(units).unwrap()..]
        })
        .collect()
}

/// What is predicted of the direct boot that left the first log, with stand-ins for what nobody
/// recorded: tables, kernel, command line, initramfs.
fn predict(variables: &[u8], mib: u64) -> (Vec<u8>, Prediction) {
    let bytes = firmware_of(variables);
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let (dialect, loader, kernel) = (Dialect::edk2_2023(), loader(), kernel(0));
    let mut launch = launch(&firmware, &dialect, &loader, &kernel);
    launch.memory = Memory::new(mib << 20).unwrap();
    let prediction = launch.predict().unwrap();
    drop(firmware);
    (bytes, prediction)
}

fn unrecorded(origin: &Origin) -> bool {
    matches!(
        origin,
        Origin::Acpi(_) | Origin::Kernel | Origin::CommandLine | Origin::Initramfs
    )
}

#[test]
fn the_list_of_memory_is_the_one_that_qemu_wrote() {
    let bytes = firmware_of(&[0; 0x1000]);
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    for (name, mib) in [("CCEL_data_ovmf", 2048), ("CCEL_data_grub", 10240)] {
        let Some(log) = recorded(name) else { return };
        let log = EventLog::parse(&log).unwrap();
        let first = &log.events()[0];
        assert_eq!(first.kind, EventKind::EfiHandoffTables2);
        let memory = memory_of(&firmware, sha384(first).try_into().unwrap());
        assert_eq!(memory, Some(Memory::new(mib << 20).unwrap()), "{name}");
    }
}

#[test]
fn a_direct_boot_has_the_recorded_events_in_the_recorded_order() {
    let (Some(log), Some(variables)) = (recorded("CCEL_data_ovmf"), variables()) else {
        return;
    };
    let log = EventLog::parse(&log).unwrap();
    let (_, prediction) = predict(&variables, 2048);
    assert_eq!(prediction.events.len(), log.events().len());
    let mut known = 0;
    let mut filled = prediction.events;
    for (at, (ours, there)) in filled.iter_mut().zip(log.events()).enumerate() {
        let place = format!("event {at}, {}", ours.origin);
        assert_eq!(
            (ours.index, ours.kind),
            (there.index, there.kind),
            "{place}"
        );
        if unrecorded(&ours.origin) {
            ours.digest = sha384(there).try_into().unwrap();
        } else {
            assert_eq!(ours.digest[..], *sha384(there), "{place}");
            known += 1;
        }
    }
    assert_eq!(known, 14);
    let registers = log.replay().unwrap().map(|register| register.value);
    assert_eq!(replay(&filled), registers);
}

#[test]
fn keys_of_secure_boot_have_the_recorded_digests() {
    for name in ["CCEL_data_ovmf", "CCEL_data_grub", "CCEL_AAEL_alibabacloud"] {
        let Some(log) = recorded(name) else { return };
        let log = EventLog::parse(&log).unwrap();
        let values = secure_boot(&log);
        let names = [
            (GLOBAL, "PK"),
            (GLOBAL, "KEK"),
            (SECURITY, "db"),
            (SECURITY, "dbx"),
        ];
        let stored: Vec<_> = names
            .iter()
            .zip(&values[1..])
            .filter(|(_, value)| !value.is_empty())
            .map(|((owner, name), value)| (0x3f, *owner, *name, *value))
            .collect();
        let bytes = firmware_of(&store(0x4000, &stored));
        let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
        let (mut dialect, loader, kernel) = (Dialect::edk2_2023(), loader(), kernel(0));
        dialect.authorities = vec![[7; 48]];
        let mut launch = launch(&firmware, &dialect, &loader, &kernel);
        launch.secure_boot = match values[0] {
            [] => SecureBoot::Absent,
            [0] => SecureBoot::Off,
            _ => SecureBoot::On,
        };
        let prediction = launch.predict().unwrap();
        let ours: Vec<_> = prediction
            .events
            .iter()
            .filter(|event| matches!(event.origin, Origin::SecureBoot(_)))
            .map(|event| event.digest.to_vec())
            .collect();
        let there: Vec<_> = log
            .events()
            .iter()
            .filter(|event| event.kind == EventKind::EfiVariableDriverConfig)
            .map(|event| sha384(event).to_vec())
            .collect();
        assert_eq!(ours, there, "{name}");
    }
}

#[test]
fn events_of_the_attestation_agent_give_the_recorded_register() {
    let Some(log) = recorded("CCEL_AAEL_alibabacloud") else {
        return;
    };
    let log = EventLog::parse(&log).unwrap();
    let event = |content| {
        let event = RuntimeEvent {
            domain: "coco.com",
            operation: "some-operation",
            content,
        };
        measure::tdx::runtime_event(&event).unwrap()
    };
    let events: Vec<Event> = vec![
        event("some-content"),
        event(r#"{"key": "value", "nested-key": {"sub-key": "value"}}"#),
    ];
    assert_eq!(replay(&events)[3], log.replay().unwrap()[3].value);
}

#[test]
fn the_first_difference_is_told_with_the_input_that_it_comes_from() {
    let (Some(log), Some(variables)) = (recorded("CCEL_data_ovmf"), variables()) else {
        return;
    };
    let log = EventLog::parse(&log).unwrap();
    let said = |variables: &[u8], mib| {
        let (bytes, prediction) = predict(variables, mib);
        let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
        explain(&prediction, &log, &firmware).unwrap().to_string()
    };
    let memory = said(&variables, 4096);
    assert!(
        memory.starts_with("RTMR0, event 0 (EV_EFI_HANDOFF_TABLES2)"),
        "{memory}"
    );
    assert!(
        memory.ends_with("That guest had 2048 MiB of memory"),
        "{memory}"
    );
    let mut enrolled = variables.clone();
    let last = enrolled.len() - 1;
    enrolled[last] ^= 1;
    let enrolled = said(&enrolled, 2048);
    assert!(enrolled.contains("event 1 ("), "{enrolled}");
    assert!(
        enrolled.contains("variables (CFV) was expected"),
        "{enrolled}"
    );
    let tables = said(&variables, 2048);
    assert!(
        tables.contains("event 8 (EV_PLATFORM_CONFIG_FLAGS): ACPI's etc/table-loader"),
        "{tables}"
    );
    assert!(tables.contains("number of vCPUs"), "{tables}");
}
