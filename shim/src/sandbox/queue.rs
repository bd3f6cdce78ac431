//! Who waits for the virtual machine to reach a state, and when each is answered. Pure: the waiters
//! are whatever the driver hands in.

use agent_api::GuestError;

use super::state::State;

/// What a waiter asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// That it runs.
    Running,
    /// That it has ended.
    Stopped,
}

/// The waiters that have no answer yet, oldest first.
#[derive(Debug)]
pub struct Queue<W> {
    waiting: Vec<(Goal, W)>,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
        }
    }
}

impl<W> Queue<W> {
    /// Adds one. It is answered by the next [`Self::settle`] that can.
    pub fn push(&mut self, goal: Goal, waiter: W) {
        self.waiting.push((goal, waiter));
    }

    /// Takes out every waiter that `state` answers, in order, with the answer.
    pub fn settle(&mut self, state: &State) -> Vec<(W, Result<(), GuestError>)> {
        let mut answered = Vec::new();
        let mut waiting = Vec::new();
        for (goal, waiter) in self.waiting.drain(..) {
            match answer(goal, state) {
                Some(answer) => answered.push((waiter, answer)),
                None => waiting.push((goal, waiter)),
            }
        }
        self.waiting = waiting;
        answered
    }
}

fn answer(goal: Goal, state: &State) -> Option<Result<(), GuestError>> {
    match (goal, state) {
        (Goal::Running, State::Running) | (Goal::Stopped, State::Stopped(_)) => Some(Ok(())),
        (Goal::Running, State::Stopped(cause)) => Some(Err(cause.clone())),
        (Goal::Running, State::Stopping) => Some(Err(super::state::stopped_on_request())),
        (_, State::New | State::Booting) | (Goal::Stopped, State::Running | State::Stopping) => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::ErrorCode;

    #[test]
    fn all_who_wait_for_one_boot_get_its_outcome_in_order() {
        let mut queue = Queue::default();
        queue.push(Goal::Running, 1);
        queue.push(Goal::Stopped, 2);
        queue.push(Goal::Running, 3);
        assert!(queue.settle(&State::Booting).is_empty());
        let answered: Vec<_> = queue
            .settle(&State::Running)
            .into_iter()
            .map(|(w, _)| w)
            .collect();
        assert_eq!(answered, [1, 3]);
        let cause = GuestError::new(ErrorCode::VmmExited, "vmm", "gone");
        assert_eq!(queue.settle(&State::Stopped(cause)), [(2, Ok(()))]);
    }

    #[test]
    fn who_comes_after_the_end_gets_the_cause() {
        let mut queue = Queue::default();
        queue.push(Goal::Running, ());
        let cause = GuestError::new(ErrorCode::GuestPanicked, "kernel", "panic");
        assert_eq!(
            queue.settle(&State::Stopped(cause.clone())),
            [((), Err(cause))]
        );
    }

    #[test]
    fn who_comes_while_it_stops_does_not_wait() {
        let mut queue = Queue::default();
        queue.push(Goal::Running, ());
        assert!(queue.settle(&State::Stopping)[0].1.is_err());
    }
}
