//! A log against a prediction: what is told where they part.

use crate::tdvf;

use evidence::eventlog::EventLog;
use measure::tdx::{Dialect, Event, Firmware, Launch, Vmm, explain, replay};
use tdvf::{kernel, launch, loader, small};

/// A log of these events, without their texts.
fn log(events: &[Event]) -> Vec<u8> {
    let mut log = [1, 3u32].map(u32::to_le_bytes).concat();
    log.extend([0; 20]);
    log.extend(33u32.to_le_bytes());
    log.extend(b"Spec ID Event03\0");
    log.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0]);
    for event in events {
        for word in [event.index, event.kind.number(), 1] {
            log.extend(word.to_le_bytes());
        }
        log.extend(0x0cu16.to_le_bytes());
        log.extend(event.digest);
        log.extend(0u32.to_le_bytes());
    }
    log
}

/// What is told of the log that the first launch leaves where the second is expected.
fn said(
    found: impl FnOnce(&mut Launch<'_>, &mut Vec<Event>),
    dialect: (&Dialect, &Dialect),
) -> Option<String> {
    let bytes = small();
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let (loader, kernel) = (loader(), kernel(0));
    let expected = launch(&firmware, dialect.1, &loader, &kernel);
    let expected = expected.predict().unwrap();
    let mut other = launch(&firmware, dialect.0, &loader, &kernel);
    let mut extra = Vec::new();
    found(&mut other, &mut extra);
    let mut events = other.predict().unwrap().events;
    events.extend(extra);
    let bytes = log(&events);
    let log = EventLog::parse(&bytes).unwrap();
    let registers = log.replay().unwrap().map(|register| register.value);
    assert_eq!(registers, replay(&events));
    let difference = explain(&expected, &log, &firmware);
    assert_eq!(difference.is_none(), registers == expected.rtmrs);
    difference.map(|difference| difference.to_string())
}

#[test]
fn a_log_as_predicted_has_no_difference_and_each_input_is_told_by_its_event() {
    let new = Dialect::edk2_202508();
    let same = (&new, &new);
    assert_eq!(said(|_, _| {}, same), None);
    let line = said(|launch, _| launch.command_line = "quiet", same).unwrap();
    assert!(line.starts_with("RTMR2, event "), "{line}");
    assert!(
        line.contains("the command line was expected, and something else"),
        "{line}"
    );
    let initramfs = said(|launch, _| launch.initramfs = Some(b"other"), same).unwrap();
    assert!(
        initramfs.contains("look at the initramfs file"),
        "{initramfs}"
    );
    let none = said(
        |launch, _| {
            launch.initramfs = None;
            launch.command_line = "initrd=initrd console=ttyS0";
        },
        same,
    );
    assert!(
        none.as_ref()
            .unwrap()
            .contains("RTMR2: the log ends before the initramfs"),
        "{none:?}"
    );
    let memory = said(
        |launch, _| launch.memory = measure::tdx::Memory::new(3 << 30).unwrap(),
        same,
    );
    assert!(
        memory.as_ref().unwrap().ends_with("had 3072 MiB of memory"),
        "{memory:?}"
    );
    let more = said(
        |_, extra| {
            let event = measure::tdx::RuntimeEvent {
                domain: "a",
                operation: "b",
                content: "c",
            };
            extra.push(measure::tdx::runtime_event(&event).unwrap());
        },
        same,
    );
    assert!(more.as_ref().unwrap().contains("RTMR3, event "), "{more:?}");
    assert!(
        more.as_ref().unwrap().contains("one more than expected"),
        "{more:?}"
    );
}

#[test]
fn another_dialect_of_the_firmware_is_told_where_it_begins() {
    let (old, new) = (Dialect::edk2_2024(), Dialect::edk2_202508());
    let older = said(|_, _| {}, (&old, &new)).unwrap();
    assert!(older.contains("fw_cfg's BootMenu was expected"), "{older}");
    assert!(older.contains("the VMM's options of booting"), "{older}");
    let oldest = Dialect::edk2_2023();
    let separator = said(|_, _| {}, (&oldest, &old)).unwrap();
    // The separator that is one too many in RTMR0 comes before what is missing in RTMR1.
    assert!(separator.contains("one more than expected"), "{separator}");
    let first = Dialect::edk2_202505();
    let line = said(|_, _| {}, (&first, &new)).unwrap();
    assert!(line.contains("initrd=initrd before or behind it"), "{line}");
    let newer = said(|_, _| {}, (&new, &old)).unwrap();
    assert!(
        newer.contains("the variable SecureBoot was expected"),
        "{newer}"
    );
}

#[test]
fn a_dialect_is_chosen_by_its_name_and_an_unknown_one_is_refused() {
    for (name, dialect) in [
        ("edk2-2023", Dialect::edk2_2023()),
        ("edk2-2024", Dialect::edk2_2024()),
        ("edk2-202505", Dialect::edk2_202505()),
        ("edk2-202508", Dialect::edk2_202508()),
    ] {
        assert_eq!(name.parse(), Ok(dialect));
    }
    let said = "edk2-2022".parse::<Dialect>().unwrap_err().to_string();
    assert!(said.contains("edk2-202508"), "{said}");
}
