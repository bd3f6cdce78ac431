//! RTMR3: events that the attestation agent records while a guest runs.

use evidence::eventlog::EventKind;
pub use evidence::eventlog::{AaelError as RuntimeError, AaelEvent as RuntimeEvent};

use super::event::{Event, Origin};

/// The event in RTMR3.
///
/// # Errors
/// When the three could not be told apart in it.
pub fn event(runtime: &RuntimeEvent<'_>) -> Result<Event, RuntimeError> {
    let data = runtime.data()?;
    let origin = Origin::Runtime(format!("{} {}", runtime.domain, runtime.operation));
    Ok(Event::of(4, EventKind::EventTag, origin, &data))
}
