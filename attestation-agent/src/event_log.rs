//! What happens while a guest runs, event by event, in an order that nobody can change afterwards.
//!
//! ```text
//! extend ─► checked ─► written ahead ─► register extended ─► in the log ─► evidence
//! ```
//!
//! Where the TEE has registers, an event extends one, and the log must replay to what the quote says of
//! them. Where it has none, the log itself goes with the evidence, and the report's data is a digest over
//! it: then it is the word of the measured guest at the time of the report. Entries are those of
//! guest-components (AAEL), each in the register that was really extended.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evidence::eventlog::{AaelError, AaelEvent, entry, extended, register_of_pcr};

use crate::attester::{REGISTER_BYTES, Registers};

/// Entries of one log; firmware's come on top.
const EVENTS: usize = 128;
/// Bytes of one log's entries. All of them become claims of a token, which has to fit into a header.
const LOG_BYTES: usize = 24 * 1024;
/// Where an event goes for which no register is asked: RTMR3, guest-components' default.
const DEFAULT_PCR: u64 = 17;
/// The log's name in its directory, and the entry that is on its way into it.
const FILE: &str = "eventlog";
const AHEAD: &str = ".wal_event_entry";
/// Bytes of a register's index before the entry that is written ahead.
const INDEX_BYTES: usize = 4;

/// The log of one guest. It is shared by reference.
pub struct EventLog {
    registers: Option<Arc<dyn Registers>>,
    directory: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<u8>,
    count: usize,
    broken: Option<String>,
}

/// An event that was not measured.
#[derive(Debug, thiserror::Error)]
pub enum EventLogError {
    /// Its words cannot be told apart, or are too long.
    #[error(transparent)]
    Event(#[from] AaelError),
    /// There is no room for more.
    #[error("the event log is full: it takes {EVENTS} events of {LOG_BYTES} bytes in all")]
    Full,
    /// The register was not extended.
    #[error("extend RTMR{register}: {cause}")]
    Register {
        /// Which.
        register: usize,
        /// Why not.
        cause: io::Error,
    },
    /// The log and the registers say different things for ever: there is no evidence any more.
    #[error("the event log is of no use any more: {0}")]
    Broken(String),
    /// A file of the log.
    #[error("{path}: {cause}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl EventLog {
    /// An empty log in memory, of a guest with or without registers.
    #[must_use]
    pub fn new(registers: Option<Arc<dyn Registers>>) -> Self {
        Self {
            registers,
            directory: None,
            state: Mutex::default(),
        }
    }

    /// The same in a directory, where it outlives this process: what was logged is read, and what was on
    /// its way when another process ended is finished or forgotten, as the register says.
    ///
    /// # Errors
    /// A file cannot be read, or the register has neither of the values that it can have.
    pub fn open(
        registers: Option<Arc<dyn Registers>>,
        directory: impl Into<PathBuf>,
    ) -> Result<Self, EventLogError> {
        let log = Self {
            directory: Some(directory.into()),
            ..Self::new(registers)
        };
        log.recover()?;
        Ok(log)
    }

    /// Measures an event. The number of a register is a TPM's, as in guest-components' interface, and
    /// stands for the TD's register that it maps to (UEFI 2.10, section 38.4.1). It may block.
    ///
    /// # Errors
    /// The event is not in the log, and no register was extended by it.
    pub fn extend(
        &self,
        domain: &str,
        operation: &str,
        content: &str,
        register: Option<u64>,
    ) -> Result<(), EventLogError> {
        let event = AaelEvent {
            domain,
            operation,
            content,
        };
        let index = register_of_pcr(register.unwrap_or(DEFAULT_PCR));
        let (bytes, digest) = entry(index, &event.data()?);
        let mut state = self.usable()?;
        if state.count >= EVENTS || state.entries.len() + bytes.len() > LOG_BYTES {
            return Err(EventLogError::Full);
        }
        self.write_ahead(index, &bytes)?;
        if let Err(error) = self.extend_register(index, &digest, &mut state) {
            // One whose end is not known is left to be looked at.
            if !matches!(error, EventLogError::Broken(_)) {
                self.forget_ahead()?;
            }
            return Err(error);
        }
        self.append(&bytes, &mut state)?;
        self.forget_ahead()
    }

    /// Whether registers answer for the log.
    #[must_use]
    pub fn has_registers(&self) -> bool {
        self.registers.is_some()
    }

    /// Runs something with the log's entries while no event can come.
    ///
    /// # Errors
    /// [`EventLogError::Broken`].
    pub fn held<T>(&self, with: impl FnOnce(&[u8]) -> T) -> Result<T, EventLogError> {
        let state = self.usable()?;
        Ok(with(&state.entries))
    }

    fn usable(&self) -> Result<MutexGuard<'_, State>, EventLogError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.broken {
            None => Ok(state),
            Some(cause) => Err(EventLogError::Broken(cause.clone())),
        }
    }

    /// An extension that failed may have been done. Then the register says so.
    fn extend_register(
        &self,
        index: u32,
        digest: &[u8; REGISTER_BYTES],
        state: &mut State,
    ) -> Result<(), EventLogError> {
        let Some(registers) = &self.registers else {
            return Ok(());
        };
        let register = register(index);
        let failed = |cause| EventLogError::Register { register, cause };
        let before = registers.read(register).map_err(failed)?;
        let Err(cause) = registers.extend(register, digest) else {
            return Ok(());
        };
        let after = extended(&before, digest);
        match registers.read(register) {
            Ok(value) if value == after => Ok(()),
            Ok(value) if value == before => Err(failed(cause)),
            _ => {
                let told = format!("whether RTMR{register} was extended is not known: {cause}");
                state.broken = Some(told.clone());
                Err(EventLogError::Broken(told))
            }
        }
    }

    fn append(&self, bytes: &[u8], state: &mut State) -> Result<(), EventLogError> {
        if let Some(path) = self.path(FILE) {
            let mut file = File::options();
            let file = file.append(true).create(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(bytes));
            if let Err(cause) = written {
                // The register has it already.
                state.broken = Some(format!("{}: {cause}", path.display()));
                return Err(EventLogError::File { path, cause });
            }
        }
        state.entries.extend(bytes);
        state.count += 1;
        Ok(())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(name))
    }

    /// The value that the register has before, and the entry.
    fn write_ahead(&self, index: u32, bytes: &[u8]) -> Result<(), EventLogError> {
        let Some(path) = self.path(AHEAD) else {
            return Ok(());
        };
        let register = register(index);
        let before = match &self.registers {
            Some(registers) => registers
                .read(register)
                .map_err(|cause| EventLogError::Register { register, cause })?,
            None => [0; REGISTER_BYTES],
        };
        let ahead = [&index.to_le_bytes()[..], &before, bytes].concat();
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&ahead)?;
            file.sync_all()
        });
        written.map_err(|cause| EventLogError::File { path, cause })
    }

    fn forget_ahead(&self) -> Result<(), EventLogError> {
        let Some(path) = self.path(AHEAD) else {
            return Ok(());
        };
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(EventLogError::File { path, cause })
            }
            _ => Ok(()),
        }
    }

    fn recover(&self) -> Result<(), EventLogError> {
        let (Some(file), Some(ahead)) = (self.path(FILE), self.path(AHEAD)) else {
            return Ok(());
        };
        let mut state = self.usable()?;
        state.entries = read(&file)?;
        let log = [&evidence::eventlog::header()[..], &state.entries].concat();
        let parsed = evidence::eventlog::EventLog::parse(&log)
            .map_err(|error| EventLogError::Broken(format!("{}: {error}", file.display())))?;
        if parsed.bytes() != log.len() {
            let told = format!("{}: something is behind its entries", file.display());
            return Err(EventLogError::Broken(told));
        }
        state.count = parsed.events().len();
        let written = read(&ahead)?;
        if let Some((index, rest)) = written.split_first_chunk::<INDEX_BYTES>()
            && let Some((before, bytes)) = rest.split_first_chunk::<REGISTER_BYTES>()
            && self.was_extended(u32::from_le_bytes(*index), before, bytes)?
            && !state.entries.ends_with(bytes)
        {
            self.append(bytes, &mut state)?;
        }
        // One that was not written to its end was not followed by anything.
        self.forget_ahead()
    }

    /// Whether an entry that was written ahead has extended its register.
    fn was_extended(
        &self,
        index: u32,
        before: &[u8; REGISTER_BYTES],
        bytes: &[u8],
    ) -> Result<bool, EventLogError> {
        let log = [&evidence::eventlog::header()[..], bytes].concat();
        let Ok(parsed) = evidence::eventlog::EventLog::parse(&log) else {
            return Ok(false);
        };
        let [event] = parsed.events() else {
            return Ok(false);
        };
        let (Some(registers), Some(digest)) = (&self.registers, event.digests.first()) else {
            return Ok(self.registers.is_none());
        };
        let digest = digest.digest.try_into().map_err(|_| {
            EventLogError::Broken("what was written ahead has no SHA-384 digest".to_owned())
        })?;
        let register = register(index);
        let value = registers
            .read(register)
            .map_err(|cause| EventLogError::Register { register, cause })?;
        match value {
            value if value == extended(before, digest) => Ok(true),
            value if value == *before => Ok(false),
            _ => Err(EventLogError::Broken(format!(
                "RTMR{register} has another value than the last event leaves or finds"
            ))),
        }
    }
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLog").finish_non_exhaustive()
    }
}

/// Logs count from 1, registers from 0.
fn register(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX).wrapping_sub(1)
}

/// A file of the log; an empty one where there is none.
fn read(path: &Path) -> Result<Vec<u8>, EventLogError> {
    let failed = |cause| EventLogError::File {
        path: path.to_owned(),
        cause,
    };
    let file = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    let cap = u64::try_from(LOG_BYTES).unwrap_or(u64::MAX) + 1;
    file.take(cap).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() <= LOG_BYTES {
        true => Ok(bytes),
        false => Err(EventLogError::Full),
    }
}

#[cfg(test)]
mod tests;
