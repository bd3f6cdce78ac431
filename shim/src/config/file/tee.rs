//! Which kind of confidential guest the keys ask for together.

use super::{Inspection, QEMU};
use crate::config::source::Source;
use crate::config::{Vm, confidential};

/// The form of the guest's kernel that firmware starts.
const VMLINUZ: &str = "vmlinuz";

impl Inspection {
    /// The kind of guest where Kata's keys tell it, and its kernel: the firmware of a TEE starts no ELF.
    pub(super) fn settle_tee(&mut self, source: &Source) {
        let path = format!("{QEMU}.confidential_guest");
        if let Some(setting) = source
            .get(&path)
            .filter(|_| self.config.vm.confidential.wanted)
        {
            let port = format!("{QEMU}.tdx_quote_generation_service_socket_port");
            let kind =
                confidential::kind(&self.config.vm.confidential, source.get(&port).is_some());
            let fix = "set tee in [cloister] to \"snp\" or \"tdx\", or confidential_guest = false";
            match (source.get("cloister.tee"), kind) {
                (None, Ok(tee)) => self.config.tee = tee,
                (None, Err(reason)) => self.refuse(&setting.place, &path, reason, fix),
                (Some(_), _) if self.config.tee.hardware().is_some() => {}
                (Some(tee), _) => {
                    let reason = format!(
                        "true: tee = {} is no guest of trusted hardware, which a pod was promised",
                        tee.value
                    );
                    self.refuse(&setting.place, &path, reason, fix);
                }
            }
        }
        let is_own = self.config.vm.kernel == Vm::default().kernel;
        if is_own && self.config.tee.hardware().is_some() {
            self.config.vm.kernel.set_file_name(VMLINUZ);
        }
    }
}
