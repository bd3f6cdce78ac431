//! What the host remembers of each run: a directory with its record, its bundle and its log.
//!
//! ```text
//!   <root>/@run/<namespace>/<name>/   run.json  bundle/  log  log.1
//!   <root>/@s/<hash>.k, <hash>.e      the keeper's sockets: a path of theirs must be short
//! ```
//!
//! The root is the shim's own (`CLOISTER_STATE_ROOT`, `/run/cloister` for root, `$XDG_RUNTIME_DIR/cloister`
//! for others); no namespace has an `@` in its name. The record says what was asked for and what came of
//! it; whether the processes live is looked up each time, because nobody writes down their own crash.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use shim::state_dir::{self, Process, StateDir};

const RUNS: &str = "@run";
const SOCKETS: &str = "@s";
const RECORD: &str = "run.json";
/// The version of the record; another one is refused.
const VERSION: u32 = 1;
/// The largest record, in bytes: arguments have limits of their own.
const MAX_RECORD: u64 = 4 << 20;
/// The most runs that a list has.
const MAX_RUNS: usize = 10_000;
/// Longest name of a run: guests have it as their host name.
const MAX_NAME: usize = 63;
/// The longest path of a socket (unix(7)), without its NUL.
const MAX_SOCKET: usize = 107;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ended {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
    /// The exit code, or 128 and the signal.
    pub(crate) code: u32,
}

/// What is known of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// The image, as the guest is told it.
    pub(crate) image: String,
    /// The program and its arguments; empty for the image's own.
    pub(crate) args: Vec<String>,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created: OffsetDateTime,
    /// When its process was let go.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) started: Option<OffsetDateTime>,
    /// How it ended.
    pub(crate) ended: Option<Ended>,
    /// Whether it goes with its end.
    pub(crate) remove: bool,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    /// Whether its input is passed on.
    pub(crate) interactive: bool,
    /// The shim's program, and the configuration that it was given.
    pub(crate) shim: PathBuf,
    pub(crate) config: Option<PathBuf>,
    /// Where the shim answers, once it does.
    pub(crate) address: Option<String>,
    /// Who keeps it.
    pub(crate) keeper: Option<Process>,
}

impl Record {
    /// A run that was just asked for.
    pub(crate) fn new(image: &str, args: &[String], shim: &Path) -> Self {
        Self {
            version: VERSION,
            image: image.to_owned(),
            args: args.to_vec(),
            created: OffsetDateTime::now_utc(),
            started: None,
            ended: None,
            remove: false,
            terminal: false,
            interactive: false,
            shim: shim.to_owned(),
            config: None,
            address: None,
            keeper: None,
        }
    }
}

/// The directory of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    root: PathBuf,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Where a run is, by what lives of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// The VM boots, or the image is pulled.
    Creating,
    /// Its process runs, and its keeper takes its output.
    Running,
    /// Its VM runs, and nobody keeps it: the keeper was killed.
    Unkept,
    /// It has ended, and the record has its exit code.
    Exited,
    /// Its VM is gone, and nobody was left to see how it ended.
    Lost,
}

impl Phase {
    /// From the record, and whether keeper and shim live.
    fn of(record: &Record, keeper_lives: bool, shim_lives: bool) -> Self {
        match (&record.ended, keeper_lives, shim_lives) {
            (Some(_), _, _) => Self::Exited,
            (None, true, _) if record.started.is_some() => Self::Running,
            (None, true, _) => Self::Creating,
            (None, false, true) => Self::Unkept,
            (None, false, false) => Self::Lost,
        }
    }

    /// Whether there is something to end.
    pub(crate) fn is_alive(self) -> bool {
        match self {
            Self::Creating | Self::Running | Self::Unkept => true,
            Self::Exited | Self::Lost => false,
        }
    }
}

impl Run {
    /// The run of this name, which may not be there.
    pub(crate) fn of(namespace: &str, name: &str) -> Result<Self> {
        check_name(name)?;
        if !state_dir::is_plain_name(namespace) {
            bail!("{namespace:?} is not a namespace: use A-Z a-z 0-9 . _ -, at most 128 of them");
        }
        Ok(Self {
            root: state_dir::root(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Makes a new one; `name` or one that is made up.
    pub(crate) fn create(namespace: &str, name: Option<&str>) -> Result<Self> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => made_up()?,
        };
        let run = Self::of(namespace, &name)?;
        for socket in [run.keeper_socket(), run.events_socket()] {
            if socket.as_os_str().len() > MAX_SOCKET {
                bail!(
                    "{} is too long for a socket: name a shorter directory with {}",
                    socket.display(),
                    state_dir::ROOT_VARIABLE
                );
            }
        }
        for directory in [run.root.join(SOCKETS), run.namespace_directory()] {
            make_private(&directory, true)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        match make_private(&run.path(), false) {
            Ok(()) => Ok(run),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "the name {name} is taken: `cloister rm {name}` frees it, or use another --name"
            ),
            Err(error) => Err(error).with_context(|| format!("make {}", run.path().display())),
        }
    }

    /// The run of this name; an error where there is none.
    pub(crate) fn find(namespace: &str, name: &str) -> Result<Self> {
        let run = Self::of(namespace, name)?;
        if !run.path().join(RECORD).exists() {
            bail!(
                "no run {name} in namespace {namespace}: `cloister ps --all` lists what there is"
            );
        }
        Ok(run)
    }

    /// All runs of a namespace by their names, or of all namespaces.
    pub(crate) fn all(namespace: Option<&str>) -> Result<Vec<Self>> {
        let root = state_dir::root();
        let runs = root.join(RUNS);
        let namespaces = match namespace {
            Some(namespace) => vec![namespace.to_owned()],
            None => names_in(&runs)?,
        };
        let mut all = Vec::new();
        for namespace in namespaces {
            for name in names_in(&runs.join(&namespace))? {
                let run = Self {
                    root: root.clone(),
                    namespace: namespace.clone(),
                    name,
                };
                if run.path().join(RECORD).exists() {
                    all.push(run);
                }
            }
        }
        Ok(all)
    }

    fn namespace_directory(&self) -> PathBuf {
        self.root.join(RUNS).join(&self.namespace)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.namespace_directory().join(&self.name)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.path().join("bundle")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// Where the keeper listens for who attaches.
    pub(crate) fn keeper_socket(&self) -> PathBuf {
        self.socket("k")
    }

    /// Where the keeper listens for the shim's events.
    pub(crate) fn events_socket(&self) -> PathBuf {
        self.socket("e")
    }

    fn socket(&self, kind: &str) -> PathBuf {
        let digest = Sha256::digest(format!("{}/{}", self.namespace, self.name));
        let name = format!(
            "{}.{kind}",
            hex::encode(digest.get(..8).unwrap_or_default())
        );
        self.root.join(SOCKETS).join(name)
    }

    /// Where shims of users other than root have their sockets.
    pub(crate) fn shim_sockets(&self) -> PathBuf {
        self.root.join(SOCKETS)
    }

    /// The root of everything, which shims are told.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The shim's own directory.
    pub(crate) fn sandbox(&self) -> Result<StateDir> {
        Ok(StateDir::of(&self.namespace, &self.name)?)
    }

    pub(crate) fn read(&self) -> Result<Record> {
        let path = self.path().join(RECORD);
        let failed = || format!("read {}", path.display());
        let size = fs::metadata(&path).with_context(failed)?.len();
        if size > MAX_RECORD {
            bail!("{} has more than {MAX_RECORD} bytes", path.display());
        }
        let record: Record =
            serde_json::from_slice(&fs::read(&path).with_context(failed)?).with_context(failed)?;
        if record.version != VERSION {
            bail!(
                "{} is of version {}, and this is a program for {VERSION}: use the one that wrote it",
                path.display(),
                record.version
            );
        }
        Ok(record)
    }

    /// Writes the record so that a reader sees all of it or the one before.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record)?;
        state_dir::write_whole(&self.path().join(RECORD), &bytes)
            .with_context(|| format!("write the record of {}", self.name))
    }

    /// Where it is.
    pub(crate) fn phase(&self, record: &Record) -> Phase {
        let shim = self.sandbox().ok().and_then(|it| it.recorded("shim"));
        Phase::of(
            record,
            record.keeper.is_some_and(Process::is_alive),
            shim.is_some_and(Process::is_alive),
        )
    }

    /// The VM's process, where it lives.
    pub(crate) fn vmm(&self) -> Option<Process> {
        let process = self.sandbox().ok()?.recorded("vmm")?;
        process.is_alive().then_some(process)
    }

    /// Removes all of it. What is gone already is no error.
    pub(crate) fn remove(&self) -> Result<()> {
        for socket in [self.keeper_socket(), self.events_socket()] {
            let _ = fs::remove_file(socket);
        }
        let removed = fs::remove_dir_all(self.path());
        let removed = removed.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        removed.with_context(|| format!("remove {}", self.path().display()))?;
        // Where others are left, they stay.
        for directory in [self.namespace_directory(), self.root.join(RUNS)] {
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }
}

/// A name that a run may have.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.len() > MAX_NAME || !state_dir::is_plain_name(name) {
        bail!("{name:?} is not a name: use A-Z a-z 0-9 . _ -, at most {MAX_NAME} of them");
    }
    Ok(())
}

/// A name that nobody has.
fn made_up() -> Result<String> {
    let mut bytes = [0; 6];
    let mut random = fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut random, &mut bytes)?;
    Ok(format!("run-{}", hex::encode(bytes)))
}

/// Makes a directory that only its owner can enter; those above it are made where `deep` says so.
fn make_private(path: &Path, deep: bool) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(deep)
        .mode(0o700)
        .create(path)
}

/// The plain names in a directory, sorted; none where it is not there.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", directory.display())),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| state_dir::is_plain_name(name))
        .take(MAX_RUNS)
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new("a.example/b:1", &["sh".into()], Path::new("/s"))
    }

    #[test]
    fn what_lives_decides_and_not_what_was_written_last() {
        let mut record = record();
        assert_eq!(Phase::of(&record, true, false), Phase::Creating);
        assert_eq!(Phase::of(&record, false, false), Phase::Lost);
        record.started = Some(record.created);
        assert_eq!(Phase::of(&record, true, true), Phase::Running);
        assert_eq!(Phase::of(&record, false, true), Phase::Unkept);
        assert_eq!(Phase::of(&record, false, false), Phase::Lost);
        record.ended = Some(Ended {
            at: record.created,
            code: 3,
        });
        assert_eq!(Phase::of(&record, false, false), Phase::Exited);
        assert!(!Phase::Exited.is_alive() && !Phase::Lost.is_alive());
    }

    #[test]
    fn names_are_made_up_once_and_checked() {
        let name = made_up().unwrap();
        check_name(&name).unwrap();
        assert_ne!(name, made_up().unwrap());
        for bad in ["", "..", "a/b", "@a", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let text = serde_json::to_string(&record()).unwrap();
        assert_eq!(
            serde_json::from_str::<Record>(&text).unwrap(),
            record_of(&text)
        );
        let later = text.replacen("{", "{\"later\":1,", 1);
        assert!(serde_json::from_str::<Record>(&later).is_err());
    }

    fn record_of(text: &str) -> Record {
        serde_json::from_str(text).unwrap()
    }
}
