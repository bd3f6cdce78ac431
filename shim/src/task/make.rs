//! The guest's part of a creation: asked for, watched, and taken back when it is not wanted any more or
//! takes too long.
//!
//! A call of ttRPC cannot be called off: a guest whose answer nobody waits for any more would pull on. So
//! it is told to remove the container, and the call ends with that.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError, limit};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::container::Container;
use crate::creation::{Clock, Step};
use crate::guest::{Guest, NewContainer};

/// How long the guest may take to forget a container whose creation was ended.
const UNDO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the call may take to end once the guest was told; then it is told again.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// A guest that answers more often than it should is not asked more often.
const INTERVAL: Duration = Duration::from_millis(limit::PULL_INTERVAL_MS);

/// Has the guest make a container, and returns when it is there, or is not going to be.
pub(super) async fn make(
    guest: &Guest,
    container: &Container,
    new: NewContainer,
    within: Duration,
) -> Result<(), GuestError> {
    let mut call = pin!(guest.create_container(new));
    let error = tokio::select! {
        biased;
        answer = &mut call => return answer,
        () = container.cancel.cancelled() => container.cancelled(),
        () = sleep(within) => {
            container.progress().overdue(within, Clock::Configuration, Instant::now())
        }
        never = follow(guest, container) => match never {},
    };
    // A VM of its own ends, and the container with it.
    if !container.role.owns_vm() {
        let taken = timeout(UNDO_TIMEOUT, take_back(guest, &container.id, call)).await;
        if taken.is_err() {
            warn!(
                container = container.id,
                "the guest does not forget a container in time"
            );
        }
    }
    Err(error)
}

/// Notes how far the pull is, for as long as the future is polled.
async fn follow(guest: &Guest, container: &Container) -> Infallible {
    let mut seen = 0;
    // Without an image to pull there is nothing to ask for.
    while container.progress().image.is_some() {
        match guest.watch_pull(&container.id, seen).await {
            Ok(told) => {
                seen = told.number;
                container.note(|progress| progress.take(&told, Instant::now()));
            }
            // The pull is over; or it has not begun yet, which took the guest a while to tell.
            Err(error) if error.code == ErrorCode::NotFound && seen > 0 => {
                container.note(|progress| progress.enter(Step::Make));
                break;
            }
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => {
                debug!(%error, container = container.id, "the guest tells nothing of the pull");
                break;
            }
        }
        sleep(INTERVAL).await;
    }
    pending().await
}

/// Tells the guest to remove a container that it may just be told to make: it may hear of the end first,
/// and may have made it when it hears of the end.
async fn take_back(
    guest: &Guest,
    id: &str,
    mut call: Pin<&mut impl Future<Output = Result<(), GuestError>>>,
) {
    loop {
        let removed = guest.remove_container(id).await;
        if let Ok(made) = timeout(TELL_AGAIN, &mut call).await {
            if made.is_ok() && removed.is_err() {
                let _ = guest.remove_container(id).await;
            }
            return;
        }
    }
}
