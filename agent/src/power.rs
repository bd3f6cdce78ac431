//! The end of the VM.

use rustix::system::{RebootCommand, reboot};

/// Writes back what is dirty and ends the VM. Does not return.
///
/// Without ACPI there is nothing that could switch the machine off, and the kernel would only
/// halt; a restart ends the VM there, because the hypervisor is told not to reboot.
#[expect(
    clippy::disallowed_methods,
    reason = "PID 1 that cannot reboot has no caller to return to"
)]
pub fn off() -> ! {
    rustix::fs::sync();
    let has_acpi = std::path::Path::new("/sys/firmware/acpi").exists();
    let command = if has_acpi {
        RebootCommand::PowerOff
    } else {
        RebootCommand::Restart
    };
    // Only a process that may not reboot gets here with an error: then the exit of PID 1 panics
    // the kernel, which ends the VM as well.
    let error = reboot(command).err();
    eprintln!("cloister-agent: reboot: {error:?}");
    std::process::exit(1)
}
