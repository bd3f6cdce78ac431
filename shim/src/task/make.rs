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
            container.doubt();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use agent_api::agent::{CreateContainerRequest, RemoveContainerRequest};
    use agent_api::agent_ttrpc::{AgentService, create_agent_service};
    use agent_api::empty::Empty;
    use agent_api::oci;
    use agent_api::pull::pull_progress::Phase;
    use agent_api::pull::{PullLayer, PullProgress, WatchPullRequest};
    use agent_api::pull_ttrpc::{PullService, create_pull_service};
    use async_trait::async_trait;
    use tokio::sync::{Notify, watch};
    use ttrpc::r#async::{Client, Server, TtrpcContext};

    use crate::guest::ProcessId;
    use crate::io::Stdio;
    use crate::process::Process;
    use crate::spec::group::Role;

    /// An agent that makes a container for as long as nobody removes it.
    #[derive(Default)]
    struct Busy {
        removed: Notify,
        removals: AtomicUsize,
        /// So many removals come before it knows the container.
        deaf: usize,
        answers: Answers,
    }

    #[derive(Default, PartialEq)]
    enum Answers {
        /// Never, unless it is told to remove the container.
        #[default]
        Never,
        AtOnce,
    }

    #[async_trait]
    impl AgentService for Busy {
        async fn create_container(
            &self,
            _: &TtrpcContext,
            _: CreateContainerRequest,
        ) -> ttrpc::Result<Empty> {
            if self.answers == Answers::Never {
                self.removed.notified().await;
                return Err(GuestError::new(ErrorCode::Cancelled, "pull", "given up").into());
            }
            Ok(Empty::new())
        }

        async fn remove_container(
            &self,
            _: &TtrpcContext,
            _: RemoveContainerRequest,
        ) -> ttrpc::Result<Empty> {
            if self.removals.fetch_add(1, Ordering::Relaxed) < self.deaf {
                return Err(GuestError::new(ErrorCode::NotFound, "container", "none").into());
            }
            self.removed.notify_one();
            Ok(Empty::new())
        }
    }

    #[async_trait]
    impl PullService for Busy {
        async fn watch_pull(
            &self,
            _: &TtrpcContext,
            request: WatchPullRequest,
        ) -> ttrpc::Result<PullProgress> {
            if request.seen > 0 {
                std::future::pending::<()>().await;
            }
            Ok(PullProgress {
                number: 1,
                phase: Phase::LAYERS.into(),
                layers: vec![PullLayer {
                    size: 8,
                    fetched: 3,
                    ..Default::default()
                }],
                ..Default::default()
            })
        }
    }

    /// What a test needs for as long as it runs.
    struct Stage {
        guest: Guest,
        agent: Arc<Busy>,
        _server: Server,
        _gone: watch::Sender<Option<GuestError>>,
        _directory: tempfile::TempDir,
    }

    async fn stage(agent: Busy, tells: bool) -> Stage {
        let (directory, agent) = (tempfile::tempdir().unwrap(), Arc::new(agent));
        let address = format!("unix://{}/agent", directory.path().display());
        let mut server = Server::new().bind(&address).unwrap();
        server = server.register_service(create_agent_service(agent.clone()));
        if tells {
            server = server.register_service(create_pull_service(agent.clone()));
        }
        server.start().await.unwrap();
        let (sender, gone) = watch::channel(None);
        Stage {
            guest: Guest::new(Client::connect(&address).await.unwrap(), gone),
            agent,
            _server: server,
            _gone: sender,
            _directory: directory,
        }
    }

    fn container() -> Container {
        let id = ProcessId {
            container: "c".into(),
            exec: String::new(),
        };
        let role = Role::Member {
            sandbox: "pod".into(),
        };
        let init = Process::new(id, Stdio::default(), None);
        let container = Container::new("c", PathBuf::from("/b"), role, init);
        container.note(|progress| progress.pull("a:1"));
        container
    }

    fn new() -> NewContainer {
        NewContainer {
            id: "c".into(),
            storages: Vec::new(),
            devices: Vec::new(),
            spec: oci::Spec::new(),
            sandbox_pidns: false,
            trace: None,
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn a_deadline_takes_the_container_back_and_says_how_far_it_was() {
        let stage = stage(Busy::default(), true).await;
        let error = make(&stage.guest, &container(), new(), SHORT).await;
        let error = error.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        assert!(
            error
                .message
                .contains("while pulling a:1: 0 of 1 layers unpacked, 3 B of 8 B"),
            "{error}"
        );
        assert_eq!(stage.agent.removals.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_cancelled_creation_is_taken_back_also_when_the_guest_hears_of_the_end_first() {
        let agent = Busy {
            deaf: 1,
            ..Busy::default()
        };
        let (stage, container) = (stage(agent, true).await, container());
        let cancel = async {
            sleep(Duration::from_millis(50)).await;
            container.cancel.cancel();
        };
        let (made, ()) = tokio::join!(make(&stage.guest, &container, new(), LONG), cancel);
        assert_eq!(made.unwrap_err().code, ErrorCode::Cancelled);
        assert_eq!(stage.agent.removals.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_guest_that_tells_no_progress_makes_containers_as_well() {
        let agent = Busy {
            answers: Answers::AtOnce,
            ..Busy::default()
        };
        let stage = stage(agent, false).await;
        make(&stage.guest, &container(), new(), LONG).await.unwrap();
        assert_eq!(stage.agent.removals.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn without_progress_a_deadline_says_what_may_deny_it() {
        let stage = stage(Busy::default(), false).await;
        let error = make(&stage.guest, &container(), new(), SHORT).await;
        let error = error.unwrap_err();
        assert!(error.message.contains("WatchPullRequest"), "{error}");
    }
}
