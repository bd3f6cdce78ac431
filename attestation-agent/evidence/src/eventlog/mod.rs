//! Logs of confidential guests (UEFI 2.10, section 38.4.1; TCG PC Client Platform Firmware Profile
//! 1.06, sections 9 and 10): what was extended into a guest's registers, event by event.
//!
//! A log is the guest's word. Only its digests are bound to the hardware, by [`EventLog::replay`]; an
//! event's text is worth something only where [`Event::digest_matches`] says that the digest is the
//! hash of that text. Names and forms in the claims are Trustee's.

mod aael;
mod algorithm;
mod claims;
mod detail;
mod device_path;
mod kind;
mod log;

#[cfg(feature = "sim")]
pub(crate) use aael::measured_entry;
pub use aael::{
    AAEL_TEXT_BYTES, AaelError, AaelEvent, LOG_END, entry, extended, header, is_register,
    register_of_pcr,
};
pub use algorithm::DigestAlgorithm;
pub use claims::EventClaims;
pub use detail::{AAEL_TAG, Details};
pub use kind::EventKind;
pub use log::{
    EVENT_BYTES, EVENTS, Event, EventDigest, EventLog, EventLogError, LOG_BYTES, REGISTERS,
    Register, SPEC_ID,
};
