//! The client: runs a key provider's program, as `OCICRYPT_KEYPROVIDER_CONFIG` names it under `cmd`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use zeroize::Zeroizing;

use super::DOCUMENT_BYTES_MAX;
use super::wire::{
    DecryptConfig, EncryptConfig, Input, KeyUnwrapParams, KeyWrapParams, Operation, Output,
    WireBytes,
};

/// How much of a failed provider's stderr is told.
const STDERR_BYTES_MAX: usize = 2048;

/// Why a provider's program gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be started.
    #[error("key provider {path:?} cannot be started")]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its pipes broke.
    #[error("key provider {path:?} cannot be talked to")]
    Talk {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It failed by its exit status.
    #[error("key provider {path:?} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        path: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The start of what it wrote to stderr.
        stderr: String,
    },
    /// Its answer is not of the protocol; it is not quoted, because it may hold a key.
    #[error(
        "key provider {path:?} did not answer with {expected} in at most {DOCUMENT_BYTES_MAX} bytes of JSON"
    )]
    Answer {
        /// The program.
        path: PathBuf,
        /// What was asked for.
        expected: &'static str,
    },
}

/// A provider that is a program. Blocking: call it from a blocking task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Command {
    /// Has `options` wrapped; the answer is what goes into the annotation.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn wrap(&self, options: &[u8], config: EncryptConfig) -> Result<Vec<u8>, CommandError> {
        let output = self.ask(&Input {
            op: Operation::KeyWrap,
            wrap: KeyWrapParams {
                ec: Some(config),
                options: Some(WireBytes::new(options)),
            },
            unwrap: KeyUnwrapParams::default(),
        })?;
        let annotation = output.wrap.and_then(|wrap| wrap.annotation);
        annotation
            .map(|bytes| bytes.expose().to_vec())
            .ok_or_else(|| self.bad_answer("keywrapresults"))
    }

    /// Has an annotation unwrapped; the answer is the private options.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn unwrap(
        &self,
        annotation: &[u8],
        config: DecryptConfig,
    ) -> Result<WireBytes, CommandError> {
        let output = self.ask(&Input {
            op: Operation::KeyUnwrap,
            wrap: KeyWrapParams::default(),
            unwrap: KeyUnwrapParams {
                dc: Some(config),
                annotation: Some(WireBytes::new(annotation)),
            },
        })?;
        output
            .unwrap
            .and_then(|unwrap| unwrap.options)
            .ok_or_else(|| self.bad_answer("keyunwrapresults"))
    }

    fn ask(&self, input: &Input) -> Result<Output, CommandError> {
        let question = Zeroizing::new(serde_json::to_vec(input).unwrap_or_default());
        let mut child = std::process::Command::new(&self.path)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| CommandError::Start {
                path: self.path.clone(),
                source,
            })?;
        let (answer, stderr) = talk(&mut child, &question).map_err(|source| self.broken(source))?;
        let status = child.wait().map_err(|source| self.broken(source))?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(CommandError::Failed {
                path: self.path.clone(),
                status,
                stderr,
            });
        }
        if answer.len() > DOCUMENT_BYTES_MAX {
            return Err(self.bad_answer("a document"));
        }
        serde_json::from_slice(&answer).map_err(|_| self.bad_answer("a document"))
    }

    fn broken(&self, source: std::io::Error) -> CommandError {
        CommandError::Talk {
            path: self.path.clone(),
            source,
        }
    }

    fn bad_answer(&self, expected: &'static str) -> CommandError {
        CommandError::Answer {
            path: self.path.clone(),
            expected,
        }
    }
}

type Answer = (Zeroizing<Vec<u8>>, Vec<u8>);

/// Writes, reads and drains stderr at once, so that no full pipe stops the program.
fn talk(child: &mut Child, question: &[u8]) -> std::io::Result<Answer> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let errors = scope.spawn(move || {
            stderr
                .map(|pipe| capped(pipe, STDERR_BYTES_MAX))
                .transpose()
        });
        let writer = scope.spawn(move || match stdin {
            // A provider may answer before it has read all; its answer tells.
            Some(mut pipe) => pipe.write_all(question).or_else(broken_pipe_is_fine),
            None => Ok(()),
        });
        let answer = stdout
            .map(|pipe| capped(pipe, DOCUMENT_BYTES_MAX + 1))
            .transpose()?
            .unwrap_or_default();
        let panicked = |_| std::io::Error::other("a pipe's thread panicked");
        writer.join().map_err(panicked)??;
        let errors = errors.join().map_err(panicked)??.unwrap_or_default();
        Ok((Zeroizing::new(answer), errors))
    })
}

fn broken_pipe_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(error)
    }
}

/// Keeps at most `cap` bytes and reads the rest away.
fn capped(mut pipe: impl Read, cap: usize) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    pipe.by_ref().take(cap as u64).read_to_end(&mut kept)?;
    std::io::copy(&mut pipe, &mut std::io::sink())?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        Command {
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
        }
    }

    #[test]
    fn a_providers_answer_may_be_an_array_or_base64() {
        for bytes in ["[104,105]", "\"aGk=\""] {
            let wrap = shell(&format!(
                "cat >/dev/null; echo '{{\"keywrapresults\":{{\"annotation\":{bytes}}}}}'"
            ));
            assert_eq!(
                wrap.wrap(b"options", EncryptConfig::default()).unwrap(),
                b"hi"
            );
        }
        let unwrap = shell("cat >/dev/null; echo '{\"keyunwrapresults\":{\"optsdata\":\"aGk=\"}}'");
        assert_eq!(
            unwrap
                .unwrap(b"{}", DecryptConfig::default())
                .unwrap()
                .expose(),
            b"hi"
        );
    }

    #[test]
    fn a_failed_provider_is_told_with_its_words() {
        let error = shell("echo no such key >&2; exit 3")
            .wrap(b"", EncryptConfig::default())
            .unwrap_err();
        assert!(error.to_string().contains("no such key"), "{error}");
        let error = shell("echo hello")
            .wrap(b"", EncryptConfig::default())
            .unwrap_err();
        assert!(matches!(error, CommandError::Answer { .. }), "{error}");
    }

    #[test]
    fn a_provider_which_never_reads_does_not_hang_us() {
        let options = vec![7; 512 * 1024];
        let error = shell("exec 0<&-; echo done >&2; exit 1")
            .wrap(&options, EncryptConfig::default())
            .unwrap_err();
        assert!(matches!(error, CommandError::Failed { .. }), "{error}");
    }
}
