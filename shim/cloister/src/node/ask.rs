//! Asks shims for their pages: many at once, each for so long and for so many bytes, and all together for no
//! more than the node has room for.
//!
//! What a shim knows is asked first and apart: guests that do not answer keep back nothing of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use shim::exchange::exchange;
use shim::exposition::{self, Limits, Sample};
use shim::monitor;
use shim::spec::pod_name::PodName;
use shim::state_dir::StateDir;
use shim::telemetry;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Shims that are asked at a time.
pub(super) const AT_ONCE: usize = 128;
/// Bytes of all pages of a scrape: some 1000 pods as they are.
const NODE_BYTES: usize = 64 * 1024 * 1024;
/// States that a shim may tell.
pub(super) const STATES: [&str; 5] = ["new", "booting", "running", "stopping", "stopped"];
/// Those that the monitor finds: the shim is gone, or gave no page.
pub(super) const DEAD: &str = "dead";
pub(super) const UNREACHABLE: &str = "unreachable";

/// How long shims are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// What one knows.
    pub(super) own: Duration,
    /// What its guest tells.
    pub(super) guest: Duration,
    /// All of them.
    pub(super) all: Duration,
}

impl Default for Patience {
    /// A shim waits four seconds for its guest, and Prometheus ten for all.
    fn default() -> Self {
        Self {
            own: Duration::from_secs(3),
            guest: Duration::from_secs(5),
            all: Duration::from_secs(8),
        }
    }
}

/// What became of a sandbox's question.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) namespace: String,
    pub(super) sandbox: String,
    pub(super) pod: Option<PodName>,
    pub(super) state: &'static str,
    /// The samples of its page, or why there are none.
    pub(super) page: Result<Vec<Sample>, String>,
}

/// What the asking of one scrape shares.
#[derive(Debug)]
struct Asking {
    patience: Patience,
    deadline: Instant,
    own: Semaphore,
    guest: Semaphore,
    /// Bytes that there is room for yet.
    room: AtomicUsize,
}

/// Asks all of these sandboxes; the answers are in their order.
pub(super) async fn all(
    sandboxes: &[(String, String, StateDir)],
    patience: Patience,
) -> Vec<Asked> {
    let asking = Arc::new(Asking {
        patience,
        deadline: Instant::now() + patience.all,
        own: Semaphore::new(AT_ONCE),
        guest: Semaphore::new(AT_ONCE),
        room: AtomicUsize::new(NODE_BYTES),
    });
    let mut tasks = JoinSet::new();
    for (index, (_, _, directory)) in sandboxes.iter().enumerate() {
        let (asking, directory) = (Arc::clone(&asking), directory.clone());
        tasks.spawn(async move { (index, asking.one(&directory).await) });
    }
    let mut pages: Vec<_> = sandboxes.iter().map(|_| Err(late())).collect();
    while let Some(done) = tasks.join_next().await {
        // One that panics is as one that says nothing.
        if let Ok((index, page)) = done
            && let Some(place) = pages.get_mut(index)
        {
            *place = page;
        }
    }
    let both = sandboxes.iter().zip(pages);
    both.map(|((namespace, sandbox, directory), page)| Asked {
        namespace: namespace.clone(),
        sandbox: sandbox.clone(),
        pod: PodName::read(directory),
        state: state(directory, &page),
        page,
    })
    .collect()
}

impl Asking {
    /// The samples of one shim; its guest's are among them where they came in time.
    async fn one(&self, directory: &StateDir) -> Result<Vec<Sample>, String> {
        let asked = self.ask(
            directory,
            monitor::OWN_METRICS,
            &self.own,
            self.patience.own,
        );
        let own = asked.await?;
        let asked = self.ask(
            directory,
            monitor::GUEST_METRICS,
            &self.guest,
            self.patience.guest,
        );
        let outcome = match asked.await {
            // As one page, so that neither says again what the other says.
            Ok(guests) => match exposition::of_shim(&format!("{own}\n{guests}")) {
                Ok(samples) => return Ok(samples),
                Err(_) => "malformed",
            },
            Err(_) => "unreachable",
        };
        let mut samples =
            exposition::of_shim(&own).map_err(|fault| format!("its page: {fault}"))?;
        let outcome = telemetry::guest_outcome(outcome);
        samples.retain(|sample| sample.name != outcome.name);
        samples.push(outcome);
        Ok(samples)
    }

    async fn ask(
        &self,
        directory: &StateDir,
        path: &str,
        slots: &Semaphore,
        patience: Duration,
    ) -> Result<String, String> {
        let asking = async {
            let _slot = slots.acquire().await;
            let text = timeout(patience, text(directory, path)).await;
            text.unwrap_or_else(|_| Err(late()))
        };
        let text = timeout_at(self.deadline, asking).await;
        let text = text.unwrap_or_else(|_| Err(late()))?;
        let take = |room: usize| room.checked_sub(text.len());
        let order = Ordering::Relaxed;
        match self.room.fetch_update(order, order, take) {
            Ok(_) => Ok(text),
            Err(_) => Err("the sandboxes of the node tell too much".to_owned()),
        }
    }
}

fn late() -> String {
    "its shim did not answer in time".to_owned()
}

fn state(directory: &StateDir, page: &Result<Vec<Sample>, String>) -> &'static str {
    let told = page.iter().flatten().find_map(|sample| {
        let state = (sample.name == "cloister_sandbox_state").then(|| sample.label("state"))??;
        STATES.iter().find(|known| **known == state).copied()
    });
    let lives = || {
        directory
            .recorded("shim")
            .is_some_and(|shim| shim.is_alive())
    };
    told.unwrap_or_else(|| if lives() { UNREACHABLE } else { DEAD })
}

async fn text(directory: &StateDir, path: &str) -> Result<String, String> {
    let told = |error: &dyn std::fmt::Display| format!("its shim: {error}");
    let stream = monitor::connect(directory)
        .await
        .map_err(|error| told(&error))?;
    let request = Request::get(path)
        .header(http::header::HOST, "shim")
        .body(Full::default())
        .map_err(|error| told(&error))?;
    let answer = exchange(stream, request, Limits::SHIM.bytes).await;
    let (status, body) = answer.map_err(|error| told(&error))?;
    match status.is_success() {
        true => String::from_utf8(body.into()).map_err(|error| told(&error)),
        false => Err(told(&status)),
    }
}
