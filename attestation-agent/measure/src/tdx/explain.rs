//! Where a guest's log leaves the predicted one.
//!
//! A register is a chain: after its first different event nothing of it can be compared by value. So the
//! two logs are compared register by register, and the difference that comes first in the guest's log is
//! the one to tell.

use std::fmt;

use evidence::eventlog::{self, DigestAlgorithm, EventKind, EventLog, REGISTERS};

use super::{Event, Firmware, Memory, Origin, Prediction, memory_of};

/// The first difference between a predicted log and one that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The register: 0 is RTMR0.
    pub register: u32,
    /// The event in the found log, counted from 0 without the header; that behind its last where the
    /// log ends too early.
    pub at: usize,
    /// What was expected there; `None` where the register should have ended.
    pub expected: Option<Origin>,
    /// Whether an event is there.
    pub found: Option<EventKind>,
    /// Whether what was found there was expected elsewhere in the register, as what.
    pub known_as: Option<Origin>,
    /// The memory that the found guest had, where that is the difference and could be told.
    pub memory: Option<Memory>,
}

/// Compares a log with a prediction, and finds the first difference. Types of events do not count: no
/// register answers for them.
///
/// `None` says that each register would have the predicted value if the log is true; whether it is, the
/// report's registers tell ([`EventLog::replay`]). Events of a register that a TD does not have are not
/// looked at; that replay refuses them.
#[must_use]
pub fn explain(
    predicted: &Prediction,
    found: &EventLog<'_>,
    firmware: &Firmware<'_>,
) -> Option<Difference> {
    (1..)
        .take(REGISTERS)
        .filter_map(|index| register(index, &predicted.events, found))
        .min_by_key(|(at, _)| *at)
        .map(|(_, difference)| Difference {
            memory: memory(&difference, found, firmware),
            ..difference
        })
}

/// The first difference in a register, with its place in the log.
fn register(index: u32, expected: &[Event], found: &EventLog<'_>) -> Option<(usize, Difference)> {
    let expected: Vec<_> = expected.iter().filter(|one| one.index == index).collect();
    let there: Vec<_> = found
        .events()
        .iter()
        .enumerate()
        .filter(|(_, one)| one.index == index && one.kind != EventKind::NoAction)
        .collect();
    let length = expected.len().max(there.len());
    let place = (0..length).find(|place| match (expected.get(*place), there.get(*place)) {
        (Some(expected), Some((_, there))) => digest(there) != Some(&expected.digest),
        _ => true,
    })?;
    let there = there.get(place);
    let at = there.map_or(found.events().len(), |(at, _)| *at);
    let known_as = there.and_then(|(_, there)| {
        let known = |one: &&&Event| digest(there) == Some(&one.digest);
        expected.iter().find(known).map(|one| one.origin.clone())
    });
    let difference = Difference {
        register: index - 1,
        at,
        expected: expected.get(place).map(|one| one.origin.clone()),
        found: there.map(|(_, there)| there.kind),
        known_as,
        memory: None,
    };
    Some((at, difference))
}

/// What extended the register, where it is as long as one.
fn digest<'a>(event: &eventlog::Event<'a>) -> Option<&'a super::Digest> {
    let sha384 = |one: &&eventlog::EventDigest<'a>| one.algorithm == DigestAlgorithm::Sha384;
    let digest = event.digests.iter().find(sha384)?.digest;
    digest.try_into().ok()
}

/// The memory that the found list of memory is of.
fn memory(
    difference: &Difference,
    found: &EventLog<'_>,
    firmware: &Firmware<'_>,
) -> Option<Memory> {
    if difference.expected != Some(Origin::TdHob) {
        return None;
    }
    memory_of(firmware, digest(found.events().get(difference.at)?)?)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RTMR{}", self.register)?;
        match (&self.expected, self.found) {
            (Some(expected), Some(found)) => {
                let name = found.name();
                write!(f, ", event {} ({name}): {expected} was expected, ", self.at)?;
                match &self.known_as {
                    Some(known) => write!(f, "and {known} is there")?,
                    None => write!(f, "and something else is there")?,
                }
                write!(f, "; look at {}", expected.cause())?;
            }
            (Some(expected), None) => {
                write!(
                    f,
                    ": the log ends before {expected}; look at {}",
                    expected.cause()
                )?;
            }
            (None, Some(found)) => {
                let (at, name) = (self.at, found.name());
                write!(f, ", event {at} ({name}) is one more than expected")?;
            }
            (None, None) => {}
        }
        if let Some(memory) = self.memory {
            write!(f, ". That guest had {} MiB of memory", memory.bytes() >> 20)?;
        }
        Ok(())
    }
}
