//! A key provider that is a program, started for each question, as `cmd` in the file of providers names it.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use zeroize::Zeroizing;

use super::DOCUMENT_BYTES_MAX;
use crate::secret::SecretBuffer;

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
    /// A cap.
    #[error("key provider {path:?} answered with more than {DOCUMENT_BYTES_MAX} bytes")]
    Answer {
        /// The program.
        path: PathBuf,
    },
}

/// A provider that is a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Command {
    /// Asks one question. The program is killed when the caller gives up.
    pub(super) async fn ask(&self, question: &[u8]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let mut child = tokio::process::Command::new(&self.path)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CommandError::Start {
                path: self.path.clone(),
                source,
            })?;
        let (answer, stderr) = talk(&mut child, question)
            .await
            .map_err(|source| self.broken(source))?;
        let status = child.wait().await.map_err(|source| self.broken(source))?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(CommandError::Failed {
                path: self.path.clone(),
                status,
                stderr,
            });
        }
        answer.ok_or_else(|| CommandError::Answer {
            path: self.path.clone(),
        })
    }

    fn broken(&self, source: std::io::Error) -> CommandError {
        CommandError::Talk {
            path: self.path.clone(),
            source,
        }
    }
}

/// What the program wrote to stdout, unless that was too much, and the start of its stderr.
type Answer = (Option<Zeroizing<Vec<u8>>>, Zeroizing<Vec<u8>>);

/// Writes, reads and drains stderr at once, so that no full pipe stops the program.
async fn talk(child: &mut Child, question: &[u8]) -> std::io::Result<Answer> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async move {
        match stdin {
            // A provider may answer before it has read all; its answer tells.
            Some(mut pipe) => pipe.write_all(question).await.or_else(broken_pipe_is_fine),
            None => Ok(()),
        }
    };
    let read = capped(stdout, DOCUMENT_BYTES_MAX);
    let errors = capped(stderr, STDERR_BYTES_MAX);
    let ((), (answer, whole), (errors, _)) = tokio::try_join!(write, read, errors)?;
    Ok((whole.then_some(answer), errors))
}

fn broken_pipe_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(error)
    }
}

/// Keeps at most `cap` bytes and reads the rest away; tells whether there was no rest.
async fn capped(
    pipe: Option<impl AsyncRead + Unpin>,
    cap: usize,
) -> std::io::Result<(Zeroizing<Vec<u8>>, bool)> {
    let mut kept = SecretBuffer::new();
    let mut whole = true;
    let mut piece = Zeroizing::new([0; 4096]);
    if let Some(mut pipe) = pipe {
        loop {
            let count = pipe.read(piece.as_mut_slice()).await?;
            if count == 0 {
                break;
            }
            let room = count.min(cap - kept.len());
            kept.extend(&piece[..room]);
            whole &= room == count;
        }
    }
    Ok((kept.into_inner(), whole))
}

#[cfg(test)]
mod tests {
    use super::super::{DecryptConfig, EncryptConfig, Endpoint, ProviderError};
    use super::*;

    fn shell(script: &str) -> Endpoint {
        Endpoint::Command(Command {
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
        })
    }

    async fn refusal(script: &str, options: &[u8]) -> ProviderError {
        let refused = shell(script).wrap(options, EncryptConfig::default()).await;
        refused.unwrap_err()
    }

    #[tokio::test]
    async fn a_providers_answer_may_be_an_array_or_base64() {
        for bytes in ["[104,105]", "\"aGk=\""] {
            let wrap = shell(&format!(
                "cat >/dev/null; echo '{{\"keywrapresults\":{{\"annotation\":{bytes}}}}}'"
            ));
            let answer = wrap.wrap(b"options", EncryptConfig::default()).await;
            assert_eq!(answer.unwrap(), b"hi");
        }
        let unwrap = shell("cat >/dev/null; echo '{\"keyunwrapresults\":{\"optsdata\":\"aGk=\"}}'");
        let answer = unwrap.unwrap(b"{}", DecryptConfig::default()).await;
        assert_eq!(answer.unwrap().expose(), b"hi");
    }

    #[tokio::test]
    async fn a_failed_provider_is_told_with_its_words() {
        let error = refusal("echo no such key >&2; exit 3", b"").await;
        assert!(error.to_string().contains("no such key"), "{error}");
        let error = refusal("echo hello", b"").await;
        assert!(matches!(error, ProviderError::Answer { .. }), "{error}");
        let error = refusal("head -c 2000000 /dev/zero", b"").await;
        assert!(
            matches!(error, ProviderError::Command(CommandError::Answer { .. })),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_provider_which_never_reads_does_not_hang_us() {
        let options = vec![7; 512 * 1024];
        let error = refusal("exec 0<&-; echo done >&2; exit 1", &options).await;
        assert!(
            matches!(error, ProviderError::Command(CommandError::Failed { .. })),
            "{error}"
        );
    }
}
