//! Asks shims for their pages: many at once, each for so long and for so many bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use shim::exposition::{self, Limits, Sample};
use shim::monitor;
use shim::spec::pod_name::PodName;
use shim::state_dir::StateDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Shims that are asked at a time.
const AT_ONCE: usize = 128;
/// States that a shim may tell.
const STATES: [&str; 5] = ["new", "booting", "running", "stopping", "stopped"];
/// Those that the monitor finds: the shim is gone, or gave no page.
pub(super) const DEAD: &str = "dead";
pub(super) const UNREACHABLE: &str = "unreachable";

/// How long shims are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// One.
    pub(super) one: Duration,
    /// All of them.
    pub(super) all: Duration,
}

impl Default for Patience {
    /// A shim waits four seconds for its guest, and Prometheus ten for all.
    fn default() -> Self {
        Self {
            one: Duration::from_secs(6),
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

/// Asks all of these sandboxes; the answers are in their order.
pub(super) async fn all(
    sandboxes: &[(String, String, StateDir)],
    patience: Patience,
) -> Vec<Asked> {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let deadline = Instant::now() + patience.all;
    let mut tasks = JoinSet::new();
    for (index, (_, _, directory)) in sandboxes.iter().enumerate() {
        let (slots, directory) = (Arc::clone(&slots), directory.clone());
        tasks.spawn(async move {
            let asking = async {
                let _slot = slots.acquire().await;
                timeout(patience.one, one(&directory))
                    .await
                    .unwrap_or_else(|_| late())
            };
            let page = timeout_at(deadline, asking).await;
            (index, page.unwrap_or_else(|_| late()))
        });
    }
    let mut pages: Vec<_> = sandboxes.iter().map(|_| late()).collect();
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

fn late() -> Result<Vec<Sample>, String> {
    Err("its shim did not answer in time".to_owned())
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

async fn one(directory: &StateDir) -> Result<Vec<Sample>, String> {
    let text = text(directory).await?;
    exposition::of_shim(&text).map_err(|fault| format!("its page: {fault}"))
}

async fn text(directory: &StateDir) -> Result<String, String> {
    let told = |error: &dyn std::fmt::Display| format!("its shim: {error}");
    let stream = monitor::connect(directory)
        .await
        .map_err(|error| told(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| told(&error))?;
    let request = Request::get(monitor::METRICS)
        .header(http::header::HOST, "shim")
        .body(Empty::<Bytes>::new())
        .map_err(|error| told(&error))?;
    let answered = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| told(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), Limits::SHIM.bytes)
            .collect()
            .await;
        let body = body.map_err(|error| told(&error))?.to_bytes();
        match status.is_success() {
            true => String::from_utf8(body.to_vec()).map_err(|error| told(&error)),
            false => Err(told(&status)),
        }
    };
    // The connection ends with the answer.
    tokio::pin!(connection);
    tokio::pin!(answered);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        ended = &mut connection => match ended {
            Ok(()) => answered.await,
            Err(error) => Err(told(&error)),
        },
    }
}
