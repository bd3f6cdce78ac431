//! The log itself: a header that lists the algorithms, then events until the end or the padding.

use sha2::{Digest, Sha384};

use super::{algorithm::DigestAlgorithm, kind::EventKind};

/// The most bytes of a log. Firmware reserves 64 KiB to 1 MiB.
pub const LOG_BYTES: usize = 1 << 20;
/// The most events of a log. Logs of whole boots have about a hundred.
pub const EVENTS: usize = 8192;
/// The most bytes of one event's data. The longest are lists of forbidden boot loaders.
pub const EVENT_BYTES: usize = 256 * 1024;
/// Registers that a guest extends: RTMR0 to RTMR3, which logs call 1 to 4.
pub const REGISTERS: usize = 4;
/// How the header's data begins.
pub const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";

/// Bytes of a register and of the digests that extend it.
const REGISTER_BYTES: usize = 48;
/// Eight bytes of either where an event would begin end the log.
const PADDING: [[u8; 8]; 2] = [[0; 8], [0xff; 8]];

/// A log. It borrows the bytes that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog<'a> {
    events: Vec<Event<'a>>,
    bytes: usize,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The register: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3.
    pub index: u32,
    /// The type.
    pub kind: EventKind,
    /// At least one, and none twice.
    pub digests: Vec<EventDigest<'a>>,
    /// What its author wrote.
    pub data: &'a [u8],
}

/// What extended a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventDigest<'a> {
    /// The algorithm.
    pub algorithm: DigestAlgorithm,
    /// As many bytes as the algorithm has.
    pub digest: &'a [u8],
}

/// A register after all events of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// Its value.
    pub value: [u8; REGISTER_BYTES],
    /// How many events extended it.
    pub events: usize,
}

/// Bytes that are no log. Events are counted from 0, without the header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message tells the members")]
pub enum EventLogError {
    /// Longer than firmware makes them.
    #[error("an event log of {0} bytes, of which at most {LOG_BYTES} are read")]
    Length(usize),
    /// Not the header of a log with several algorithms.
    #[error("the event log has no usable header: {0}")]
    Header(&'static str),
    /// An algorithm that is not known here.
    #[error("the event log names the digest algorithm {0:#x}, which is not known")]
    Algorithm(u16),
    /// It ends amidst an event.
    #[error("the event log ends within event {event}")]
    Short { event: usize },
    /// A type that is not known here.
    #[error("event {event} of the log has the unknown type {kind:#x}")]
    Kind { event: usize, kind: u32 },
    /// No digest, too many, or one of an algorithm that the header does not list.
    #[error("event {event} of the log has other digests than the header lists")]
    Digests { event: usize },
    /// Too long.
    #[error("event {event} of the log has {bytes} bytes, of which at most {EVENT_BYTES} are read")]
    EventLength { event: usize, bytes: usize },
    /// Too many.
    #[error("the event log has more than {EVENTS} events")]
    Events,
    /// A register that a TD does not have, or MRTD, which nothing extends after the launch.
    #[error("event {event} of the log extends register {index}, and a TD has 1 to {REGISTERS}")]
    Index { event: usize, index: u32 },
    /// Not extended, then.
    #[error("event {event} of the log has no SHA-384 digest")]
    NoSha384 { event: usize },
}

impl<'a> EventLog<'a> {
    /// Reads a log up to its end or its padding.
    ///
    /// # Errors
    /// When it is longer than the caps, has another form, or has an algorithm or a type of event that
    /// is not known.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        if bytes.len() > LOG_BYTES {
            return Err(EventLogError::Length(bytes.len()));
        }
        let mut rest = Reader(bytes);
        let algorithms = header(&mut rest)?;
        let mut events = Vec::new();
        while !rest.is_end() {
            if events.len() == EVENTS {
                return Err(EventLogError::Events);
            }
            events.push(event(&mut rest, events.len(), &algorithms)?);
        }
        let bytes = bytes.len() - rest.0.len();
        Ok(Self { events, bytes })
    }

    /// How many of the bytes are the log's: behind them is padding, or nothing.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The events, without the header.
    #[must_use]
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// What RTMR0 to RTMR3 are after these events. `EV_NO_ACTION` extends nothing.
    ///
    /// # Errors
    /// When an event extends another register, or none for want of a SHA-384 digest: no register
    /// would answer for it.
    pub fn replay(&self) -> Result<[Register; REGISTERS], EventLogError> {
        let mut registers = [Register {
            value: [0; REGISTER_BYTES],
            events: 0,
        }; REGISTERS];
        for (event, said) in self.events.iter().enumerate() {
            if said.kind == EventKind::NoAction {
                continue;
            }
            let index = said.index;
            let register = usize::try_from(index)
                .ok()
                .and_then(|index| registers.get_mut(index.checked_sub(1)?))
                .ok_or(EventLogError::Index { event, index })?;
            let digest = said
                .digests
                .iter()
                .find(|digest| digest.algorithm == DigestAlgorithm::Sha384)
                .ok_or(EventLogError::NoSha384 { event })?;
            register.extend(digest.digest);
        }
        Ok(registers)
    }
}

impl Register {
    fn extend(&mut self, digest: &[u8]) {
        let value = Sha384::new()
            .chain_update(self.value)
            .chain_update(digest)
            .finalize();
        self.value = value.into();
        self.events += 1;
    }
}

impl Event<'_> {
    /// Whether every digest is the hash of the data, so that the register answers for the data too.
    /// Firmware hashes a file in place of its name for some types; of those events only the digest is
    /// worth something.
    #[must_use]
    pub fn digest_matches(&self) -> bool {
        self.digests
            .iter()
            .all(|digest| digest.algorithm.is_digest(digest.digest, self.data))
    }
}

/// `TCG_PCR_EVENT` with `TCG_EfiSpecIdEvent`: the algorithms of all digests that follow.
fn header(rest: &mut Reader<'_>) -> Result<Vec<DigestAlgorithm>, EventLogError> {
    const SHORT: EventLogError = EventLogError::Header("it is too short");
    let _index = rest.u32().ok_or(SHORT)?;
    if rest.u32().ok_or(SHORT)? != EventKind::NoAction.number() {
        return Err(EventLogError::Header("it is not of type EV_NO_ACTION"));
    }
    let _digest: &[u8; 20] = rest.array().ok_or(SHORT)?;
    let mut data = Reader(rest.sized().ok_or(SHORT)?);
    if data.array().ok_or(SHORT)? != SPEC_ID {
        return Err(EventLogError::Header(
            "it does not begin with Spec ID Event03",
        ));
    }
    let _class_and_version: &[u8; 8] = data.array().ok_or(SHORT)?;
    let count = data.u32().ok_or(SHORT)?;
    let mut algorithms = Vec::new();
    for _ in 0..count {
        let (id, size) = data.u16().zip(data.u16()).ok_or(SHORT)?;
        let algorithm = DigestAlgorithm::of_id(id).ok_or(EventLogError::Algorithm(id))?;
        if algorithm.bytes() != usize::from(size) {
            return Err(EventLogError::Header("an algorithm has another length"));
        }
        if algorithms.contains(&algorithm) {
            return Err(EventLogError::Header("it lists an algorithm twice"));
        }
        algorithms.push(algorithm);
    }
    let [vendor] = *data.array().ok_or(SHORT)?;
    data.take(usize::from(vendor)).ok_or(SHORT)?;
    if !data.0.is_empty() {
        return Err(EventLogError::Header("something follows in it"));
    }
    Ok(algorithms)
}

/// `TCG_PCR_EVENT2`.
fn event<'a>(
    rest: &mut Reader<'a>,
    event: usize,
    algorithms: &[DigestAlgorithm],
) -> Result<Event<'a>, EventLogError> {
    let short = || EventLogError::Short { event };
    let index = rest.u32().ok_or_else(short)?;
    let kind = rest.u32().ok_or_else(short)?;
    let kind = EventKind::of_number(kind).ok_or(EventLogError::Kind { event, kind })?;
    let count = rest.u32().ok_or_else(short)?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| (1..=algorithms.len()).contains(count))
        .ok_or(EventLogError::Digests { event })?;
    let mut digests: Vec<EventDigest<'a>> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = rest.u16().ok_or_else(short)?;
        let algorithm = DigestAlgorithm::of_id(id)
            .filter(|algorithm| algorithms.contains(algorithm))
            .filter(|algorithm| digests.iter().all(|digest| digest.algorithm != *algorithm))
            .ok_or(EventLogError::Digests { event })?;
        let digest = rest.take(algorithm.bytes()).ok_or_else(short)?;
        digests.push(EventDigest { algorithm, digest });
    }
    let data = rest.sized().ok_or_else(short)?;
    if data.len() > EVENT_BYTES {
        let bytes = data.len();
        return Err(EventLogError::EventLength { event, bytes });
    }
    Ok(Event {
        index,
        kind,
        digests,
        data,
    })
}

/// What is left of the bytes. Numbers are little-endian.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(|bytes| u16::from_le_bytes(*bytes))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(|bytes| u32::from_le_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// As many bytes as the number before them says.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let bytes = usize::try_from(self.u32()?).ok()?;
        self.take(bytes)
    }

    fn is_end(&self) -> bool {
        self.0.is_empty()
            || self
                .0
                .first_chunk()
                .is_some_and(|next| PADDING.contains(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(algorithms: &[(u16, u16)]) -> Vec<u8> {
        let mut spec = SPEC_ID.to_vec();
        spec.extend([0; 8]);
        spec.extend(u32::try_from(algorithms.len()).unwrap().to_le_bytes());
        for (id, size) in algorithms {
            spec.extend(id.to_le_bytes());
            spec.extend(size.to_le_bytes());
        }
        spec.push(0);
        let mut bytes = [0, 3u32].map(u32::to_le_bytes).concat();
        bytes.extend([0; 20]);
        bytes.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
        bytes.extend(spec);
        bytes
    }

    fn event(index: u32, kind: u32, digests: &[(u16, usize)], data: &[u8]) -> Vec<u8> {
        let count = u32::try_from(digests.len()).unwrap();
        let mut bytes = [index, kind, count].map(u32::to_le_bytes).concat();
        for (id, size) in digests {
            bytes.extend(id.to_le_bytes());
            bytes.extend(vec![7; *size]);
        }
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    const SHA384: (u16, usize) = (0x0c, 48);

    fn with(event: &[u8]) -> Vec<u8> {
        [&header(&[(0x0c, 48), (0x0b, 32)])[..], event].concat()
    }

    fn refused(bytes: &[u8]) -> EventLogError {
        match EventLog::parse(bytes) {
            Ok(log) => log.replay().unwrap_err(),
            Err(error) => error,
        }
    }

    #[test]
    fn a_log_ends_at_its_end_or_its_padding() {
        let good = with(&event(1, 4, &[SHA384], b"data"));
        for tail in [&[][..], &[0; 8], &[0xff; 64], &[0, 0, 0, 0, 0, 0, 0, 0, 9]] {
            let bytes = [&good[..], tail].concat();
            let log = EventLog::parse(&bytes).unwrap();
            assert_eq!((log.events().len(), log.bytes()), (1, good.len()));
            let [first, second, ..] = log.replay().unwrap();
            assert_eq!((first.events, second.value), (1, [0; 48]));
        }
        for length in 0..good.len() {
            let read = EventLog::parse(&good[..length]);
            assert!(read.map_or(true, |log| log.events().is_empty()));
        }
    }

    #[test]
    fn each_other_form_is_refused_by_name() {
        let many = event(1, 4, &[SHA384], b"").repeat(EVENTS + 1);
        let long = vec![0; EVENT_BYTES + 1];
        for (bytes, expected) in [
            (vec![0; LOG_BYTES + 1], EventLogError::Length(LOG_BYTES + 1)),
            (header(&[(0x27, 32)]), EventLogError::Algorithm(0x27)),
            (
                header(&[(0x0c, 32)]),
                EventLogError::Header("an algorithm has another length"),
            ),
            (
                header(&[(0x0c, 48), (0x0c, 48)]),
                EventLogError::Header("it lists an algorithm twice"),
            ),
            (
                vec![4; 64],
                EventLogError::Header("it is not of type EV_NO_ACTION"),
            ),
            (vec![], EventLogError::Header("it is too short")),
            (
                with(&event(1, 0x99, &[SHA384], b"")),
                EventLogError::Kind {
                    event: 0,
                    kind: 0x99,
                },
            ),
            (
                with(&event(1, 4, &[], b"")),
                EventLogError::Digests { event: 0 },
            ),
            (
                with(&event(1, 4, &[SHA384, SHA384], b"")),
                EventLogError::Digests { event: 0 },
            ),
            (
                with(&event(1, 4, &[(0x0d, 64)], b"")),
                EventLogError::Digests { event: 0 },
            ),
            (
                with(&event(1, 4, &[SHA384], &long)),
                EventLogError::EventLength {
                    event: 0,
                    bytes: EVENT_BYTES + 1,
                },
            ),
            (with(&many), EventLogError::Events),
            (
                with(&event(0, 4, &[SHA384], b"")),
                EventLogError::Index { event: 0, index: 0 },
            ),
            (
                with(&event(5, 4, &[SHA384], b"")),
                EventLogError::Index { event: 0, index: 5 },
            ),
            (
                with(&event(1, 4, &[(0x0b, 32)], b"")),
                EventLogError::NoSha384 { event: 0 },
            ),
        ] {
            assert_eq!(refused(&bytes), expected);
        }
    }

    #[test]
    fn nothing_is_extended_by_events_without_action() {
        let bytes = with(&event(9, 3, &[(0x0b, 32)], b"said by nobody"));
        let registers = EventLog::parse(&bytes).unwrap().replay().unwrap();
        assert!(registers.iter().all(|register| register.events == 0));
    }
}
