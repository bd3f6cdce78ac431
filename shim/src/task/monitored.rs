//! What a pod's monitor is told of its tasks: metrics, volumes, and the containers that are on their way.

use std::sync::PoisonError;

use agent_api::{ErrorCode, GuestError};
use async_trait::async_trait;

use super::Tasks;
use crate::creation::Creation;
use crate::disk::described::Growth;
use crate::exposition::{self, write};
use crate::monitor;
use crate::telemetry;

/// How much is shown of why a guest has no metrics.
const SHOWN_WHY: usize = 512;

impl Tasks {
    /// What the guest tells of itself, what became of the question, and why as a comment.
    async fn guests_samples(&self) -> (Vec<exposition::Sample>, &'static str, String) {
        let take = |text: String| {
            let guests = self.guests.lock();
            guests.unwrap_or_else(PoisonError::into_inner).take(&text)
        };
        let answer = match self.sandbox.guest() {
            Ok(guest) => guest.metrics().await,
            Err(error) => Err(error),
        };
        let none = |outcome, why: &dyn std::fmt::Display| {
            // The console's last lines, which may follow, are no business of a page.
            let why = why.to_string();
            let why = image_rs::shown_up_to(why.lines().next().unwrap_or_default(), SHOWN_WHY);
            (Vec::new(), outcome, format!("# guest: {why}\n"))
        };
        match answer.map(take) {
            Ok(Ok((mut samples, left_out))) => {
                samples.push(telemetry::guest_left_out(left_out));
                (samples, "taken", String::new())
            }
            Ok(Err(fault)) => none("malformed", &fault),
            Err(error) if error.code == ErrorCode::PolicyDenied => none("denied", &error),
            Err(error) => none("unreachable", &error),
        }
    }
}

#[async_trait]
impl monitor::Source for Tasks {
    fn own_metrics(&self) -> String {
        let state = self.sandbox.view().state;
        write(self.telemetry.samples(&state, self.containers.all().len()))
    }

    async fn guest_metrics(&self) -> String {
        let (mut all, outcome, why) = self.guests_samples().await;
        all.push(telemetry::guest_outcome(outcome));
        format!("{why}{}", write(all))
    }

    async fn volume_stats(&self, device: &str) -> Result<String, GuestError> {
        self.stats_of_volume(device).await
    }

    async fn grow_volume(&self, growth: &Growth) -> Result<(), GuestError> {
        self.make_volume_larger(growth).await
    }

    fn creations(&self) -> Vec<Creation> {
        let all = self.containers.all();
        let creating = all.iter().filter(|container| !container.is_created());
        creating
            .map(|container| Creation {
                container: container.id.clone(),
                progress: container.progress(),
            })
            .collect()
    }
}
