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
//!
//! A log in files is used by several processes in turn: who has the lock reads what others wrote, and finishes or
//! forgets the event that one of them left on its way. Who may only read it looks twice instead.

mod files;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evidence::eventlog::{AaelError, AaelEvent, entry, extended, register_of_pcr};

use crate::attester::{REGISTER_BYTES, Registers};
use files::{Ahead, Files, Lock};

/// Entries of one log; firmware's come on top.
const EVENTS: usize = 128;
/// Bytes of one log's entries. All of them become claims of a token, which has to fit into a header.
const LOG_BYTES: usize = 24 * 1024;
/// Where an event goes for which no register is asked: RTMR3, guest-components' default.
const DEFAULT_PCR: u64 = 17;

/// The log of one guest. It is shared by reference.
pub struct EventLog {
    registers: Option<Arc<dyn Registers>>,
    files: Option<Files>,
    state: Mutex<State>,
}

/// What the log is; of one in files, as of the last use.
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
    /// An event came while the log was read by somebody who may not lock it.
    #[error("{path}: an event came meanwhile: try again", path = .0.display())]
    Changed(PathBuf),
    /// Another process has had the log for too long.
    #[error("{path}: another process holds the event log: end it, or try again later", path = .0.display())]
    Locked(PathBuf),
    /// An event for a log that was opened to be read.
    #[error("the event log was opened to be read: no event goes into it")]
    ReadOnly,
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
        Self::of(registers, None)
    }

    /// The same in a directory, where it outlives this process, and is used by others too: what was on its way when
    /// one of them ended is finished or forgotten, as the register says. The directory is made where it is missing.
    ///
    /// # Errors
    /// A file cannot be used, or the register has neither of the values that it can have.
    pub fn open(
        registers: Option<Arc<dyn Registers>>,
        directory: impl Into<PathBuf>,
    ) -> Result<Self, EventLogError> {
        let files = Files::to_write(directory.into())?;
        let log = Self::of(registers, Some(files));
        log.held(|_| ())?;
        Ok(log)
    }

    /// The log that [`EventLog::open`] writes, to be read alone: nothing is made or changed. It is empty for as long
    /// as there is none.
    #[must_use]
    pub fn look(registers: Option<Arc<dyn Registers>>, directory: impl Into<PathBuf>) -> Self {
        Self::of(registers, Some(Files::to_read(directory.into())))
    }

    fn of(registers: Option<Arc<dyn Registers>>, files: Option<Files>) -> Self {
        Self {
            registers,
            files,
            state: Mutex::default(),
        }
    }

    /// Measures an event. The number of a register is a TPM's, as in guest-components' interface, and
    /// stands for the TD's register that it maps to (UEFI 2.10, section 38.4.1). It may block.
    ///
    /// # Errors
    /// The event is not in the log, and no register was extended by it. Where a file failed behind the register, whoever
    /// uses the log next finishes the event.
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
        if self.files.as_ref().is_some_and(|files| !files.writes) {
            return Err(EventLogError::ReadOnly);
        }
        let (mut state, _lock) = self.turn()?;
        if state.count >= EVENTS || state.entries.len() + bytes.len() > LOG_BYTES {
            return Err(EventLogError::Full);
        }
        if let Some(files) = &self.files {
            files.write_ahead(&self.ahead(index, &bytes, &state)?)?;
        }
        if let Err(error) = self.extend_register(index, &digest, &mut state) {
            // One whose end is not known is left to be looked at.
            if !matches!(error, EventLogError::Broken(_)) {
                self.forget_ahead()?;
            }
            return Err(error);
        }
        if let Some(files) = &self.files {
            files.append(&bytes)?;
        }
        state.entries.extend(&bytes);
        state.count += 1;
        self.forget_ahead()
    }

    /// Whether registers answer for the log.
    #[must_use]
    pub fn has_registers(&self) -> bool {
        self.registers.is_some()
    }

    /// Runs something with the log's entries while no event can come, from other processes neither. Who may read
    /// the log and not lock it has nothing of it where one came.
    ///
    /// # Errors
    /// [`EventLogError::Broken`], [`EventLogError::Changed`], or a file cannot be used.
    pub fn held<T>(&self, with: impl FnOnce(&[u8]) -> T) -> Result<T, EventLogError> {
        let (mut state, lock) = self.turn()?;
        let done = with(&state.entries);
        if let (Some(files), Some(Lock::Open)) = (&self.files, lock) {
            let before = std::mem::take(&mut state.entries);
            self.refresh(files, &mut state)?;
            if state.entries != before {
                return Err(files.changed());
            }
        }
        Ok(done)
    }

    /// Waits until nobody else uses the log, and reads what others did to it.
    fn turn(&self) -> Result<(MutexGuard<'_, State>, Option<Lock>), EventLogError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &state.broken {
            return Err(EventLogError::Broken(cause.clone()));
        }
        let Some(files) = &self.files else {
            return Ok((state, None));
        };
        let lock = files.lock()?;
        match lock {
            Some(_) => self.refresh(files, &mut state)?,
            None => *state = State::default(),
        }
        Ok((state, lock))
    }

    fn refresh(&self, files: &Files, state: &mut State) -> Result<(), EventLogError> {
        let mut entries = files.entries()?;
        if let Some(ahead) = files.ahead()? {
            let missing = ahead.missing(&entries, self.registers.as_deref())?;
            if files.writes && !missing.is_empty() {
                files.append(missing)?;
            }
            entries.extend(missing);
        }
        state.count = count(&entries)?;
        state.entries = entries;
        match files.writes {
            true => files.forget_ahead(),
            false => Ok(()),
        }
    }

    fn ahead(&self, index: u32, bytes: &[u8], state: &State) -> Result<Ahead, EventLogError> {
        let register = register(index);
        let before = match &self.registers {
            Some(registers) => registers
                .read(register)
                .map_err(|cause| EventLogError::Register { register, cause })?,
            None => [0; REGISTER_BYTES],
        };
        Ok(Ahead {
            at: state.entries.len(),
            index,
            before,
            bytes: bytes.to_vec(),
        })
    }

    fn forget_ahead(&self) -> Result<(), EventLogError> {
        self.files.as_ref().map_or(Ok(()), Files::forget_ahead)
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

/// The events of a log, which are all that it has.
fn count(entries: &[u8]) -> Result<usize, EventLogError> {
    let broken = |cause: String| EventLogError::Broken(format!("its file: {cause}"));
    let log = [&evidence::eventlog::header()[..], entries].concat();
    let parsed = evidence::eventlog::EventLog::parse(&log);
    let parsed = parsed.map_err(|error| broken(error.to_string()))?;
    match parsed.bytes() == log.len() {
        true => Ok(parsed.events().len()),
        false => Err(broken("something is behind its entries".to_owned())),
    }
}

#[cfg(test)]
mod tests;
