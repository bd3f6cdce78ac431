//! Standard input and output of a process: what containerd names is opened here, and copied from and to
//! the guest in [`copies`].

mod copies;
mod logger;

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use agent_api::{ErrorCode, GuestError};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

pub use copies::{Connections, Copies};
use logger::Logger;

/// What containerd asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// The FIFO to read, or empty.
    pub stdin: String,
    /// The FIFO to write, `file://` and a path, `binary://` and a logger's that takes both outputs, or empty.
    pub stdout: String,
    /// As `stdout`; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal, whose output is all on `stdout`.
    pub terminal: bool,
}

/// Whose stdio it is, for a logger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// containerd's namespace.
    pub namespace: String,
    /// The container, or its further process.
    pub id: String,
}

/// The open ends of a process's stdio.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<pipe::Receiver>,
    stdout: Sink,
    stderr: Sink,
    terminal: bool,
    logger: Option<Logger>,
}

/// The shim's own writing end of a process's input: the reader sees no end before this is dropped,
/// which is when containerd asks for it, however many clients attach and detach.
#[derive(Debug)]
pub struct StdinHolder {
    _writer: Option<pipe::Sender>,
}

#[derive(Debug)]
enum Sink {
    Fifo(pipe::Sender),
    File(File),
    /// Nobody wants it, and yet it must be read: a full pipe would stop the process.
    Nowhere,
}

impl Sink {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Fifo(fifo) => fifo.write(bytes).await,
            Self::File(file) => {
                let count = file.write(bytes).await?;
                // What is told to be written must be there for who reads the file next.
                file.flush().await?;
                Ok(count)
            }
            Self::Nowhere => Ok(bytes.len()),
        }
    }
}

/// Checks what containerd asks for, before anything is done for the process.
///
/// # Errors
/// Where a path is missing, or of a kind that is not supported.
pub fn check(stdio: &Stdio) -> Result<(), GuestError> {
    // Clients name one beside a terminal that is not there.
    let stderr = Some(&stdio.stderr).filter(|_| !stdio.terminal);
    for uri in [&stdio.stdin, &stdio.stdout].into_iter().chain(stderr) {
        let path = match place(uri)? {
            Place::Nowhere | Place::NewFile(_) => continue,
            Place::Existing(path) => path,
            Place::Logger(command) => {
                std::fs::metadata(&command.program)
                    .map_err(|error| refuse(&command.program, &error))?;
                continue;
            }
        };
        std::fs::metadata(path).map_err(|error| refuse(path, &error))?;
    }
    Ok(())
}

/// Opens what containerd asks for. The input is opened when the process starts and not before: a
/// client sees the end of its own input only once there is a reader, and then expects to be able to
/// tell a task of it (`CloseIO`).
///
/// # Errors
/// Where a path cannot be opened, or is of a kind that is not supported.
pub async fn open(stdio: &Stdio, owner: &Owner) -> Result<(Streams, StdinHolder), GuestError> {
    let (stdin, holder) = match stdio.stdin.as_str() {
        "" => (None, None),
        path => {
            let failed = |error| refuse(path, &error);
            let reader = pipe::OpenOptions::new()
                .open_receiver(path)
                .map_err(failed)?;
            // Opening for both never waits and never fails for want of a reader.
            let holder = pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(path)
                .map_err(failed)?;
            (Some(reader), Some(holder))
        }
    };
    let (stdout, stderr, logger) = open_outputs(stdio, owner).await?;
    let streams = Streams {
        stdin,
        stdout,
        stderr,
        terminal: stdio.terminal,
        logger,
    };
    Ok((streams, StdinHolder { _writer: holder }))
}

async fn open_outputs(
    stdio: &Stdio,
    owner: &Owner,
) -> Result<(Sink, Sink, Option<Logger>), GuestError> {
    if let Place::Logger(command) = place(&stdio.stdout)? {
        let started = command.start(owner).await?;
        let (stdout, stderr) = (Sink::Fifo(started.stdout), Sink::Fifo(started.stderr));
        return Ok((stdout, stderr, Some(started.logger)));
    }
    let stdout = open_sink(&stdio.stdout).await?;
    let stderr = if stdio.terminal {
        Sink::Nowhere
    } else {
        open_sink(&stdio.stderr).await?
    };
    Ok((stdout, stderr, None))
}

async fn open_sink(uri: &str) -> Result<Sink, GuestError> {
    let (path, is_new) = match place(uri)? {
        Place::Nowhere => return Ok(Sink::Nowhere),
        Place::Existing(path) => (path, false),
        Place::NewFile(path) => (path, true),
        Place::Logger(_) => {
            let text = "a logger takes both outputs: name it for standard output";
            return Err(GuestError::new(ErrorCode::InvalidArgument, "stdio", text));
        }
    };
    let failed = |error| refuse(path, &error);
    let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if is_fifo {
        // Open for both, so that a reader that goes away and comes back loses nothing.
        let fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .map_err(failed)?;
        return Ok(Sink::Fifo(fifo));
    }
    if let Some(parent) = Path::new(path).parent().filter(|_| is_new) {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    let file = File::options().append(true).create(is_new).open(path).await;
    file.map(Sink::File).map_err(failed)
}

/// Where a stream of containerd's leads.
enum Place<'a> {
    Nowhere,
    Existing(&'a str),
    NewFile(&'a str),
    Logger(logger::Command),
}

fn place(uri: &str) -> Result<Place<'_>, GuestError> {
    match uri.split_once("://") {
        _ if uri.is_empty() => Ok(Place::Nowhere),
        None => Ok(Place::Existing(uri)),
        Some(("fifo", path)) => Ok(Place::Existing(path)),
        Some(("file", path)) => Ok(Place::NewFile(path.split('?').next().unwrap_or(path))),
        Some(_) if uri.starts_with(logger::SCHEME) => {
            logger::Command::parse(uri).map(Place::Logger)
        }
        Some((scheme, _)) => {
            let text = format!(
                "stdio of the kind {scheme}:// is not supported: use a FIFO, file:// or binary://"
            );
            Err(GuestError::new(ErrorCode::Unimplemented, "stdio", text))
        }
    }
}

fn refuse(path: &str, error: &std::io::Error) -> GuestError {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Internal,
    };
    GuestError::new(code, "stdio", format!("open {path}: {error}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    /// A FIFO that nobody has opened, as the path for a [`Stdio`].
    pub(crate) fn fifo(directory: &Path) -> String {
        let path = directory.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    pub(crate) fn owner() -> Owner {
        Owner {
            namespace: "ns".into(),
            id: "c".into(),
        }
    }

    #[tokio::test]
    async fn an_unknown_kind_is_refused_by_name_and_a_missing_logger_before_anything_starts() {
        for (uri, code) in [
            ("npipe:///x", ErrorCode::Unimplemented),
            ("binary:///nonexistent/logger", ErrorCode::NotFound),
        ] {
            let stdio = Stdio {
                stdout: uri.into(),
                ..Stdio::default()
            };
            assert!(open(&stdio, &owner()).await.is_err());
            let error = check(&stdio).unwrap_err();
            assert_eq!(error.code, code);
            assert!(error.message.contains(&uri[..5]) || code == ErrorCode::NotFound);
        }
    }

    #[tokio::test]
    async fn a_fifo_needs_no_reader_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio {
            stdout: fifo(dir.path()),
            ..Stdio::default()
        };
        let (streams, _) = open(&stdio, &owner()).await.unwrap();
        assert!(matches!(streams.stdout, Sink::Fifo(_)));
        let stdio = Stdio {
            stdout: "/nonexistent/x".into(),
            ..Stdio::default()
        };
        assert_eq!(
            open(&stdio, &owner()).await.unwrap_err().code,
            ErrorCode::NotFound
        );
    }

    #[tokio::test]
    async fn a_terminal_has_no_standard_error_whatever_is_named_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut stdio = Stdio {
            stdout: fifo(dir.path()),
            stderr: "/nonexistent/stderr".into(),
            terminal: true,
            ..Stdio::default()
        };
        check(&stdio).unwrap();
        let (streams, _) = open(&stdio, &owner()).await.unwrap();
        assert!(matches!(streams.stderr, Sink::Nowhere));
        stdio.terminal = false;
        assert_eq!(check(&stdio).unwrap_err().code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn input_ends_only_after_the_holder_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio {
            stdin: fifo(dir.path()),
            ..Stdio::default()
        };
        let (mut streams, holder) = open(&stdio, &owner()).await.unwrap();
        let mut writer = pipe::OpenOptions::new().open_sender(&stdio.stdin).unwrap();
        writer.write_all(b"x").await.unwrap();
        drop(writer);
        let stdin = streams.stdin.as_mut().unwrap();
        assert_eq!(stdin.read_u8().await.unwrap(), b'x');
        assert!(
            tokio::time::timeout(Duration::from_millis(50), stdin.read_u8())
                .await
                .is_err()
        );
        drop(holder);
        assert!(stdin.read_u8().await.is_err());
    }
}
