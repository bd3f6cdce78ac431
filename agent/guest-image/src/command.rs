//! Running the host's tools: `apt-cache`, `dpkg-deb`, `make` and the like. The one place of this
//! crate that starts a process.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The tool could not be started.
    #[error("cannot run `{tool}`; install the package that has it")]
    Start {
        /// Its name.
        tool: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The tool's pipes broke.
    #[error("cannot talk to `{tool}`")]
    Pipe {
        /// Its name.
        tool: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The tool ended with an error.
    #[error("`{tool}` failed ({status}): {stderr}")]
    Failed {
        /// Its name and arguments.
        tool: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
}

/// How much of a tool's complaint is passed on, in bytes.
const STDERR_TAIL: usize = 2000;

/// Runs a tool with nothing to read, and yields what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, CommandError> {
    finish(command, Stdio::null(), None)
}

/// Runs a tool as a filter: `input` in, its standard output back.
pub(crate) fn filter(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, CommandError> {
    finish(command, Stdio::piped(), Some(input))
}

fn finish(
    command: &mut Command,
    stdin: Stdio,
    input: Option<&[u8]>,
) -> Result<Vec<u8>, CommandError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .env("LC_ALL", "C.UTF-8")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CommandError::Start {
            tool: tool.clone(),
            source,
        })?;
    let stdin = child.stdin.take();
    // The input is written from a second thread: a filter that fills its output pipe would
    // otherwise wait for us while we wait for it.
    let finished = thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A filter that stops reading early tells why on its standard error.
            scope.spawn(move || drop(stdin.write_all(input)));
        }
        child.wait_with_output()
    })
    .map_err(|source| CommandError::Pipe {
        tool: tool.clone(),
        source,
    })?;
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    let stderr = String::from_utf8_lossy(&finished.stderr);
    let from = stderr.ceil_char_boundary(stderr.len().saturating_sub(STDERR_TAIL));
    Err(CommandError::Failed {
        tool: format!("{command:?}"),
        status: finished.status,
        stderr: stderr[from..].trim().to_owned(),
    })
}
