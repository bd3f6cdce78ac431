//! What is told of a VM that did not boot, or that has ended: its cause, and the last words of QEMU or of the console.

use agent_api::{ErrorCode, GuestError};
use hypervisor::{BootError, Cause, Exit, Vm};

use super::tail::{plain, tail, with_tail};

pub(super) fn boot_error(error: &BootError) -> GuestError {
    let code = match error {
        BootError::Spec(_) => ErrorCode::InvalidArgument,
        BootError::Kvm(_) => ErrorCode::FailedPrecondition,
        BootError::Exited(_) => ErrorCode::VmmExited,
        _ => ErrorCode::Internal,
    };
    let stderr = match error {
        BootError::Exited(exit) => tail(&exit.stderr_tail),
        _ => String::new(),
    };
    GuestError::new(
        code,
        "vmm",
        with_tail(plain(&error.to_string()), "QEMU's last words", &stderr),
    )
}

pub(super) fn exit_error(exit: &Exit, vm: &Vm) -> GuestError {
    let (code, phase) = match &exit.cause {
        Cause::Panic(_) => (ErrorCode::GuestPanicked, "kernel"),
        Cause::Vmm => (ErrorCode::VmmExited, "vmm"),
        Cause::PoweredOff | Cause::Reset | Cause::Stopped => (ErrorCode::VmmExited, "guest"),
    };
    // It has the line of a panic, which is the guest's.
    let text = plain(&exit.to_string());
    let text = match &exit.cause {
        Cause::Vmm => with_tail(text, "QEMU's last words", &tail(&exit.stderr_tail)),
        _ => text,
    };
    with_console(GuestError::new(code, phase, text), vm)
}

pub(super) fn with_console(error: GuestError, vm: &Vm) -> GuestError {
    let text = with_tail(
        error.message,
        "the console's last lines",
        &tail(&vm.console_tail()),
    );
    GuestError::new(error.code, &error.phase, text)
}
