//! The containerd shim of Cloister: one process and one virtual machine for each pod.

use std::process::ExitCode;

fn main() -> ExitCode {
    footprint::keep_small();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match shim::bootstrap::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", shim::bootstrap::RUNTIME);
            ExitCode::FAILURE
        }
    }
}
