//! A container on its way, and the way to end it before it is there.
//!
//! ```text
//! CreateContainer ─► Maker ──────────── made, or undone ─► over
//! RemoveContainer ─► Making: cancel ──► pull ends ─┘         └─► answered
//! ```

use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use tokio::sync::watch;

use crate::trace::PullTrace;

/// The end of those who may want the container gone. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Making {
    cancel: Arc<watch::Sender<bool>>,
    over: watch::Receiver<()>,
}

/// The end of the one who makes it; when it is dropped, the container is there or nothing of it is left.
#[derive(Debug)]
pub(super) struct Maker {
    cancel: watch::Receiver<bool>,
    trace: Option<PullTrace>,
    _over: watch::Sender<()>,
}

/// Cancels when it is dropped: the host gave up on the call.
#[derive(Debug)]
pub(super) struct Abandon(Making);

/// Both ends.
pub(super) fn pair() -> (Making, Maker) {
    let (cancel, cancelled) = watch::channel(false);
    let (sender, over) = watch::channel(());
    let making = Making {
        cancel: Arc::new(cancel),
        over,
    };
    let maker = Maker {
        cancel: cancelled,
        trace: None,
        _over: sender,
    };
    (making, maker)
}

impl Making {
    /// Says that the container is not wanted any more.
    pub(super) fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Waits until it is there, or nothing of it is left.
    pub(super) async fn over(mut self) {
        while self.over.changed().await.is_ok() {}
    }

    /// Cancels when the value is dropped; a making that is over by then does not mind.
    pub(super) fn abandon(&self) -> Abandon {
        Abandon(self.clone())
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Maker {
    /// The same for a creation that somebody traces.
    pub(super) fn traced(self, trace: Option<PullTrace>) -> Self {
        Self { trace, ..self }
    }

    /// The trace that it is of.
    pub(super) fn trace(&self) -> Option<PullTrace> {
        self.trace
    }

    /// Whether the container is not wanted any more.
    pub(super) fn is_cancelled(&self) -> bool {
        *self.cancel.borrow()
    }

    /// Tells a thread whether it is wanted still.
    pub(super) fn cancel(&self) -> watch::Receiver<bool> {
        self.cancel.clone()
    }

    /// What is answered when it is not.
    pub(super) fn unwanted() -> GuestError {
        let text = "the container is not wanted any more";
        GuestError::new(ErrorCode::Cancelled, "create", text)
    }

    /// Waits until it is not wanted any more, which may be never.
    pub(super) async fn cancelled(&self) {
        let mut cancel = self.cancel.clone();
        if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
            // Nobody is left who could.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_cancels_waits_until_nothing_is_left() {
        let (making, maker) = pair();
        assert!(!maker.is_cancelled());
        making.cancel();
        maker.cancelled().await;
        assert!(maker.is_cancelled());
        let over = tokio::spawn(making.over());
        tokio::task::yield_now().await;
        assert!(!over.is_finished());
        drop(maker);
        over.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_cancels() {
        let (making, maker) = pair();
        drop(making.abandon());
        maker.cancelled().await;
    }
}
