//! Why a program did not run, as an exit code that scripts know: docker's and a shell's.

use thiserror::Error;

/// Our own failure.
pub(crate) const OWN: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NO_PROGRAM: u8 = 127;

/// A program that did not run.
#[derive(Debug, Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    text: String,
}

impl Failure {
    /// From the text of the error. The guest's runtime has no code for a program that is not there, so its
    /// words count.
    pub(crate) fn of(text: String) -> Self {
        let says = |part: &str| text.contains(part);
        let is_program = says("executable") || says("exec");
        let code = if is_program && (says("not found") || says("No such file")) {
            NO_PROGRAM
        } else if is_program
            && (says("ermission")
                || says("EACCES")
                || says("Exec format error")
                || says("not executable"))
        {
            CANNOT_RUN
        } else {
            OWN
        };
        Self { code, text }
    }
}

/// The exit code for what kept a program from running.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .downcast_ref::<Failure>()
        .map_or(OWN, |failure| failure.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_scripts_know() {
        for (text, code) in [
            (
                "create: executable '/bin/x' not found in $PATH [internal]",
                NO_PROGRAM,
            ),
            (
                "exec: executable '/x' at path '/x' does not have correct permissions [internal]",
                CANNOT_RUN,
            ),
            ("pull: a.example/b:1 not found [image-not-found]", OWN),
            ("vmm: QEMU ended", OWN),
        ] {
            assert_eq!(
                exit_code(&Failure::of(text.to_owned()).into()),
                code,
                "{text}"
            );
        }
        assert_eq!(exit_code(&anyhow::anyhow!("x")), OWN);
    }
}
