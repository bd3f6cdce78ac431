//! One pod's virtual machine, as the rest of the shim sees it.
//!
//! One task, the driver, owns the `Vm`. Everyone else sends it a request, and reads where it is
//! from a [`View`]. No one holds a lock while the guest works: a view is a snapshot, and the
//! [`Guest`] in it is a client that any number of callers share.

mod boot;
mod driver;
mod fault;
mod health;
pub mod queue;
pub mod state;
mod tail;

use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use hypervisor::{Disks, HotNics, Hotplug};
use tokio::sync::{mpsc, oneshot, watch};

pub use boot::Plan;
pub use state::State;

use crate::guest::Guest;
use crate::network::Late;
use crate::timeline::Timeline;

/// Requests that wait for the driver. Each is from a call that waits for its answer.
const MAX_REQUESTS: usize = 64;

/// Where the VM is, and how to talk to it.
#[derive(Debug, Clone)]
pub struct View {
    /// The state.
    pub state: State,
    /// QEMU's process id while there is one.
    pub pid: Option<u32>,
    /// The agent while it runs.
    pub guest: Option<Guest>,
    /// What makes the VM grow while it runs, where it may.
    pub hotplug: Option<Hotplug>,
    /// What lets disks come and go while it runs, where they may.
    pub disks: Option<Disks>,
    /// The pod's network, and what lets interfaces come, where they may.
    pub network: Option<(Arc<Late>, Option<HotNics>)>,
}

/// A handle of the driver.
#[derive(Debug, Clone)]
pub struct Sandbox {
    requests: mpsc::Sender<driver::Request>,
    view: watch::Receiver<View>,
}

impl Sandbox {
    /// Starts a driver that has no VM yet. It ends when the last handle is dropped, and the VM with
    /// it.
    #[must_use]
    pub fn new(timeline: Timeline) -> Self {
        let (requests, receiver) = mpsc::channel(MAX_REQUESTS);
        let (publisher, view) = watch::channel(View {
            state: State::New,
            pid: None,
            guest: None,
            hotplug: None,
            disks: None,
            network: None,
        });
        tokio::spawn(driver::Driver::new(timeline, publisher).run(receiver));
        Self { requests, view }
    }

    /// Boots the VM, or joins the boot that is under way, and returns when the agent answers.
    ///
    /// # Errors
    /// Why the VM does not run.
    pub async fn boot(&self, plan: Plan) -> Result<(), GuestError> {
        self.ask(|answer| driver::Request::Boot(Box::new(plan), answer))
            .await
    }

    /// Ends the VM, and returns when nothing is left of it. Can be asked for any number of times.
    pub async fn stop(&self) {
        // An error means that the driver, and so the VM, is gone.
        let _ = self.ask(driver::Request::Stop).await;
    }

    /// The same without a word to the guest, which is known not to answer.
    pub async fn kill(&self) {
        let _ = self.ask(driver::Request::Kill).await;
    }

    /// Waits for the end of the VM, whoever brought it about.
    pub async fn ended(&self) {
        let mut view = self.view.clone();
        // An error means that the driver, and so the VM, is gone.
        let _ = view
            .wait_for(|view| matches!(view.state, State::Stopped(_)))
            .await;
    }

    /// The agent.
    ///
    /// # Errors
    /// Why there is none.
    pub fn guest(&self) -> Result<Guest, GuestError> {
        let view = self.view.borrow();
        match (&view.state, &view.guest) {
            (State::Running, Some(guest)) => Ok(guest.clone()),
            (State::Stopped(cause), _) => Err(cause.clone()),
            _ => {
                let text = "the sandbox's VM is not running";
                Err(GuestError::new(
                    ErrorCode::FailedPrecondition,
                    "sandbox",
                    text,
                ))
            }
        }
    }

    /// Gives the guest the interfaces that came to the pod's namespace after the VM. After the last look nobody does.
    ///
    /// # Errors
    /// Names the interface, or what the agent answers.
    pub async fn look_at_network(&self, guest: &Guest, is_last: bool) -> Result<(), GuestError> {
        let network = self.view.borrow().network.clone();
        match network {
            Some((late, hot)) => late.look_again(guest, hot.as_ref(), is_last).await,
            None => Ok(()),
        }
    }

    /// A snapshot.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), GuestError>>) -> driver::Request,
    ) -> Result<(), GuestError> {
        let gone = || {
            GuestError::new(
                ErrorCode::FailedPrecondition,
                "sandbox",
                "the sandbox is gone",
            )
        };
        let (answer, answered) = oneshot::channel();
        self.requests
            .send(request(answer))
            .await
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}
