//! The trace that a container's creation is of, as the host names it: passed on to the broker, below numbers of
//! the guest's own.
//!
//! The host chose it, so it decides nothing. The guest sends no spans itself: it tells the host when a phase
//! ended and under which number others know it.

use agent_api::{SpanId, TraceParent};
use ring::rand::{SecureRandom, SystemRandom};
use ttrpc::r#async::TtrpcContext;

/// The spans of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullTrace {
    /// Under which the broker is asked for a token.
    pub attest: TraceParent,
    /// Under which it is asked for keys.
    pub pull: TraceParent,
}

impl PullTrace {
    /// Of a request, where its caller traces it.
    #[must_use]
    pub fn of(context: &TtrpcContext) -> Option<Self> {
        let parent = TraceParent::of_metadata(&context.metadata)?;
        Some(Self {
            attest: parent.with_span(random()?),
            pull: parent.with_span(random()?),
        })
    }
}

fn random() -> Option<SpanId> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).ok()?;
    SpanId::new(bytes)
}
