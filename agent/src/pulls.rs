//! The pulls that are on their way, for a host that asks how far they are.
//!
//! Who asks says what was seen last and waits for something newer, so that nothing is sent that nobody
//! waits for, and a host that asks as often as it can gets ten answers in a second. Sizes, counts and
//! phases are told and nothing else: a host that carries the bytes knows them already.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agent_api::pull::pull_progress::Phase;
use agent_api::pull::{PullLayer, PullProgress, WatchPullRequest};
use agent_api::{ErrorCode, GuestError, limit};
use image_rs::pull::{Progress, PullPhase};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::gate::Allowed;
use crate::path::check_id;

const PHASE: &str = "pull";
/// Calls that wait at a time: a host has one for each container that it makes.
const MAX_WAITING: usize = 256;
const INTERVAL: Duration = Duration::from_millis(limit::PULL_INTERVAL_MS);
const WAIT: Duration = Duration::from_secs(limit::PULL_WAIT_SECONDS);

/// The pulls that are on their way, by container. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pulls {
    table: Arc<watch::Sender<Table>>,
    waiting: Arc<Semaphore>,
}

type Table = HashMap<String, watch::Receiver<Progress>>;

/// A pull's place in the list, which ends with the value.
#[derive(Debug)]
pub struct Listed {
    pulls: Pulls,
    container: String,
    progress: watch::Receiver<Progress>,
}

impl Default for Pulls {
    fn default() -> Self {
        Self {
            table: Arc::new(watch::Sender::default()),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }
}

impl Pulls {
    /// Lists the pull for a container: into the sender goes how far it is.
    #[must_use]
    pub fn list(&self, container: &str) -> (watch::Sender<Progress>, Listed) {
        let (sender, progress) = watch::channel(Progress::default());
        self.table.send_modify(|table| {
            table.insert(container.to_owned(), progress.clone());
        });
        let listed = Listed {
            pulls: self.clone(),
            container: container.to_owned(),
            progress,
        };
        (sender, listed)
    }

    /// Waits until the pull of a container is further than the host has seen.
    ///
    /// # Errors
    ///
    /// There is no such pull, nor does one begin in a while; or too many calls wait.
    pub async fn watch(
        &self,
        request: Allowed<WatchPullRequest>,
    ) -> Result<PullProgress, GuestError> {
        check_id(PHASE, "container_id", &request.container_id)?;
        let _turn = self.waiting.try_acquire().map_err(|_| {
            let message = format!("more than {MAX_WAITING} calls wait for pulls");
            GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
        })?;
        let news = timeout(WAIT, self.news(&request.container_id, request.seen)).await;
        if matches!(news, Ok(true)) && request.seen > 0 {
            // What comes in the meantime is told with it.
            sleep(INTERVAL).await;
        }
        let table = self.table.borrow();
        let progress = table.get(&request.container_id).ok_or_else(|| {
            let message = format!("no image is pulled for container {}", request.container_id);
            GuestError::new(ErrorCode::NotFound, PHASE, message)
        })?;
        Ok(told(progress))
    }

    /// Waits for something that is newer than `seen`; returns whether that is a state of a pull, and not
    /// its end.
    async fn news(&self, container: &str, seen: u64) -> bool {
        let mut table = self.table.subscribe();
        loop {
            let pull = table.borrow_and_update().get(container).cloned();
            match pull {
                None if seen > 0 => return false,
                None => {
                    // The sender is in this value, so there always is one.
                    let _ = table.changed().await;
                }
                Some(mut pull) => {
                    pull.mark_unchanged();
                    if number(&pull) > seen {
                        return true;
                    }
                    let more = async {
                        if pull.changed().await.is_err() && number(&pull) <= seen {
                            std::future::pending().await
                        }
                    };
                    tokio::select! {
                        () = more => {}
                        _ = table.changed() => {}
                    }
                }
            }
        }
    }
}

impl Listed {
    /// Waits until nothing of the pull is left but what it has published: also of one that was cut short,
    /// whose threads end a little later.
    pub async fn ended(mut self) {
        while self.progress.changed().await.is_ok() {}
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.pulls.table.send_modify(|table| {
            table.remove(&self.container);
        });
    }
}

/// The number of a state; the end of the pull is one more, while the container still waits for something.
fn number(pull: &watch::Receiver<Progress>) -> u64 {
    let ended = u64::from(has_ended(pull));
    pull.borrow()
        .changes
        .saturating_add(1)
        .saturating_add(ended)
}

/// Whoever pulls has let go of it.
fn has_ended(pull: &watch::Receiver<Progress>) -> bool {
    pull.has_changed().is_err()
}

fn told(pull: &watch::Receiver<Progress>) -> PullProgress {
    let (number, ended) = (number(pull), has_ended(pull));
    let progress = pull.borrow();
    let phase = match progress.phase {
        _ if ended => Phase::ATTEST,
        PullPhase::Resolve => Phase::RESOLVE,
        PullPhase::Keys => Phase::KEYS,
        PullPhase::Layers => Phase::LAYERS,
        PullPhase::Publish => Phase::PUBLISH,
        PullPhase::Done => Phase::ATTEST,
    };
    let mut layers: Vec<PullLayer> = Vec::new();
    for layer in &progress.layers {
        let (size, fetched, unpacked) = (layer.size, layer.fetched, layer.done);
        let is_full = layers.len() >= limit::MAX_PULL_LAYERS;
        match layers.last_mut() {
            Some(last) if is_full => {
                last.size = last.size.saturating_add(size);
                last.fetched = last.fetched.saturating_add(fetched);
                last.unpacked &= unpacked;
            }
            _ => layers.push(PullLayer {
                size,
                fetched,
                unpacked,
                ..Default::default()
            }),
        }
    }
    PullProgress {
        number,
        phase: phase.into(),
        layers,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Gate;
    use image_rs::pull::LayerProgress;

    fn ask(container: &str, seen: u64) -> Allowed<WatchPullRequest> {
        let gate = Gate::new(None, None).unwrap();
        let container_id = container.to_owned();
        gate.admit(WatchPullRequest {
            container_id,
            seen,
            ..Default::default()
        })
        .unwrap()
    }

    fn advance(sender: &watch::Sender<Progress>, phase: PullPhase) {
        sender.send_modify(|progress| {
            progress.changes += 1;
            progress.phase = phase;
        });
    }

    fn layer(size: u64, fetched: u64) -> LayerProgress {
        LayerProgress {
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            size,
            fetched,
            done: fetched == size,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_waits_for_the_pull_and_then_for_its_news() {
        let pulls = Pulls::default();
        let (asked, (sender, listed)) = tokio::join!(pulls.watch(ask("c", 0)), async {
            sleep(Duration::from_secs(1)).await;
            pulls.list("c")
        });
        let first = asked.unwrap();
        assert_eq!((first.number, first.phase), (1, Phase::RESOLVE.into()));
        let (news, ()) = tokio::join!(pulls.watch(ask("c", first.number)), async {
            sleep(Duration::from_secs(1)).await;
            advance(&sender, PullPhase::Keys);
            advance(&sender, PullPhase::Layers);
        });
        let news = news.unwrap();
        assert_eq!((news.number, news.phase), (3, Phase::LAYERS.into()));
        // The pull has ended, and the attestation has not.
        drop(sender);
        let waits = pulls.watch(ask("c", news.number)).await.unwrap();
        assert_eq!((waits.number, waits.phase), (4, Phase::ATTEST.into()));
        let (end, ()) = tokio::join!(pulls.watch(ask("c", 4)), async {
            sleep(Duration::from_secs(1)).await;
            drop(listed);
        });
        assert_eq!(end.unwrap_err().code, ErrorCode::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn without_news_the_answer_is_what_there_is_or_that_there_is_nothing() {
        let pulls = Pulls::default();
        let nothing = pulls.watch(ask("c", 0)).await.unwrap_err();
        assert_eq!(nothing.code, ErrorCode::NotFound);
        let (_sender, _listed) = pulls.list("c");
        assert_eq!(pulls.watch(ask("c", 1)).await.unwrap().number, 1);
        assert!(pulls.watch(ask("../c", 0)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn however_often_a_host_asks_it_gets_ten_answers_in_a_second() {
        let pulls = Pulls::default();
        let (sender, _listed) = pulls.list("c");
        let busy = async {
            loop {
                advance(&sender, PullPhase::Layers);
                sleep(Duration::from_millis(1)).await;
            }
        };
        let asking = async {
            let (mut answers, mut seen) = (0, 0);
            let _ = timeout(Duration::from_secs(1), async {
                loop {
                    seen = pulls.watch(ask("c", seen)).await.unwrap().number;
                    answers += 1;
                }
            })
            .await;
            answers
        };
        tokio::select! {
            () = busy => {}
            answers = asking => assert!((8..=11).contains(&answers), "{answers}"),
        }
    }

    #[test]
    fn many_layers_are_told_in_few_and_none_is_lost() {
        let pulls = Pulls::default();
        let (sender, listed) = pulls.list("c");
        let count = limit::MAX_PULL_LAYERS + 10;
        sender.send_modify(|progress| progress.layers = vec![layer(3, 2); count]);
        let told = told(&listed.progress);
        assert_eq!(told.layers.len(), limit::MAX_PULL_LAYERS);
        let sum: u64 = told.layers.iter().map(|layer| layer.size).sum();
        assert_eq!(sum, 3 * count as u64);
    }

    #[tokio::test]
    async fn the_end_is_when_the_last_of_the_pull_lets_go() {
        let pulls = Pulls::default();
        let (sender, listed) = pulls.list("c");
        let thread = sender.clone();
        let ended = tokio::spawn(listed.ended());
        drop(sender);
        tokio::task::yield_now().await;
        assert!(!ended.is_finished());
        drop(thread);
        ended.await.unwrap();
        assert!(pulls.table.borrow().is_empty());
    }
}
