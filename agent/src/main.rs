//! PID 1 of the guest, or one of its short-lived sub-commands; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    footprint::keep_small();
    if std::process::id() == 1 {
        agent::init::run()
    } else {
        agent::jail::run(std::env::args_os().skip(1))
    }
}
