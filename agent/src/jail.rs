//! The sub-command that drives libcontainer, in a fresh process with one thread.
//!
//! ```text
//! cloister-agent container create <id> <bundle> <pid file> <report> [<console socket>]
//! cloister-agent container pause  <id> <bundle> <pid file> <report>
//! cloister-agent container exec   <id> <process.json> <pid file> <report> [<console socket>]
//! cloister-agent container start  <id> <report>
//! cloister-agent container users  <id> <report>
//! ```
//!
//! stdio is the container's; `users` waits in a new user namespace until its stdin ends, and says on stdout that it
//! is there. What goes wrong, in this process or in the ones it forks, is written
//! to the report; the agent reads it when the exit code is not zero.
#![expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]

pub(crate) mod filter;
pub mod identity;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::umask;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use self::filter::Filtered;
use self::identity::{Left, Ready};
use crate::causes::chain;
use crate::pause::Pause;
use crate::runtime::CONTAINERS;

/// What the process is called with.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Create {
        id: String,
        bundle: PathBuf,
        pid_file: PathBuf,
        console: Option<PathBuf>,
    },
    Pause {
        id: String,
        bundle: PathBuf,
        pid_file: PathBuf,
    },
    Exec {
        id: String,
        process: PathBuf,
        pid_file: PathBuf,
        console: Option<PathBuf>,
    },
    Start {
        id: String,
    },
    Users,
}

/// Runs one command; the exit code says whether it worked.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some((command, report)) = parse(args.collect()) else {
        eprintln!("cloister-agent runs as PID 1 of a guest; it has no commands for people");
        return ExitCode::from(2);
    };
    let mut report = match OpenOptions::new().create(true).append(true).open(&report) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("cloister-agent: {}: {error}", report.display());
            return ExitCode::from(2);
        }
    };
    if let Ok(copy) = report.try_clone() {
        collect_errors(copy);
    }
    match command.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Last in the report, and so first to be shown.
            let _ = writeln!(report, "{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn execute(self) -> Result<(), LibcontainerError> {
        umask(rustix::fs::Mode::from_raw_mode(0o022));
        match self {
            Self::Create {
                id,
                bundle,
                pid_file,
                console,
            } => builder(id, pid_file, console)?
                .with_executor(filtered(&bundle)?.with(ready(&bundle.join("config.json"))?, true))
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()
                .map(drop),
            Self::Pause {
                id,
                bundle,
                pid_file,
            } => builder(id, pid_file, None)?
                .with_executor(Pause)
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()
                .map(drop),
            Self::Exec {
                id,
                process,
                pid_file,
                console,
            } => builder(id.clone(), pid_file, console)?
                .with_executor(filtered(container(&id)?.bundle())?.with(ready(&process)?, false))
                .as_tenant()
                .with_process(Some(process))
                .with_detach(true)
                .build()
                .map(drop),
            Self::Start { id } => start(&mut container(&id)?),
            Self::Users => wait_in_users().map_err(LibcontainerError::OtherIO),
        }
    }
}

fn container(id: &str) -> Result<Container, LibcontainerError> {
    Container::load(PathBuf::from(CONTAINERS).join(id))
}

/// Starts a container; where it has users of its own, until further processes find it as it is then.
fn start(container: &mut Container) -> Result<(), LibcontainerError> {
    let has_users = ready(&container.bundle().join("config.json"))?.is_some();
    let first = container.pid().filter(|_| has_users);
    let left = first.map(|pid| Left::of(pid.as_raw()));
    container.start()?;
    if let Some(left) = left {
        left.wait();
    }
    Ok(())
}

fn filtered(bundle: &Path) -> Result<Filtered, LibcontainerError> {
    Filtered::of_bundle(bundle).map_err(|error| LibcontainerError::Other(chain(&error)))
}

fn ready(file: &Path) -> Result<Option<Ready>, LibcontainerError> {
    Ready::beside(file).map_err(LibcontainerError::OtherIO)
}

/// Holds a new user namespace until somebody has taken it.
fn wait_in_users() -> io::Result<()> {
    // SAFETY: nothing is shared with another thread: there is none.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    io::stdout().write_all(&[1])?;
    io::stdout().flush()?;
    io::stdin().read(&mut [0]).map(drop)
}

fn builder(
    id: String,
    pid_file: PathBuf,
    console: Option<PathBuf>,
) -> Result<ContainerBuilder, LibcontainerError> {
    ContainerBuilder::new(id, SyscallType::default())
        .with_root_path(CONTAINERS)?
        .with_pid_file(Some(pid_file))?
        .with_console_socket(console)
        .validate_id()
}

fn parse(args: Vec<OsString>) -> Option<(Command, PathBuf)> {
    let mut args = args.into_iter();
    if args.next()? != "container" {
        return None;
    }
    let verb = args.next()?;
    let id = args.next()?.into_string().ok()?;
    let mut rest = args.map(PathBuf::from);
    let parsed = match verb.to_str()? {
        "create" => {
            let (bundle, pid_file, report) = (rest.next()?, rest.next()?, rest.next()?);
            (
                Command::Create {
                    id,
                    bundle,
                    pid_file,
                    console: rest.next(),
                },
                report,
            )
        }
        "pause" => {
            let (bundle, pid_file, report) = (rest.next()?, rest.next()?, rest.next()?);
            (
                Command::Pause {
                    id,
                    bundle,
                    pid_file,
                },
                report,
            )
        }
        "exec" => {
            let (process, pid_file, report) = (rest.next()?, rest.next()?, rest.next()?);
            (
                Command::Exec {
                    id,
                    process,
                    pid_file,
                    console: rest.next(),
                },
                report,
            )
        }
        "start" => {
            let report = rest.next()?;
            (Command::Start { id }, report)
        }
        "users" => (Command::Users, rest.next()?),
        _ => return None,
    };
    rest.next().is_none().then_some(parsed)
}

/// libcontainer tells some causes only to its log; forked children inherit this one.
fn collect_errors(report: File) {
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(Mutex::new(report))
        .with_ansi(false)
        .with_target(false)
        .with_level(false)
        .without_time()
        .finish();
    let _ = tracing::subscriber::set_global_default(log);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(text: &str) -> Option<(Command, PathBuf)> {
        parse(text.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn commands_are_read_whole_or_not_at_all() {
        let (command, report) = parse_words("container create c /b /p /r /s").unwrap();
        assert_eq!(report, PathBuf::from("/r"));
        let expected = Command::Create {
            id: "c".into(),
            bundle: "/b".into(),
            pid_file: "/p".into(),
            console: Some("/s".into()),
        };
        assert_eq!(command, expected);
        assert!(parse_words("container exec c /x /p /r").is_some());
        assert!(parse_words("container pause c /b /p /r").is_some());
        assert!(parse_words("container start c /r").is_some());
        assert!(parse_words("container users - /r").is_some());
        for bad in [
            "",
            "init",
            "container",
            "container start c",
            "container start c /r more",
            "container create c /b /p",
            "container dance c /b /p /r",
        ] {
            assert!(parse_words(bad).is_none(), "{bad}");
        }
    }
}
