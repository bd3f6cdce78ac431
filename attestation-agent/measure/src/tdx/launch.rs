//! A launch: all that decides a TD's measurement, and the events that it leads to.

use evidence::eventlog::EventKind;
use sha2::{Digest as _, Sha384};

use super::{
    Acpi, AcpiError, CommandLineError, Dialect, Digest, Firmware, HobError, KernelError,
    KernelForm, Memory, PageOrder, Rtmrs, SectionKind, SecureBoot, SmbiosError, StoreError,
    VariableError, Vmm,
    command_line::load_options,
    event::{Event, Origin, replay},
    kernel,
    runtime::{self, RuntimeError, RuntimeEvent},
    smbios,
    store::Store,
    td_hob,
    variable::{boot_events, is_enrolled, secure_boot_events},
};

const CALLING: &str = "Calling EFI Application from Boot Option";
const LEAVING: &str = "Exit Boot Services Invocation";
const LEFT: &str = "Exit Boot Services Returned with Success";
/// The most bytes of an item of fw_cfg that firmware takes at its start.
const BLOB_BYTES: usize = 256 * 1024;

/// A direct boot of a kernel by QEMU: the number of vCPUs is in [`Self::acpi`].
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// What starts.
    pub firmware: &'a Firmware<'a>,
    /// How the kernel of the host adds it to the TD.
    pub order: PageOrder,
    /// How it measures.
    pub dialect: &'a Dialect,
    /// Whether it has Secure Boot; the keys are in its image.
    pub secure_boot: SecureBoot,
    /// The guest's memory.
    pub memory: Memory,
    /// What the VMM says of the machine.
    pub acpi: Acpi<'a>,
    /// The list of SMBIOS' tables, which some firmware measures.
    pub smbios: Option<&'a [u8]>,
    /// The kernel's file.
    pub kernel: &'a [u8],
    /// In which form the firmware gets it.
    pub kernel_form: KernelForm,
    /// The initramfs.
    pub initramfs: Option<&'a [u8]>,
    /// The command line, without what the firmware adds.
    pub command_line: &'a str,
    /// What the guest records while it runs.
    pub runtime: &'a [RuntimeEvent<'a>],
}

/// What the hardware will report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// What was added before the start.
    pub mrtd: Digest,
    /// What extends the other registers, in the order of the log.
    pub events: Vec<Event>,
    /// RTMR0 to RTMR3 after all events.
    pub rtmrs: Rtmrs,
}

/// A launch that would not come about, or whose measurement is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Another VMM.
    #[error(
        "{0} gives firmware another list of memory and other tables than QEMU: of a TD by it, only MRTD is \
         predicted"
    )]
    Vmm(Vmm),
    /// The firmware has no variables to measure.
    #[error("the firmware's TDX metadata has no section of variables (CFV), which OVMF measures")]
    NoVariables,
    /// With Secure Boot on, an authority is measured.
    #[error(
        "with Secure Boot on, firmware measures what the kernel was allowed by: give its digest, as a log \
         of this firmware has it, as the dialect's authority"
    )]
    NoAuthority,
    /// Keys in a firmware that is said to be built without Secure Boot.
    #[error(
        "a platform key (PK) is among the firmware's variables, so that it has Secure Boot: say whether it is on or \
         off, or take the keys out (`virt-fw-vars --delete PK`)"
    )]
    Enrolled,
    /// No file.
    #[error("the initramfs is empty: leave it out")]
    Initramfs,
    /// An item of fw_cfg without a name or without a content.
    #[error(
        "the item of fw_cfg {0:?} is empty, or has more than {BLOB_BYTES} bytes: firmware passes it over"
    )]
    FwCfg(String),
    /// The list of memory.
    #[error(transparent)]
    Hob(#[from] HobError),
    /// The tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// No list of SMBIOS' tables.
    #[error(
        "firmware of this generation measures SMBIOS' tables: give /sys/firmware/dmi/tables/DMI of a guest of this \
         shape, as DMI beside its etc/table-loader, or leave RTMR0 out"
    )]
    NoSmbios,
    /// That list.
    #[error(transparent)]
    Smbios(#[from] SmbiosError),
    /// The firmware's variables.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A variable.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// A runtime event.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Launch<'_> {
    /// MRTD and all events.
    ///
    /// # Errors
    /// When there is no such launch, or when it depends on what is not known here.
    pub fn predict(&self) -> Result<Prediction, LaunchError> {
        let events = self.events()?;
        Ok(Prediction {
            mrtd: self.firmware.mrtd(self.order),
            rtmrs: replay(&events),
            events,
        })
    }

    fn events(&self) -> Result<Vec<Event>, LaunchError> {
        if self.firmware.vmm() != Vmm::Qemu {
            return Err(LaunchError::Vmm(self.firmware.vmm()));
        }
        if self.secure_boot == SecureBoot::On && self.dialect.authorities.is_empty() {
            return Err(LaunchError::NoAuthority);
        }
        let variables = self.firmware.one(SectionKind::Variables);
        let variables = variables.ok_or(LaunchError::NoVariables)?.content;
        let mut events = self.start(variables)?;
        let store = Store::parse(variables)?;
        if self.secure_boot == SecureBoot::Absent && is_enrolled(&store) {
            return Err(LaunchError::Enrolled);
        }
        events.extend(secure_boot_events(self.secure_boot, &store)?);
        events.push(Event::separator(1));
        events.extend(self.acpi.events()?);
        events.extend(self.dialect.authorities.iter().map(authority));
        events.push(self.kernel()?);
        if self.dialect.measures_smbios {
            let tables = self.smbios.ok_or(LaunchError::NoSmbios)?;
            events.push(smbios::event(tables)?);
        }
        let index = self.dialect.boot_variables.index();
        events.extend(boot_events(index, &self.dialect.boot_options)?);
        events.push(Event::action(CALLING));
        events.push(Event::separator(self.dialect.boot_separator.index()));
        events.extend(self.stub()?);
        events.extend([LEAVING, LEFT].map(Event::action));
        for runtime in self.runtime {
            events.push(runtime::event(runtime)?);
        }
        Ok(events)
    }

    /// What the firmware measures before its drivers start.
    fn start(&self, variables: &[u8]) -> Result<Vec<Event>, LaunchError> {
        let hob = td_hob(self.firmware, self.memory)?;
        let mut events = vec![
            Event::of(1, EventKind::EfiHandoffTables2, Origin::TdHob, &hob),
            Event::of(
                1,
                EventKind::EfiPlatformFirmwareBlob2,
                Origin::Variables,
                variables,
            ),
        ];
        for (name, content) in &self.dialect.fw_cfg {
            if name.is_empty() || content.is_empty() || content.len() > BLOB_BYTES {
                return Err(LaunchError::FwCfg(name.clone()));
            }
            let origin = Origin::FwCfg(name.clone());
            events.push(Event::of(
                1,
                EventKind::PlatformConfigFlags,
                origin,
                content,
            ));
        }
        Ok(events)
    }

    fn kernel(&self) -> Result<Event, LaunchError> {
        let digest = kernel::measure(
            self.kernel,
            self.kernel_form,
            self.memory,
            self.initramfs.map(<[u8]>::len),
            self.command_line,
        )?;
        Ok(Event {
            index: 2,
            kind: EventKind::EfiBootServicesApplication,
            digest,
            origin: Origin::Kernel,
        })
    }

    /// What the kernel's EFI stub measures.
    fn stub(&self) -> Result<Vec<Event>, LaunchError> {
        if self.initramfs.is_some_and(<[u8]>::is_empty) {
            return Err(LaunchError::Initramfs);
        }
        let kind = EventKind::EventTag;
        let mut events = Vec::new();
        let initramfs = self.initramfs.is_some();
        if let Some(options) = load_options(self.command_line, initramfs, self.dialect.initrd)? {
            events.push(Event::of(3, kind, Origin::CommandLine, &options));
        }
        if let Some(initramfs) = self.initramfs {
            events.push(Event {
                index: 3,
                kind,
                digest: Sha384::digest(initramfs).into(),
                origin: Origin::Initramfs,
            });
        }
        Ok(events)
    }
}

fn authority(digest: &Digest) -> Event {
    Event {
        index: 1,
        kind: EventKind::EfiVariableAuthority,
        digest: *digest,
        origin: Origin::Authority,
    }
}
