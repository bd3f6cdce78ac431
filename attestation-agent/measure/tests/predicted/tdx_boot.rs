//! Real boots with a software TPM, whose logs are the predicted ones event by event.

use crate::measured_boot::{Boot, COMMAND_LINE, Logged, MEMORY, Platform, initramfs};
use crate::tdvf;

use evidence::eventlog::EventKind;
use measure::tdx::{
    Acpi, Dialect, Event, Firmware, KernelForm, Launch, Memory, Origin, SecureBoot, Vmm,
};
use support::product;
use tdvf::launch;

/// What only a TD has: the list of memory, the variables' section and items of fw_cfg are measured by code of
/// its own.
fn is_of_a_td(origin: &Origin) -> bool {
    matches!(origin, Origin::TdHob | Origin::Variables | Origin::FwCfg(_))
}

/// The register of a TD in which the events of a PCR are (edk2's `MapPcrToMrIndex`); none for PCR 0, whose
/// events are of code that is in MRTD.
fn index_of(pcr: u32) -> Option<u32> {
    match pcr {
        1 | 7 => Some(1),
        2..=6 => Some(2),
        8..=15 => Some(3),
        _ => None,
    }
}

/// What is predicted of this boot, without its last separator but one: where a TD draws one line, a TPM gets
/// one in each of PCR 0 to 6.
///
/// ACPI's tables are measured by the same code with a TPM and in a TD: edk2's `QemuFwCfgAcpi.c` gives the bytes
/// to `TpmMeasureAndLogData` for PCR 1, and that function, in `SecurityPkg/Library/DxeTpmMeasurementLib`, extends
/// the PCR, or the register that stands for it in a TD.
fn expected(launch: &Launch<'_>, platform: &Platform) -> Vec<Event> {
    let mut events = launch.predict().unwrap().events;
    let line = events
        .iter()
        .rposition(|it| it.kind == EventKind::Separator)
        .unwrap();
    events.remove(line);
    let is_table = |origin: &Origin| matches!(origin, Origin::Acpi(_));
    events.retain(|it| !is_of_a_td(&it.origin));
    events.retain(|it| platform.measures_acpi || !is_table(&it.origin));
    events
}

/// The events of a log that a TD has as well.
fn found<'a>(log: &'a [Logged], platform: &Platform) -> Vec<&'a Logged> {
    let is_line = |event: &Logged| event.kind == EventKind::Separator && event.pcr < 7;
    assert_eq!(log.iter().filter(|event| is_line(event)).count(), 7);
    let is_smbios = |event: &&Logged| event.kind == EventKind::EfiHandoffTables;
    let smbios = log.iter().filter(is_smbios).count();
    assert_eq!(smbios, usize::from(platform.measures_smbios));
    let of_a_td = |event: &&Logged| index_of(event.pcr).is_some() && !is_line(event);
    log.iter().filter(of_a_td).collect()
}

fn boots_as_predicted(platform: &Platform, dialect: &Dialect, form: KernelForm, sb: SecureBoot) {
    let path = product::guest_dir().join("vmlinuz");
    if let Some(lacks) = platform.lacks(&path) {
        eprintln!("skipped: {lacks}");
        return;
    }
    let kernel = std::fs::read(&path).unwrap();
    let initramfs = initramfs(&kernel);
    let image = std::fs::read(&platform.firmware).unwrap();
    let firmware = Firmware::parse(&image, Vmm::Qemu).unwrap();
    let Boot {
        log,
        loader,
        files,
        smbios,
    } = platform.boot(&path, &initramfs);
    let files: Vec<_> = files
        .iter()
        .map(|(name, file)| (&**name, &**file))
        .collect();
    let mut launch = launch(&firmware, dialect, &loader, &kernel);
    launch.acpi = Acpi {
        loader: &loader,
        files: &files,
    };
    launch.smbios = Some(&smbios);
    launch.memory = Memory::new(MEMORY).unwrap();
    launch.kernel_form = form;
    launch.secure_boot = sb;
    launch.initramfs = Some(&initramfs);
    launch.command_line = COMMAND_LINE;

    let (expected, found) = (expected(&launch, platform), found(&log, platform));
    for (event, found) in expected.iter().zip(&found) {
        let said = format!("{}: {event:?} {found:?}", event.origin);
        assert_eq!(event.digest, found.digest, "{said}");
        assert_eq!(Some(event.index), index_of(found.pcr), "{said}");
    }
    assert_eq!(expected.len(), found.len(), "{log:#?}");
    // The list, the tables' two files, and the TPM's log.
    let tables = |event: &&&Logged| event.kind == EventKind::PlatformConfigFlags;
    let measured = if platform.measures_acpi { 4 } else { 0 };
    assert_eq!(found.iter().filter(tables).count(), measured);
}

#[test]
fn the_log_of_a_real_boot_is_the_predicted_one_event_by_event() {
    let dialect = Dialect::edk2_2023();
    let form = KernelForm::Patched;
    boots_as_predicted(&Platform::installed(), &dialect, form, SecureBoot::Off);
}

#[test]
fn so_is_that_of_the_release_after_it() {
    let dialect = Dialect::edk2_2024();
    let form = KernelForm::AsInFile;
    boots_as_predicted(&Platform::next(), &dialect, form, SecureBoot::Absent);
}

#[test]
fn so_is_that_of_the_newest_firmware_and_qemu() {
    let dialect = Dialect::edk2_202508();
    let form = KernelForm::AsInFile;
    boots_as_predicted(&Platform::newest(), &dialect, form, SecureBoot::Absent);
}
