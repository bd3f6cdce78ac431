//! The life of a pod's virtual machine, as a pure state machine.
//!
//! ```text
//!          boot            booted
//!   New ─────────► Booting ───────► Running
//!    │              │  │              │  │
//!    │ stop    stop │  │ failed  stop │  │ gone
//!    │              ▼  │              ▼  │
//!    │        Stopping ─── ended ──►  │  │
//!    └────────────────────────────► Stopped ◄─┘
//! ```
//!
//! `Stopped` is final: a pod has one VM. Every way to it leaves the cause that later requests are
//! answered with.

use agent_api::{ErrorCode, GuestError};

/// Where the VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing was asked for yet.
    New,
    /// On its way from the VMM's start to the agent's first answer.
    Booting,
    /// The agent answers.
    Running,
    /// Being ended on request.
    Stopping,
    /// Ended, and why.
    Stopped(GuestError),
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Someone needs it to run.
    Boot,
    /// The agent answered.
    Booted,
    /// The boot came to nothing.
    BootFailed(GuestError),
    /// VM or agent ended by themselves.
    Gone(GuestError),
    /// Someone needs it to end.
    Stop,
    /// The VM that was being stopped is no more.
    Ended,
}

/// What the driver is to do about an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Start the VM.
    StartBoot,
    /// End the VM, politely if its agent answers.
    EndVm,
    /// Let go of what is left of the VM.
    Discard,
}

impl State {
    /// The next state and what is to be done. An input that has no meaning in a state changes
    /// nothing: it was overtaken by another.
    #[must_use]
    pub fn next(self, input: Input) -> (Self, Effect) {
        match (self, input) {
            (Self::New, Input::Boot) => (Self::Booting, Effect::StartBoot),
            (Self::New, Input::Stop) => (Self::Stopped(stopped_on_request()), Effect::None),
            (Self::Booting, Input::Booted) => (Self::Running, Effect::None),
            (Self::Booting, Input::BootFailed(cause) | Input::Gone(cause)) => {
                (Self::Stopped(cause), Effect::Discard)
            }
            (Self::Running, Input::Gone(cause)) => (Self::Stopped(cause), Effect::Discard),
            (Self::Booting | Self::Running, Input::Stop) => (Self::Stopping, Effect::EndVm),
            (Self::Stopping, Input::Ended | Input::Gone(_) | Input::BootFailed(_)) => {
                (Self::Stopped(stopped_on_request()), Effect::Discard)
            }
            (state, _) => (state, Effect::None),
        }
    }

    /// Whether nothing can happen any more.
    #[cfg(test)]
    fn is_final(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

/// What a request is told that comes after the end.
#[must_use]
pub fn stopped_on_request() -> GuestError {
    GuestError::new(
        ErrorCode::FailedPrecondition,
        "sandbox",
        "the sandbox was stopped",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause() -> GuestError {
        GuestError::new(ErrorCode::VmmExited, "vmm", "gone")
    }

    fn inputs() -> [Input; 6] {
        [
            Input::Boot,
            Input::Booted,
            Input::BootFailed(cause()),
            Input::Gone(cause()),
            Input::Stop,
            Input::Ended,
        ]
    }

    /// A small generator, so that a failure is the same on every machine.
    fn random(seed: &mut u64) -> usize {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*seed >> 33).unwrap()
    }

    #[test]
    fn the_straight_way_boots_once() {
        let (state, effect) = State::New.next(Input::Boot);
        assert_eq!(effect, Effect::StartBoot);
        let (state, effect) = state.next(Input::Boot);
        assert_eq!((state.clone(), effect), (State::Booting, Effect::None));
        let (state, _) = state.next(Input::Booted);
        assert_eq!(state, State::Running);
        let (state, effect) = state.next(Input::Stop);
        assert_eq!((state.clone(), effect), (State::Stopping, Effect::EndVm));
        assert!(state.next(Input::Ended).0.is_final());
    }

    #[test]
    fn a_vm_that_dies_leaves_its_cause() {
        let (state, effect) = State::Running.next(Input::Gone(cause()));
        assert_eq!((state, effect), (State::Stopped(cause()), Effect::Discard));
    }

    #[test]
    fn a_death_while_stopping_is_the_stop() {
        let (state, _) = State::Stopping.next(Input::Gone(cause()));
        assert_eq!(state, State::Stopped(stopped_on_request()));
    }

    #[test]
    fn in_any_sequence_the_vm_starts_once_and_is_discarded_once() {
        let inputs = inputs();
        let mut seed = 7;
        for _ in 0..2000 {
            let (mut state, mut starts, mut discards, mut ends) = (State::New, 0, 0, 0);
            for _ in 0..24 {
                let input = inputs[random(&mut seed) % inputs.len()].clone();
                let was_final = state.is_final();
                let before = state.clone();
                let (next, effect) = state.next(input);
                if was_final {
                    assert_eq!((&next, effect), (&before, Effect::None));
                }
                match effect {
                    Effect::None => {}
                    Effect::StartBoot => starts += 1,
                    Effect::EndVm => ends += 1,
                    Effect::Discard => discards += 1,
                }
                state = next;
            }
            assert!(starts <= 1 && ends <= starts && discards <= starts);
            assert_eq!(discards == 1, state.is_final() && starts == 1);
        }
    }
}
