//! The one task that owns the VM. It takes requests, watches the VM, and publishes each new state;
//! what follows from what is decided in [`super::state`].

use std::future::Future;
use std::pin::Pin;

use agent_api::GuestError;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use super::View;
use super::boot::{self, Live, Plan};
use super::queue::{Goal, Queue};
use super::state::{Effect, Input, State};
use crate::guest::Guest;
use crate::state_dir::StateDir;
use crate::timeline::Timeline;
use crate::{cgroup, network};

type Answer = oneshot::Sender<Result<(), GuestError>>;
type Boot = Pin<Box<dyn Future<Output = Result<Live, GuestError>> + Send>>;

/// What the driver can be asked for.
#[derive(Debug)]
pub(super) enum Request {
    Boot(Box<Plan>, Answer),
    Stop(Answer),
    /// The same for a guest that is known not to answer.
    Kill(Answer),
}

/// The driver.
pub(super) struct Driver {
    timeline: Timeline,
    view: watch::Sender<View>,
    gone: watch::Sender<Option<GuestError>>,
    state: State,
    queue: Queue<Answer>,
    plan: Option<Box<Plan>>,
    /// Of the VM that was started.
    directory: Option<StateDir>,
    booting: Option<Boot>,
    live: Option<Live>,
    /// The guest is not asked when it ends.
    is_stuck: bool,
}

impl Driver {
    pub(super) fn new(timeline: Timeline, view: watch::Sender<View>) -> Self {
        Self {
            timeline,
            view,
            gone: watch::Sender::new(None),
            state: State::New,
            queue: Queue::default(),
            plan: None,
            directory: None,
            booting: None,
            live: None,
            is_stuck: false,
        }
    }

    /// Runs until the last handle is dropped.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let input = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.accept(request),
                    None => break,
                },
                input = next_of_vm(&mut self.booting, &mut self.live) => self.arrived(input),
            };
            self.step(input).await;
        }
        self.step(Input::Stop).await;
    }

    fn accept(&mut self, request: Request) -> Input {
        match request {
            Request::Boot(plan, answer) => {
                self.queue.push(Goal::Running, answer);
                self.plan = Some(plan);
                Input::Boot
            }
            Request::Stop(answer) => {
                self.queue.push(Goal::Stopped, answer);
                Input::Stop
            }
            Request::Kill(answer) => {
                self.is_stuck = true;
                self.queue.push(Goal::Stopped, answer);
                Input::Stop
            }
        }
    }

    fn arrived(&mut self, news: News) -> Input {
        match news {
            News::Booted(Ok(live)) => {
                self.live = Some(*live);
                Input::Booted
            }
            News::Booted(Err(cause)) => Input::BootFailed(cause),
            News::Gone(cause) => Input::Gone(cause),
        }
    }

    /// Applies an input and all that follows from it.
    async fn step(&mut self, input: Input) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let before = std::mem::replace(&mut self.state, State::New);
            let (state, effect) = before.next(next);
            self.state = state;
            match effect {
                Effect::None => {}
                Effect::StartBoot => {
                    if let Some(plan) = self.plan.take() {
                        self.directory = Some(plan.directory.clone());
                        let boot = boot::boot(*plan, self.timeline.clone(), self.gone.subscribe());
                        self.booting = Some(Box::pin(boot));
                    }
                }
                Effect::EndVm => {
                    self.publish();
                    // Dropping a boot under way kills what it has started.
                    self.booting = None;
                    match self.live.take() {
                        Some(live) if self.is_stuck => live.discard().await,
                        Some(live) => live.end().await,
                        None => {}
                    }
                    input = Some(Input::Ended);
                }
                Effect::Discard => {
                    self.booting = None;
                    if let Some(live) = self.live.take() {
                        live.discard().await;
                    }
                    if let Some(directory) = self.directory.take() {
                        network::undo(&directory);
                        cgroup::undo(&directory);
                    }
                }
            }
            self.publish();
        }
    }

    fn publish(&mut self) {
        if let State::Stopped(cause) = &self.state {
            self.gone
                .send_if_modified(|gone| gone.is_none() && gone.replace(cause.clone()).is_none());
        }
        let live = self.live.as_ref().filter(|_| self.state == State::Running);
        let guest: Option<Guest> = live.map(|live| live.guest.clone());
        let pid = self.live.as_ref().map(Live::pid);
        let hotplug = live.and_then(Live::hotplug);
        let disks = live.and_then(Live::disks);
        let network = live.map(Live::network);
        let state = self.state.clone();
        self.view.send_if_modified(|view| {
            let is_new = view.state != state;
            if is_new {
                info!(?state, "sandbox");
            }
            *view = View {
                state,
                pid: pid.or(view.pid),
                guest,
                hotplug,
                disks,
                network,
            };
            is_new
        });
        for (answer, result) in self.queue.settle(&self.state) {
            // Who asked may have given up.
            let _ = answer.send(result);
        }
    }
}

/// What the VM does by itself.
enum News {
    Booted(Result<Box<Live>, GuestError>),
    Gone(GuestError),
}

async fn next_of_vm(booting: &mut Option<Boot>, live: &mut Option<Live>) -> News {
    if let Some(boot) = booting {
        let outcome = boot.await;
        *booting = None;
        return News::Booted(outcome.map(Box::new));
    }
    match live {
        Some(live) => News::Gone(live.gone().await),
        None => std::future::pending().await,
    }
}
