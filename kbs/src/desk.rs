//! Where owners' policies are compiled and asked: on a few threads of their own.
//!
//! The interpreter looks at the clock between its steps, but one step may be a multiplication of numbers
//! with a million digits, and nothing can end a thread from outside. So an owner's policy never runs
//! where requests are served. Who asks waits until a deadline; a thread that is not done by then is left
//! behind with its policy, and another takes its place. A policy runs once at a time, and is refused while
//! it is stuck, so that it costs one thread however often it is asked. What was quick when it ran last goes
//! before all others, which share one thread, the slow ones last: so they wait for one another, and take
//! the memory of one. What ships with the broker is asked where the request is.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use policies::PolicyError;
use tokio::{sync::oneshot, time::timeout_at};

/// For an answer, and as much before it for a thread. The interpreter itself gives up much earlier.
const DECISION_TIME: Duration = Duration::from_secs(1);
/// The same for the work that a policy makes when it is loaded.
const COMPILE_TIME: Duration = Duration::from_secs(10);
/// Bytes of a thread's stack; only what is used is taken.
const STACK_BYTES: usize = 16 * 1024 * 1024;
/// Threads that are at work, at least and at most.
const THREADS: (usize, usize) = (2, 8);
/// Threads left behind: with so many, nothing is begun but what was quick when it ran last, and with so
/// many nothing at all.
const STUCK: usize = 4;
const ALL_STUCK: usize = 16;
/// What a quick policy takes at most.
const QUICK: Duration = Duration::from_millis(10);
/// Policies of which it is known how they ran last; fewer stay compiled.
const KNOWN: usize = 1024;
/// Questions that wait for a thread, and of them those to one policy: no more than clients may be connected.
const WAITING: usize = 4096;
const WAITING_FOR_ONE: usize = 2048;

/// The threads, and who waits for them.
pub(crate) struct Desk(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    threads: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    known: HashMap<u64, Pace>,
    /// Not counting those left behind.
    threads: usize,
    idle: usize,
    jobs: u64,
    closed: bool,
}

struct Job {
    number: u64,
    policy: u64,
    limit: Duration,
    work: Box<dyn FnOnce() + Send>,
}

/// How a policy ran last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Quick,
    Unknown,
    Slow,
}

struct Running {
    job: u64,
    policy: u64,
    since: Instant,
    until: Instant,
    stuck: bool,
}

impl Desk {
    /// Threads are started when they are needed.
    pub(crate) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(THREADS.0, usize::from);
        Self(Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            threads: cores.clamp(THREADS.0, THREADS.1),
        }))
    }

    /// Asks a policy for a decision.
    pub(crate) async fn ask<P: Send + Sync + 'static, T: Send + 'static>(
        &self,
        policy: &Arc<P>,
        question: impl FnOnce(&P) -> Result<T, PolicyError> + Send + 'static,
    ) -> Result<T, PolicyError> {
        let key = Arc::as_ptr(policy).addr() as u64;
        let policy = Arc::clone(policy);
        let work = move || question(&policy);
        self.run(key, "policy", DECISION_TIME, work).await?
    }

    /// Compiles the policy of this id.
    pub(crate) async fn compile<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PolicyError> {
        let mut key = DefaultHasher::new();
        id.hash(&mut key);
        self.run(key.finish(), id, COMPILE_TIME, work).await
    }

    /// Nothing more is begun, since too many policies do not come to an end.
    pub(crate) fn is_stuck(&self) -> bool {
        let mut state = self.0.lock();
        state.leave_behind();
        state.stuck() >= STUCK
    }

    async fn run<T: Send + 'static>(
        &self,
        policy: u64,
        name: &str,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PolicyError> {
        let slow = || PolicyError::Slow {
            rule: name.to_owned(),
            limit,
        };
        let (done, answer) = oneshot::channel();
        let work = move || {
            // Who asked may have gone.
            if !done.is_closed() {
                drop(done.send(work()));
            }
        };
        let number = match self.0.take(policy, limit, Box::new(work)) {
            Taken::Yes(number) => number,
            Taken::Stuck => return Err(slow()),
            Taken::Busy => return Err(PolicyError::Busy),
        };
        let mut answer = pin!(answer);
        let mut until = tokio::time::Instant::now() + limit;
        loop {
            match timeout_at(until, answer.as_mut()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(_)) => {
                    return Err(PolicyError::Evaluate {
                        rule: name.to_owned(),
                        detail: "the interpreter panicked".to_owned(),
                    });
                }
                Err(_) => {}
            }
            match self.0.late(number) {
                Late::NotBegun => return Err(PolicyError::Busy),
                Late::Until(end) if end > Instant::now() => until = end.into(),
                Late::Until(_) => return Err(slow()),
            }
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_all();
    }
}

/// What has become of a job whose answer is late.
enum Late {
    /// It waited for a thread, and does no more.
    NotBegun,
    /// It may go on until then.
    Until(Instant),
}

/// Whether a job waits for a thread now.
enum Taken {
    /// It does, under this number.
    Yes(u64),
    /// Its policy has not come to an end yet.
    Stuck,
    Busy,
}

impl State {
    fn stuck(&self) -> usize {
        self.running.iter().filter(|job| job.stuck).count()
    }

    /// Counts no longer on what is late.
    fn leave_behind(&mut self) {
        let now = Instant::now();
        for job in &mut self.running {
            if !job.stuck && job.until <= now {
                job.stuck = true;
                self.threads -= 1;
                tracing::error!("a policy does not come to an end: its thread is left behind");
            }
        }
    }

    fn pace(&self, policy: u64) -> Pace {
        self.known.get(&policy).copied().unwrap_or(Pace::Unknown)
    }

    /// The first job of the best pace whose policy is not at work; all that are not quick take turns.
    fn next(&mut self) -> Option<Job> {
        let free = |job: &Job| self.running.iter().all(|other| other.policy != job.policy);
        let first = |pace| {
            let mut jobs = self.waiting.iter();
            jobs.position(|job| self.pace(job.policy) == pace && free(job))
        };
        let mut at = first(Pace::Quick);
        let turn = |job: &Running| job.stuck || self.pace(job.policy) == Pace::Quick;
        if at.is_none() && self.running.iter().all(turn) {
            at = first(Pace::Unknown).or_else(|| first(Pace::Slow));
        }
        self.waiting.remove(at?)
    }

    /// Notes how a policy ran, and tells whether its thread was left behind.
    fn ran(&mut self, job: u64) -> bool {
        let Some(at) = self.running.iter().position(|running| running.job == job) else {
            return false;
        };
        let ran = self.running.swap_remove(at);
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        let pace = if ran.since.elapsed() > QUICK {
            Pace::Slow
        } else {
            Pace::Quick
        };
        self.known.insert(ran.policy, pace);
        ran.stuck
    }
}

impl Shared {
    /// A panic in another thread leaves the state whole: no policy runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(
        self: &Arc<Self>,
        policy: u64,
        limit: Duration,
        work: Box<dyn FnOnce() + Send>,
    ) -> Taken {
        let mut state = self.lock();
        state.leave_behind();
        let same = |other: &&Running| other.policy == policy;
        if state.running.iter().filter(same).any(|other| other.stuck) {
            return Taken::Stuck;
        }
        let before = state.waiting.iter();
        let before = before.filter(|other| other.policy == policy).count();
        let stuck = match state.pace(policy) {
            Pace::Quick => ALL_STUCK,
            Pace::Unknown | Pace::Slow => STUCK,
        };
        if state.stuck() >= stuck || state.waiting.len() >= WAITING || before >= WAITING_FOR_ONE {
            return Taken::Busy;
        }
        let number = state.jobs;
        state.jobs += 1;
        state.waiting.push_back(Job {
            number,
            policy,
            limit,
            work,
        });
        self.employ(&mut state);
        if state.threads == 0 {
            state.waiting.pop_back();
            return Taken::Busy;
        }
        drop(state);
        self.wake.notify_one();
        Taken::Yes(number)
    }

    /// Looks what has become of a job, and lets a thread that is late be replaced.
    fn late(self: &Arc<Self>, number: u64) -> Late {
        let mut state = self.lock();
        if let Some(at) = state.waiting.iter().position(|job| job.number == number) {
            state.waiting.remove(at);
            return Late::NotBegun;
        }
        let mut running = state.running.iter();
        let until = running.find(|job| job.job == number).map(|job| job.until);
        state.leave_behind();
        self.employ(&mut state);
        // What is not there any more has just ended, and its answer comes.
        Late::Until(until.unwrap_or_else(|| Instant::now() + QUICK))
    }

    /// Starts threads for those that wait, as many as there may be.
    fn employ(self: &Arc<Self>, state: &mut State) {
        while state.threads < self.threads && state.waiting.len() > state.idle {
            let shared = Arc::clone(self);
            let started = thread::Builder::new()
                .name("policies".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.serve());
            if let Err(error) = started {
                tracing::error!(%error, "a thread for policies cannot be started");
                return;
            }
            state.threads += 1;
            if state.threads >= state.waiting.len() {
                return;
            }
        }
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let Some(job) = state.next() else {
                if state.closed {
                    return;
                }
                state.idle += 1;
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            let number = job.number;
            state.running.push(Running {
                job: number,
                policy: job.policy,
                since: Instant::now(),
                until: Instant::now() + job.limit,
                stuck: false,
            });
            drop(state);
            // What is wrong in it is told by its sender, which is gone then.
            drop(catch_unwind(AssertUnwindSafe(job.work)));
            state = self.lock();
            let stuck = state.ran(number);
            // What waited for its turn may go on, elsewhere too.
            if !state.waiting.is_empty() {
                self.wake.notify_one();
            }
            if stuck {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    /// A policy that ends when it is told to, or when the test has gone.
    fn endless() -> (Sender<()>, impl FnOnce() + Send + 'static) {
        let (end, ends) = channel();
        (end, move || ends.recv().unwrap_or_default())
    }

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_policy_that_does_not_end_is_left_behind_and_others_go_on() {
        let desk = Desk::new();
        let mut ends = Vec::new();
        for policy in 0..STUCK as u64 {
            assert!(!desk.is_stuck());
            assert_eq!(desk.run(99, "good", LONG, || 7).await.unwrap(), 7);
            let (end, work) = endless();
            ends.push(end);
            let error = desk.run(policy, "bad", SHORT, work).await.unwrap_err();
            assert!(matches!(error, PolicyError::Slow { .. }), "{error}");
            if policy + 1 < STUCK as u64 {
                let error = desk.run(policy, "bad", LONG, || ()).await.unwrap_err();
                assert!(matches!(error, PolicyError::Slow { .. }), "{error}");
            }
        }
        assert!(desk.is_stuck());
        let error = desk.run(98, "new", LONG, || 7).await.unwrap_err();
        assert!(matches!(error, PolicyError::Busy), "{error}");
        assert_eq!(desk.run(99, "good", LONG, || 7).await.unwrap(), 7);
        ends.clear();
        while desk.is_stuck() {
            tokio::task::yield_now().await;
        }
        assert_eq!(desk.run(98, "new", LONG, || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn slow_policies_take_turns_and_leave_a_thread_to_quick_ones() {
        let desk = Desk::new();
        assert_eq!(desk.run(99, "good", LONG, || 7).await.unwrap(), 7);
        let mut ends = Vec::new();
        let mut asked = Vec::new();
        for policy in 0..20 {
            let (end, work) = endless();
            ends.push(end);
            asked.push(Box::pin(desk.run(policy, "slow", LONG, work)));
        }
        for asked in &mut asked {
            assert!(timeout(Duration::ZERO, asked).await.is_err());
        }
        assert_eq!(desk.run(99, "good", LONG, || 7).await.unwrap(), 7);
        ends.clear();
        for asked in asked {
            asked.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_is_that_question_s_failure() {
        let desk = Desk::new();
        for _ in 0..20 {
            let failing = || -> u8 { panic!("as a test does") };
            assert!(desk.run(1, "p", LONG, failing).await.is_err());
            assert_eq!(desk.run(1, "p", LONG, || 7).await.unwrap(), 7);
        }
    }

    #[tokio::test]
    async fn who_has_gone_holds_up_nobody() {
        let desk = Desk::new();
        for policy in 0..20 {
            let asked = desk.run(policy % 3, "p", LONG, || ());
            drop(timeout(Duration::ZERO, asked).await);
        }
        assert_eq!(desk.run(1, "p", LONG, || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_crowd_is_answered_in_its_turn_and_who_did_not_get_one_is_told_to_come_again() {
        let desk = Desk::new();
        let crowd = (0..1000).map(|number| desk.run(1, "p", LONG, move || number));
        let answers: Result<Vec<_>, _> = join_all(crowd).await.into_iter().collect();
        assert!(answers.unwrap().into_iter().eq(0..1000));
        let (end, work) = endless();
        let mut at_work = pin!(desk.run(1, "p", LONG, work));
        assert!(timeout(SHORT, at_work.as_mut()).await.is_err());
        let error = desk.run(1, "p", SHORT, || ()).await.unwrap_err();
        assert!(matches!(error, PolicyError::Busy), "{error}");
        drop(end);
        at_work.await.unwrap();
    }

    #[tokio::test]
    async fn the_wait_for_a_thread_is_not_taken_from_the_time_to_decide() {
        let desk = Desk::new();
        let slow = |_| desk.run(1, "p", 4 * SHORT, || thread::sleep(3 * SHORT));
        let answers = join_all((0..2).map(slow)).await;
        assert!(answers.into_iter().all(|answer| answer.is_ok()));
    }
}
