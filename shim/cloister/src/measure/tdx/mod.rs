//! TDX: MRTD and RTMR0 to RTMR2 of a guest that QEMU boots directly.
//!
//! What no file tells has to be said: the firmware's generation, and the ACPI tables for each size of
//! memory that a pod may have. All of a launch is predicted or nothing; what is left to a broker's owner
//! (`xfam`, RTMR3) is told with each output.

mod acpi;
mod explain;
mod log;
mod memory;
mod output;
mod recorded;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use evidence::init_data::InitDataDigest;
use measure::Binding;
use measure::tdx::{
    Acpi, Dialect, Digest, Firmware, KernelForm, Launch, Origin, PageOrder, Prediction, SecureBoot,
    Vmm,
};

pub(crate) use self::acpi::Tables;
use self::acpi::{Dir, Size};
pub(super) use self::explain::Found;
use self::memory::{Sizes, memory};
pub(super) use self::output::Predicted;
use self::output::Shape;
use super::Input;
use super::artifact::{Artifacts, Boot};

#[derive(Debug, Clone, Args)]
pub(crate) struct TdxArgs {
    /// TDX: the generation of edk2 that the firmware is of: edk2-2023, edk2-2024, edk2-202505 or
    /// edk2-202508.
    #[arg(
        long,
        value_name = "NAME",
        requires = "start",
        conflicts_with_all = ["vcpus", "cpu_model", "guest_features"]
    )]
    dialect: Option<Dialect>,
    /// TDX: sizes of memory that a pod may have, in MiB or with G behind: 2048,4G.
    #[arg(long, value_name = "LIST", requires = "dialect")]
    memory: Option<Sizes>,
    /// TDX: a directory with etc/table-loader and the files that it asks for, as a guest of the same shape
    /// has them in /sys/firmware/qemu_fw_cfg/by_name, and for firmware since edk2-202505 with its
    /// /sys/firmware/dmi/tables/DMI as DMI; with more than one size of memory, one for each, and
    /// with more than one number of vCPUs, one for each of those, as 2048/4=DIR.
    #[arg(long, value_name = "[SIZE[/VCPUS]=]DIR", requires = "dialect")]
    acpi: Vec<Dir>,
    /// TDX: how the host's kernel measures the firmware's pages.
    #[arg(long, value_enum, default_value = "each-page", requires = "dialect")]
    page_order: Order,
    /// TDX: in which form the firmware gets the kernel.
    #[arg(long, value_enum, default_value = "as-in-file", requires = "dialect")]
    kernel_form: Form,
    /// TDX: whether the firmware has Secure Boot.
    #[arg(long, value_enum, default_value = "absent", requires = "dialect")]
    secure_boot: Secure,
    /// TDX, with Secure Boot on: the digest of what the kernel is allowed by, 96 hex digits as a log of this
    /// firmware has it.
    #[arg(long, value_name = "HEX", requires = "dialect", value_parser = fixed::<48>)]
    authority: Vec<Digest>,
    /// TDX: the features that hosts give to guests, 16 hex digits as a quote has them. They are added to
    /// the reference values.
    #[arg(long, value_name = "HEX", requires = "dialect", value_parser = fixed::<8>)]
    xfam: Option<[u8; 8]>,
    /// TDX: leave RTMR0 out of a document for a broker, which then judges neither shape nor devices: for
    /// pods whose devices differ.
    #[arg(long, requires = "dialect")]
    no_rtmr_0: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Each as it is added: Linux since 6.16.
    EachPage,
    /// A section when all its pages are added: some kernels before.
    WholeSection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// As in its file: QEMU since 10.2, or firmware since edk2-stable202502 with QEMU since 10.0.
    AsInFile,
    /// With QEMU's changes to its header: older ones.
    Patched,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Secure {
    /// Built without it.
    Absent,
    /// Built with it, and without keys.
    Off,
    /// With keys; needs --authority.
    On,
}

/// All that decides a TD's measurement.
pub(super) struct Inputs<'a> {
    artifacts: &'a Artifacts,
    image: Vec<u8>,
    boot: Boot,
    tables: Vec<(Size, Tables)>,
    how: How,
    xfam: Option<[u8; 8]>,
    /// Whether a broker is told RTMR0.
    rtmr_0: bool,
}

/// What no file tells.
#[derive(Debug, Clone)]
struct How {
    dialect: Dialect,
    order: PageOrder,
    form: KernelForm,
    secure_boot: SecureBoot,
}

impl TdxArgs {
    /// Whether a TD is asked for.
    pub(crate) fn asked(&self) -> bool {
        self.dialect.is_some()
    }

    /// The same with this size of memory in MiB, where none is said.
    pub(crate) fn with_memory(mut self, mib: u32) -> anyhow::Result<Self> {
        if self.memory.is_none() {
            let sizes = mib.to_string().parse();
            self.memory = Some(sizes.map_err(anyhow::Error::msg)?);
        }
        Ok(self)
    }

    /// Takes an input from another launch.
    pub(super) fn exchange(&mut self, input: Input, other: &Self) {
        let other = other.clone();
        match input {
            Input::Generation => self.dialect = other.dialect,
            Input::PageOrder => self.page_order = other.page_order,
            Input::KernelForm => self.kernel_form = other.kernel_form,
            Input::SecureBoot => {
                self.secure_boot = other.secure_boot;
                self.authority = other.authority;
            }
            Input::Tables => self.acpi = other.acpi,
            Input::Firmware
            | Input::Kernel
            | Input::Initramfs
            | Input::CommandLine
            | Input::GuestFeatures => {}
        }
    }

    /// The shapes, each with its tables.
    fn tables(&self) -> anyhow::Result<Vec<(Size, Tables)>> {
        let sizes = self.memory.as_ref();
        let sizes = sizes.context("--memory is missing: give the sizes that a pod may have")?;
        Tables::of(sizes, &self.acpi)
    }

    fn how(&self) -> anyhow::Result<How> {
        let dialect = self.dialect.clone();
        let dialect = dialect.context("--dialect is missing: name the firmware's generation")?;
        ensure!(
            self.authority.is_empty() || self.secure_boot == Secure::On,
            "--authority is measured with Secure Boot on alone: add --secure-boot on"
        );
        Ok(How {
            dialect: Dialect {
                authorities: self.authority.clone(),
                // They are in RTMR0 alone.
                measures_smbios: dialect.measures_smbios && !self.no_rtmr_0,
                ..dialect
            },
            order: match self.page_order {
                Order::EachPage => PageOrder::EachPage,
                Order::WholeSection => PageOrder::WholeSection,
            },
            form: match self.kernel_form {
                Form::AsInFile => KernelForm::AsInFile,
                Form::Patched => KernelForm::Patched,
            },
            secure_boot: match self.secure_boot {
                Secure::Absent => SecureBoot::Absent,
                Secure::Off => SecureBoot::Off,
                Secure::On => SecureBoot::On,
            },
        })
    }
}

impl<'a> Inputs<'a> {
    pub(super) fn read(args: &TdxArgs, artifacts: &'a Artifacts) -> anyhow::Result<Self> {
        let how = args.how()?;
        Ok(Self {
            artifacts,
            image: artifacts.firmware_bytes()?,
            boot: artifacts
                .boot()?
                .context("--tee tdx: give --image or --kernel")?,
            tables: args.tables()?,
            how,
            xfam: args.xfam,
            rtmr_0: !args.no_rtmr_0,
        })
    }

    /// Each shape's registers.
    pub(super) fn predict(&self, init_data: Option<&InitDataDigest>) -> anyhow::Result<Predicted> {
        let firmware = self.firmware()?;
        let mut shapes = Vec::new();
        for (size, tables) in &self.tables {
            let predicted = self.launch(
                &firmware,
                size.mib,
                tables,
                &self.how,
                self.artifacts.line(),
            )?;
            let event = |origin: &Origin| {
                let mut events = predicted.events.iter();
                events
                    .find(|event| event.origin == *origin)
                    .map(|event| event.digest)
            };
            let [rtmr_0, rtmr_1, rtmr_2, _] = predicted.rtmrs;
            shapes.push(Shape {
                size: *size,
                rtmrs: [rtmr_0, rtmr_1, rtmr_2],
                kernel: event(&Origin::Kernel),
                command_line: event(&Origin::CommandLine),
            });
        }
        Ok(Predicted {
            mr_td: firmware.mrtd(self.how.order),
            shapes,
            binding: Binding::of(evidence::Tee::Tdx, init_data),
            xfam: self.xfam,
            rtmr_0: self.rtmr_0,
        })
    }

    fn firmware(&self) -> anyhow::Result<Firmware<'_>> {
        let path = self.artifacts.firmware_path()?;
        Firmware::parse(&self.image, Vmm::Qemu).with_context(|| path.display().to_string())
    }

    /// One launch of these files.
    fn launch(
        &self,
        firmware: &Firmware<'_>,
        mib: u64,
        tables: &Tables,
        how: &How,
        command_line: &str,
    ) -> anyhow::Result<Prediction> {
        let launch = Launch {
            firmware,
            order: how.order,
            dialect: &how.dialect,
            secure_boot: how.secure_boot,
            memory: memory(mib).map_err(anyhow::Error::msg)?,
            acpi: Acpi {
                loader: tables.loader(),
                files: &tables.files(),
            },
            smbios: tables.smbios(),
            kernel: &self.boot.kernel,
            kernel_form: how.form,
            initramfs: self.boot.initramfs.as_deref(),
            command_line,
            runtime: &[],
        };
        Ok(launch.predict()?)
    }
}

fn fixed<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], String> {
    let mut bytes = [0; BYTES];
    let wrong = |_| format!("{} hex digits", 2 * BYTES);
    hex::decode_to_slice(text, &mut bytes).map_err(wrong)?;
    Ok(bytes)
}
