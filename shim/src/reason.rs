//! Why a container was killed. The guest tells that a container ran out of memory and that its process
//! ended by two calls, and containerd asks for no reason once it has the end: so an end by SIGKILL that
//! nobody asked for waits for its reason, a moment long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long the end of a process may wait: the guest has told the reason before, and it is on its way.
const MOMENT: Duration = Duration::from_secs(1);

/// What is known of why one container was killed.
#[derive(Debug, Default)]
pub struct Reason {
    asked: AtomicBool,
    ran_out: watch::Sender<bool>,
}

impl Reason {
    /// Somebody on the host asks for the kill.
    pub fn asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// containerd was told that the container ran out of memory.
    pub fn ran_out(&self) {
        self.ran_out.send_replace(true);
    }

    /// Comes back when the reason of a kill is told, or there seems to be none.
    pub async fn told(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            let mut ran_out = self.ran_out.subscribe();
            let _ = timeout(MOMENT, ran_out.wait_for(|told| *told)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn an_end_waits_for_its_reason_and_not_for_long() {
        let reason = Reason::default();
        let start = Instant::now();
        reason.told().await;
        assert_eq!(start.elapsed(), MOMENT, "there is none");

        let start = Instant::now();
        tokio::join!(reason.told(), async {
            tokio::time::sleep(MOMENT / 4).await;
            reason.ran_out();
        });
        assert_eq!(start.elapsed(), MOMENT / 4, "as soon as it is told");
        reason.told().await;
        assert_eq!(start.elapsed(), MOMENT / 4, "it was told before");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_for_the_kill_waits_for_nothing() {
        let reason = Reason::default();
        reason.asked();
        let start = Instant::now();
        reason.told().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
