//! The simulated TDX module and quoting enclave: what they say of one launch, its registers as the guest
//! extends them, and the log that firmware and kernel would have left.

use std::io;

use agent_api::TeeCall;
use anyhow::Context;
use evidence::Tee;
use evidence::eventlog::{EventKind, extended};
use evidence::sim::tdx::{Enclave, LogBuilder, Platform, QuotingEnclave};
use evidence::tdx::{Attributes, Body, Header};
use measure::tdx::{
    Acpi, Dialect, Event, Firmware, KernelForm, Launch, Memory, PageOrder, Prediction, SecureBoot,
    Vmm,
};

use super::directory::{ACPI, Directory};
use super::launch::Booted;
use super::serve::{Firm, VALIDITY};
use super::settings::{Tdx, TdxFault};
use crate::measure::tdx::Tables;

/// The firmware's generation, as `cloister measure` has it.
pub(super) const DIALECT: &str = "edk2-202508";
/// The version of quotes.
const QUOTE: u16 = 4;
const MIB: u64 = 1 << 20;

/// One guest's.
pub(super) struct Module {
    body: Body,
    log: Vec<u8>,
    enclave: QuotingEnclave,
    fault: TdxFault,
}

impl Module {
    /// Measures a launch.
    pub(super) fn launch(
        booted: &Booted,
        settings: &Tdx,
        directory: &Directory,
    ) -> anyhow::Result<Self> {
        let predicted = predict(booted, directory)?;
        let put = |log: LogBuilder, event: &Event| {
            // Firmware's logs name what was measured; ours does the same in words.
            let name = event.origin.to_string();
            log.measured(event.index, event.kind, name.as_bytes(), &event.digest)
        };
        let mut log = predicted.events.iter().fold(LogBuilder::new(), put);
        let mut body = Body::simulated(log.registers());
        body.mr_td = predicted.mrtd;
        body.mr_config_id
            .copy_from_slice(booted.bound(Tee::SimTdx).as_bytes());
        body.tcb_svn = [settings.svn; 16];
        // The module's version: the identity TDX_01.
        body.tcb_svn[1] = 1;
        match settings.fault {
            TdxFault::Measurement => body.mr_td[0] ^= 1,
            TdxFault::ConfigId => body.mr_config_id = [0; 48],
            TdxFault::Debug => body.td_attributes = Attributes(body.td_attributes.0 | 1),
            TdxFault::Log => log = log.event(2, EventKind::EfiAction, b"never happened"),
            TdxFault::None | TdxFault::Signature | TdxFault::ReportData => {}
        }
        let platform = Platform {
            cpu_svn: [settings.svn; 16],
            ..Platform::simulated(VALIDITY)
        };
        let key = directory.tdx_root()?.platform(&platform)?;
        Ok(Self {
            body,
            log: log.finish(),
            enclave: key.enclave(&Enclave::default())?,
            fault: settings.fault,
        })
    }

    fn quote(&self, report_data: [u8; 64]) -> io::Result<Vec<u8>> {
        let mut body = self.body.clone();
        body.report_data = report_data;
        if self.fault == TdxFault::ReportData {
            body.report_data[0] ^= 1;
        }
        let quote = self.enclave.quote(Header::simulated(QUOTE), body);
        let mut quote = quote.map_err(io::Error::other)?;
        if self.fault == TdxFault::Signature {
            quote.body.mr_owner[0] ^= 1;
        }
        Ok(quote.to_bytes())
    }
}

impl Firm for Module {
    fn answer(&mut self, call: TeeCall) -> io::Result<Vec<Vec<u8>>> {
        Ok(match call {
            TeeCall::Report(data) => vec![self.quote(data)?, Vec::new()],
            TeeCall::Read(register) => vec![self.register(register)?.to_vec()],
            TeeCall::Extend(register, digest) => {
                let register = self.register(register)?;
                *register = extended(register, &digest);
                Vec::new()
            }
            TeeCall::Log => vec![self.log.clone()],
        })
    }
}

impl Module {
    fn register(&mut self, register: usize) -> io::Result<&mut [u8; 48]> {
        let value = self.body.rtmr.get_mut(register);
        value.ok_or_else(|| io::Error::other("a TD has RTMR0 to RTMR3"))
    }
}

/// The features that its guests have, as a quote tells them.
pub(super) fn xfam() -> String {
    hex::encode(Body::simulated([[0; 48]; 4]).xfam)
}

fn predict(booted: &Booted, directory: &Directory) -> anyhow::Result<Prediction> {
    let firmware = Firmware::parse(&booted.firmware, Vmm::Qemu)?;
    let tables = Tables::read(&directory.path(ACPI))?;
    let memory = u64::from(booted.launch.memory_mib) * MIB;
    let launch = Launch {
        firmware: &firmware,
        order: PageOrder::EachPage,
        dialect: &DIALECT.parse::<Dialect>()?,
        secure_boot: SecureBoot::Absent,
        memory: Memory::new(memory)?,
        acpi: Acpi {
            loader: tables.loader(),
            files: &tables.files(),
        },
        smbios: tables.smbios(),
        kernel: &booted.kernel,
        kernel_form: KernelForm::AsInFile,
        initramfs: booted.initramfs.as_deref(),
        command_line: &booted.launch.command_line,
        runtime: &[],
    };
    launch.predict().context("predict the launch")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use clap::Parser;
    use guest_image::manifest::FILE;
    use serde_json::{Value, json};
    use sha2::{Digest, Sha256};
    use shim::{config, kernel_line};

    use super::*;
    use crate::measure::Measure;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        measure: Measure,
    }

    /// A guest image, and a configuration of its pods.
    fn image(dir: &Path, tee: &str) {
        let mut outputs = Vec::new();
        for (name, content) in [
            ("vmlinuz", super::super::tdvf::kernel(0)),
            ("initramfs.cpio", b"initramfs".to_vec()),
        ] {
            fs::write(dir.join(name), &content).unwrap();
            let sha256 = hex::encode(Sha256::digest(&content));
            outputs.push(json!({ "name": name, "sha256": sha256, "size": content.len() }));
        }
        let manifest = json!({
            "version": 1, "kernel": { "flavour": "debian", "release": "6", "packages": [] },
            "agent": { "name": "cloister-agent", "sha256": "00", "size": 1 }, "modules": [], "outputs": outputs,
        });
        fs::write(dir.join(FILE), manifest.to_string()).unwrap();
        let text = format!(
            "[hypervisor.qemu]\nkernel = {:?}\ninitrd = {:?}\n[cloister]\ntee = {tee:?}\n",
            dir.join("vmlinuz"),
            dir.join("initramfs.cpio")
        );
        fs::write(dir.join("configuration.toml"), text).unwrap();
    }

    /// The values of the command that `init` prints for a kind.
    fn printed(directory: &Directory, dir: &Path, tee: evidence::Tee) -> (Value, Booted) {
        image(dir, tee.name());
        let path = dir.join("configuration.toml");
        let config = config::load(Some(&path)).unwrap();
        let told = directory.told();
        let mut lines = told.lines().map(str::trim);
        let wanted = |line: &&str| {
            line.starts_with("cloister measure ")
                && line.contains("--tee tdx") == (tee == evidence::Tee::SimTdx)
        };
        let words = lines
            .find(wanted)
            .unwrap()
            .split(' ')
            .map(|word| match word {
                "DIR" => dir.display().to_string(),
                "FILE" => path.display().to_string(),
                "MIB" => config.vm.memory_mib.to_string(),
                word => word.to_owned(),
            });
        let command = Command::try_parse_from(words.skip(1)).unwrap();
        let launch = shim::dev_tee::Launch {
            tee,
            kernel: config.vm.kernel.clone(),
            initrd: config.vm.initrd.clone(),
            firmware: None,
            command_line: kernel_line::measured(&config).unwrap(),
            vcpus: config.vm.vcpus,
            memory_mib: config.vm.memory_mib,
            init_data: None,
        };
        let booted = Booted::read(launch, directory).unwrap();
        (command.measure.reference_values().unwrap(), booted)
    }

    #[test]
    fn the_commands_that_init_prints_predict_what_its_pods_report() {
        let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        super::super::directory::init(root.path()).unwrap();
        let directory = Directory::open(root.path()).unwrap();
        let settings = directory.settings().unwrap();
        let (values, booted) = printed(&directory, dir.path(), Tee::SimTdx);
        let body = Module::launch(&booted, &settings.tdx, &directory)
            .unwrap()
            .body;
        for (name, found) in [
            ("mr_td", &body.mr_td[..]),
            ("rtmr_0", &body.rtmr[0]),
            ("rtmr_1", &body.rtmr[1]),
            ("rtmr_2", &body.rtmr[2]),
            ("xfam", &body.xfam),
        ] {
            assert_eq!(values[name], json!([hex::encode(found)]), "{name}");
        }
        let (values, booted) = printed(&directory, dir.path(), Tee::SimSnp);
        let processor =
            super::super::snp::SecurityProcessor::launch(&booted, &settings.snp, &directory);
        let expected = json!([hex::encode(processor.unwrap().measurement())]);
        assert_eq!(values["snp_launch_measurement"], expected);
    }
}
