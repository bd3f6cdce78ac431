//! The simulated security processor: what it says of one launch, signed by its chip's key.

use std::io;

use agent_api::TeeCall;
use evidence::Tee;
use evidence::sim::snp::{Chip, ChipKey};
use evidence::snp::{Certificate, GuestPolicy, Report};
use measure::snp::{Firmware, GuestFeatures, KernelHashes, Launch};

use super::directory::Directory;
use super::launch::Booted;
use super::serve::{Firm, VALIDITY};
use super::settings::{Snp, SnpFault};

/// SNP is on, and nothing else: what QEMU asks for by default.
const FEATURES: u64 = 1;
/// DEBUG, in a guest's policy.
const DEBUG: u64 = 1 << 19;

/// One guest's.
pub(super) struct SecurityProcessor {
    report: Report,
    key: ChipKey,
    fault: SnpFault,
}

impl SecurityProcessor {
    /// Measures a launch.
    pub(super) fn launch(
        booted: &Booted,
        settings: &Snp,
        directory: &Directory,
    ) -> anyhow::Result<Self> {
        let firmware = Firmware::parse(&booted.firmware)?;
        let line = &booted.launch.command_line;
        let kernel = KernelHashes::new(&booted.kernel, booted.initramfs.as_deref(), line)?;
        let launch = Launch {
            firmware: &firmware,
            kernel: Some(&kernel),
            cpu: &settings.cpu_model,
            features: GuestFeatures::new(FEATURES)?,
        };
        let digest = launch.digest(booted.launch.vcpus)?;
        let tcb = settings.tcb();
        let idle = Report::simulated(settings.version, settings.generation);
        let mut report = Report {
            measurement: digest.0,
            reported_tcb: tcb,
            current_tcb: tcb,
            committed_tcb: tcb,
            launch_tcb: tcb,
            ..idle
        };
        let bound = booted.bound(Tee::SimSnp);
        report.host_data.copy_from_slice(bound.as_bytes());
        let key = directory.chip(&Chip::of(&report, settings.generation, VALIDITY))?;
        match settings.fault {
            SnpFault::Measurement => report.measurement[0] ^= 1,
            SnpFault::HostData => report.host_data = [0; 32],
            SnpFault::ChipId => report.chip_id[0] ^= 1,
            SnpFault::Debug => report.policy = GuestPolicy(report.policy.0 | DEBUG),
            SnpFault::None | SnpFault::Signature | SnpFault::ReportData => {}
        }
        Ok(Self {
            report,
            key,
            fault: settings.fault,
        })
    }

    /// What its reports say of the launch.
    #[cfg(test)]
    pub(super) fn measurement(&self) -> [u8; 48] {
        self.report.measurement
    }

    fn report(&self, report_data: [u8; 64]) -> io::Result<Vec<Vec<u8>>> {
        let mut report = self.report.clone();
        report.report_data = report_data;
        if self.fault == SnpFault::ReportData {
            report.report_data[0] ^= 1;
        }
        self.key.sign(&mut report).map_err(io::Error::other)?;
        if self.fault == SnpFault::Signature {
            report.report_id[0] ^= 1;
        }
        let bytes = report.to_bytes().map_err(io::Error::other)?;
        let table = Certificate::to_table(&[self.key.certificate_entry()]);
        Ok(vec![bytes.to_vec(), table])
    }
}

impl Firm for SecurityProcessor {
    fn answer(&mut self, call: TeeCall) -> io::Result<Vec<Vec<u8>>> {
        match call {
            TeeCall::Report(data) => self.report(data),
            TeeCall::Log => Ok(vec![Vec::new()]),
            TeeCall::Read(_) | TeeCall::Extend(..) => Err(io::Error::other(
                "SEV-SNP has no registers that a guest extends",
            )),
        }
    }
}
