//! The files of a log that outlives its process, and the lock between those who use it.
//!
//! ```text
//! <directory>/eventlog        the entries, as guest-components have them
//! <directory>/cloister-ahead  the event that is on its way: length of the log ‖ register ‖ its value ‖ entry
//! <directory>/cloister-lock   flock'ed for each use
//! ```
//!
//! The names of the last two are our own: guest-components' `.wal_event_entry` has another layout, and is left to them.
//! The directory's group reads, and does not lock: whoever can open a file can hold its lock for as long as they like.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use evidence::eventlog::{EventLog, extended, header};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{EventLogError, LOG_BYTES};
use crate::attester::{REGISTER_BYTES, Registers};

pub(super) const LOG: &str = "eventlog";
pub(super) const AHEAD: &str = "cloister-ahead";
pub(super) const LOCK: &str = "cloister-lock";
/// The lock is its owner's alone.
const LOCK_MODE: u32 = 0o600;
/// Who else uses the log may wait for a quote.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of the log's length, and of a register's index, before an entry that is written ahead.
const LENGTH_BYTES: usize = 8;
const INDEX_BYTES: usize = 4;
/// Bytes of all that stands before it.
const HEAD_BYTES: usize = LENGTH_BYTES + INDEX_BYTES + REGISTER_BYTES;

/// The directory of a log.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// Whether anything in it is changed.
    pub(super) writes: bool,
}

/// The use of a log that is there.
#[derive(Debug)]
pub(super) enum Lock {
    /// Nobody else uses it meanwhile.
    Held(#[expect(dead_code, reason = "its end is the lock's")] File),
    /// Of who reads, and may not lock, or reads what nobody has locked yet: it may change.
    Open,
}

/// An event on its way.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Bytes of the log before it.
    pub(super) at: usize,
    /// Its register, counted from 1 as logs do.
    pub(super) index: u32,
    /// The register's value before it.
    pub(super) before: [u8; REGISTER_BYTES],
    /// Its entry.
    pub(super) bytes: Vec<u8>,
}

impl Files {
    /// Makes the directory where it is missing; root's group may read in it.
    pub(super) fn to_write(directory: PathBuf) -> Result<Self, EventLogError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&directory);
        made.map_err(failed(&directory))?;
        Ok(Self {
            directory,
            writes: true,
        })
    }

    pub(super) fn to_read(directory: PathBuf) -> Self {
        Self {
            directory,
            writes: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Waits for those who use the log. Nothing where there is none.
    pub(super) fn lock(&self) -> Result<Option<Lock>, EventLogError> {
        let path = self.path(LOCK);
        let failed = failed(&path);
        let file = match self.lock_file(&path) {
            Ok(file) => file,
            Err(cause) => match cause.kind() {
                io::ErrorKind::NotFound if self.writes || !self.directory.exists() => {
                    return Ok(None);
                }
                io::ErrorKind::NotFound => return Ok(Some(Lock::Open)),
                io::ErrorKind::PermissionDenied if !self.writes => return Ok(Some(Lock::Open)),
                _ => return Err(failed(cause)),
            },
        };
        let end = Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Lock::Held(file))),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    return Err(EventLogError::Locked(self.directory.clone()));
                }
                Err(cause) => return Err(failed(cause.into())),
            }
        }
    }

    pub(super) fn changed(&self) -> EventLogError {
        EventLogError::Changed(self.directory.clone())
    }

    fn lock_file(&self, path: &Path) -> io::Result<File> {
        if !self.writes {
            return File::open(path);
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        options.mode(LOCK_MODE).open(path)
    }

    /// The log's bytes as they are.
    pub(super) fn entries(&self) -> Result<Vec<u8>, EventLogError> {
        read(&self.path(LOG), LOG_BYTES)
    }

    /// What is on its way. One that was not written to its end was not followed by anything.
    pub(super) fn ahead(&self) -> Result<Option<Ahead>, EventLogError> {
        let written = read(&self.path(AHEAD), HEAD_BYTES + LOG_BYTES)?;
        Ok(Ahead::parse(&written))
    }

    pub(super) fn write_ahead(&self, ahead: &Ahead) -> Result<(), EventLogError> {
        let path = self.path(AHEAD);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&ahead.to_bytes())?;
            file.sync_all()
        });
        written.map_err(failed(&path))
    }

    pub(super) fn forget_ahead(&self) -> Result<(), EventLogError> {
        let path = self.path(AHEAD);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed(&path)(cause)),
            _ => Ok(()),
        }
    }

    pub(super) fn append(&self, bytes: &[u8]) -> Result<(), EventLogError> {
        let path = self.path(LOG);
        let file = File::options().append(true).create(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(bytes));
        written.map_err(failed(&path))
    }
}

impl Ahead {
    fn parse(written: &[u8]) -> Option<Self> {
        let (at, rest) = written.split_first_chunk::<LENGTH_BYTES>()?;
        let (index, rest) = rest.split_first_chunk::<INDEX_BYTES>()?;
        let (before, bytes) = rest.split_first_chunk::<REGISTER_BYTES>()?;
        let ahead = Self {
            at: usize::try_from(u64::from_le_bytes(*at)).ok()?,
            index: u32::from_le_bytes(*index),
            before: *before,
            bytes: bytes.to_vec(),
        };
        ahead.digest().map(|_| ahead)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let at = u64::try_from(self.at).unwrap_or(u64::MAX);
        let index = self.index.to_le_bytes();
        [&at.to_le_bytes()[..], &index, &self.before, &self.bytes].concat()
    }

    /// What extends the register; none where the entry is not one whole entry.
    fn digest(&self) -> Option<[u8; REGISTER_BYTES]> {
        let log = [&header()[..], &self.bytes].concat();
        let parsed = EventLog::parse(&log).ok()?;
        let [event] = parsed.events() else {
            return None;
        };
        let is_whole = parsed.bytes() == log.len();
        let digest = event.digests.first().filter(|_| is_whole)?;
        digest.digest.try_into().ok()
    }

    /// Whether it has extended its register, as that says.
    fn was_extended(&self, registers: Option<&dyn Registers>) -> Result<bool, EventLogError> {
        let (Some(registers), Some(digest)) = (registers, self.digest()) else {
            return Ok(registers.is_none());
        };
        let register = super::register(self.index);
        let value = registers
            .read(register)
            .map_err(|cause| EventLogError::Register { register, cause })?;
        match value {
            value if value == extended(&self.before, &digest) => Ok(true),
            value if value == self.before => Ok(false),
            _ => Err(EventLogError::Broken(format!(
                "RTMR{register} has another value than the last event leaves or finds"
            ))),
        }
    }

    /// What of it a log lacks: nothing where its register was not extended, or where all of it is there.
    pub(super) fn missing(
        &self,
        entries: &[u8],
        registers: Option<&dyn Registers>,
    ) -> Result<&[u8], EventLogError> {
        let broken = |what: &str| Err(EventLogError::Broken(what.to_owned()));
        let Some((_, there)) = entries.split_at_checked(self.at) else {
            return broken("it is shorter than when the last event began");
        };
        let Some(missing) = self.bytes.strip_prefix(there) else {
            return broken("it has another event than the one that was on its way");
        };
        match self.was_extended(registers)? {
            true => Ok(missing),
            false if there.is_empty() => Ok(&[]),
            false => broken("it has an event that its register has not"),
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> EventLogError + '_ {
    |cause| EventLogError::File {
        path: path.to_owned(),
        cause,
    }
}

/// A file of the log; an empty one where there is none.
fn read(path: &Path, most: usize) -> Result<Vec<u8>, EventLogError> {
    let failed = failed(path);
    let file = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(&failed)?,
    };
    let mut bytes = Vec::new();
    let cap = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    file.take(cap).read_to_end(&mut bytes).map_err(&failed)?;
    match bytes.len() <= most {
        true => Ok(bytes),
        false => Err(EventLogError::Full),
    }
}
