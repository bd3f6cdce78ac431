//! What a shim tells of itself: numbers for Prometheus, reports of starts for the node's monitor, and spans.
//!
//! ```text
//!   task::observed ─► call ───┐
//!   timeline ───────► started ┼─► counters ─► samples ─► /metrics on shim-monitor.sock
//!   /proc ────────────────────┘        ├────► report ──► @monitor.sock, where a monitor listens
//!                                      └────► span ─► export ──► a collector, where one is configured
//! ```
//!
//! Nothing here waits, and nothing has a label that a guest or a container chooses: methods, phases and codes
//! are closed lists.

mod export;
mod process;
pub mod report;
mod resolve;
mod span;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError, TraceParent};
use tokio::time::timeout;
use url::Url;

use crate::exposition::{Histogram, MILLISECONDS, SECONDS, Sample, number};
use crate::lock::lock;
use crate::sandbox::State;
use crate::state_dir::StateDir;
use export::Exporter;
use report::{Report, Reporter};
use span::{Open, Traces};

pub use span::Phase;

const CALLS: &str = "kata_shim_rpc_durations_histogram_milliseconds";
const ERRORS: &str = "cloister_shim_rpc_errors_total";
const PHASES: &str = "cloister_start_phase_seconds";
/// How long the shim's end waits for the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Processes of a sandbox beside the shim, as they are recorded, and the names of their families.
const PROCESSES: [(&str, &str); 2] = [("vmm", "kata_hypervisor"), ("virtiofsd", "kata_virtiofsd")];

/// A handle; clones are the same.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: StateDir,
    reporter: Reporter,
    counts: Mutex<Counts>,
    traces: Traces,
}

#[derive(Debug, Default)]
struct Counts {
    calls: BTreeMap<&'static str, Histogram>,
    errors: BTreeMap<(&'static str, &'static str), u64>,
    phases: BTreeMap<&'static str, Histogram>,
}

/// A call of containerd that is under way. It is counted when it is dropped: a caller that gives up ends it too.
#[derive(Debug)]
pub struct Call {
    telemetry: Telemetry,
    method: &'static str,
    began: Instant,
    span: Option<Open>,
    outcome: Result<(), ErrorCode>,
}

impl Telemetry {
    /// Of a sandbox.
    #[must_use]
    pub fn new(directory: StateDir) -> Self {
        let reporter = Reporter::beside(&directory);
        let counts = Mutex::default();
        Self(Arc::new(Inner {
            directory,
            reporter,
            counts,
            traces: Traces::new(),
        }))
    }

    /// A call about a container begins; its caller's trace is in the metadata, where it has one.
    #[must_use]
    pub fn call(
        &self,
        method: &'static str,
        container: &str,
        metadata: &HashMap<String, Vec<String>>,
    ) -> Call {
        let parent = TraceParent::of_metadata(metadata);
        Call {
            telemetry: self.clone(),
            method,
            began: Instant::now(),
            span: self.0.traces.begin(method, container, parent),
            outcome: Err(ErrorCode::Cancelled),
        }
    }

    /// A phase is over.
    pub fn phase(&self, phase: &Phase<'_>) {
        self.0.traces.phase(&self.sandbox(), phase);
    }

    /// The guest is asked to make a container: what it is to know of the trace.
    #[must_use]
    pub fn making(&self, container: &str) -> Option<TraceParent> {
        self.0.traces.making(container)
    }

    /// Sends spans to a collector from now on, with those that waited; or none ever.
    pub fn trace_to(&self, url: Option<Url>) {
        let traces = &self.0.traces;
        let Some(url) = url else { return traces.off() };
        let Some(waiting) = traces.take_waiting() else {
            return;
        };
        tokio::spawn(Exporter::new(waiting, url, &self.sandbox(), self).run());
    }

    /// Waits until the spans so far are sent, or it is too late for them.
    pub async fn flush(&self) {
        if let Some(flushed) = self.0.traces.flush() {
            let _ = timeout(FLUSH_TIMEOUT, flushed).await;
        }
    }

    fn lose_spans(&self, spans: usize) {
        self.0.traces.lose(u64::try_from(spans).unwrap_or(u64::MAX));
    }

    fn sandbox(&self) -> String {
        let name = self.0.directory.path().file_name();
        name.map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// A container runs; these are the phases of its start in milliseconds, and those of the pod's with its first.
    pub fn started(&self, phases: &[(&'static str, u64)]) {
        let mut counts = self.counts();
        for (phase, ms) in phases {
            let new = || Histogram::new(SECONDS);
            let histogram = counts.phases.entry(phase).or_insert_with(new);
            histogram.observe(number(*ms) / 1000.0);
        }
        drop(counts);
        let phases = phases.iter().map(|(phase, ms)| ((*phase).to_owned(), *ms));
        self.0.reporter.send(&Report::Started {
            phases: phases.collect(),
        });
    }

    /// A container could not be created or started.
    pub fn failed(&self, code: ErrorCode) {
        self.0.reporter.send(&Report::Failed { code });
    }

    /// All that the host knows of the sandbox.
    #[must_use]
    pub fn samples(&self, state: &State, containers: usize) -> Vec<Sample> {
        let containers = u32::try_from(containers).unwrap_or(u32::MAX);
        let mut all = vec![
            Sample::new("cloister_sandbox_state", 1.0).with("state", state_name(state)),
            Sample::new("cloister_sandbox_containers", f64::from(containers)),
        ];
        process::own("kata_shim", &mut all);
        for (role, family) in PROCESSES {
            let recorded = self.0.directory.recorded(role);
            if let Some(process) = recorded.filter(|process| process.is_alive()) {
                process::other(family, process.pid, &mut all);
            }
        }
        let lost = number(crate::log::lost());
        all.push(Sample::new("cloister_shim_log_lines_lost_total", lost));
        let lost = number(self.0.traces.lost());
        all.push(Sample::new("cloister_shim_spans_lost_total", lost));
        let counts = self.counts();
        for (method, histogram) in &counts.calls {
            histogram.samples(CALLS, Some(("action", method)), &mut all);
        }
        for ((method, code), count) in &counts.errors {
            let sample = Sample::new(ERRORS, number(*count)).with("action", method);
            all.push(sample.with("code", code));
        }
        for (phase, histogram) in &counts.phases {
            histogram.samples(PHASES, Some(("phase", phase)), &mut all);
        }
        all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.0.counts)
    }

    fn count(&self, method: &'static str, took: Duration, outcome: Result<(), ErrorCode>) {
        let mut counts = self.counts();
        let new = || Histogram::new(MILLISECONDS);
        let histogram = counts.calls.entry(method).or_insert_with(new);
        histogram.observe(took.as_secs_f64() * 1000.0);
        if let Err(code) = outcome {
            let count = counts.errors.entry((method, code.name())).or_default();
            *count = count.saturating_add(1);
        }
    }
}

impl Call {
    /// Notes how it ended.
    pub fn ended<T>(&mut self, answer: &ttrpc::Result<T>) {
        self.outcome = match answer {
            Ok(_) => Ok(()),
            Err(error) => Err(GuestError::from(error).code),
        };
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.telemetry.count(self.method, took, self.outcome);
        if let Some(span) = self.span.take() {
            self.telemetry.0.traces.end(span, self.outcome);
        }
        // An exec that fails is no start; a start of a container is told where it is one.
        let is_start = matches!(self.method, "create" | "create_sandbox" | "start_sandbox");
        if let (true, Err(code)) = (is_start, self.outcome) {
            self.telemetry.failed(code);
        }
    }
}

/// Samples of the guest that were left out.
#[must_use]
pub fn guest_left_out(samples: usize) -> Sample {
    let samples = u64::try_from(samples).unwrap_or(u64::MAX);
    Sample::new("cloister_guest_samples_left_out", number(samples))
}

/// What became of the question to the guest for its own figures.
#[must_use]
pub fn guest_outcome(outcome: &'static str) -> Sample {
    Sample::new("cloister_guest_metrics", 1.0).with("outcome", outcome)
}

fn state_name(state: &State) -> &'static str {
    match state {
        State::New => "new",
        State::Booting => "booting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Stopped(_) => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{of_shim, write};

    #[test]
    fn a_call_is_counted_by_its_method_and_its_code_also_when_nobody_waits_for_it() {
        let root = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::new(StateDir::at(&root.path().join("ns/pod")));
        let call = |method| telemetry.call(method, "c", &HashMap::new());
        call("state").ended(&Ok(()));
        let refused = GuestError::new(ErrorCode::NotFound, "state", "no such secret-name");
        call("state").ended::<()>(&Err(refused.into()));
        drop(call("create"));
        telemetry.started(&[("vmm", 120), ("create", 7)]);
        let page = write(telemetry.samples(&State::Booting, 2));
        let samples = of_shim(&page).unwrap();
        for line in [
            "kata_shim_rpc_durations_histogram_milliseconds_count{action=\"state\"} 2",
            "cloister_shim_rpc_errors_total{action=\"create\",code=\"cancelled\"} 1",
            "cloister_shim_rpc_errors_total{action=\"state\",code=\"not-found\"} 1",
            "cloister_start_phase_seconds_bucket{phase=\"vmm\",le=\"0.25\"} 1",
            "cloister_start_phase_seconds_bucket{phase=\"vmm\",le=\"0.1\"} 0",
            "cloister_sandbox_state{state=\"booting\"} 1",
            "cloister_sandbox_containers 2",
        ] {
            assert!(page.lines().any(|l| l == line), "no `{line}` in:\n{page}");
        }
        assert!(!page.contains("secret-name"));
        let own = |name: &str| {
            samples
                .iter()
                .find(|sample| sample.name == name)
                .unwrap()
                .value
        };
        assert!(own("kata_shim_process_resident_memory_bytes") > 100_000.0);
        assert!(own("kata_shim_threads") >= 1.0 && own("kata_shim_fds") >= 3.0);
    }

    /// The clock stands still but where somebody waits.
    #[tokio::test(start_paused = true)]
    async fn a_collector_that_says_nothing_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::new(StateDir::at(&directory.path().join("ns/pod")));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        telemetry.trace_to(url.parse().ok());
        // A few, which all find room, and a flood.
        for calls in [10, 1000] {
            let began = tokio::time::Instant::now();
            for _ in 0..calls {
                drop(telemetry.call("create", "c", &HashMap::new()));
                tokio::task::yield_now().await;
            }
            assert_eq!(began.elapsed(), Duration::ZERO, "a call waited");
            telemetry.flush().await;
            // A timer has milliseconds.
            assert!(began.elapsed() <= FLUSH_TIMEOUT + Duration::from_millis(1));
        }
        assert!(telemetry.0.traces.lost() > 0);
    }

    #[test]
    fn processes_that_run_are_there_and_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(&root.path().join("ns/pod"));
        directory.create().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        directory.record("vmm", child.id()).unwrap();
        let telemetry = Telemetry::new(directory);
        let names = |samples: &[Sample], prefix: &str| {
            samples
                .iter()
                .filter(|sample| sample.name.starts_with(prefix))
                .count()
        };
        let samples = telemetry.samples(&State::Running, 0);
        assert!(names(&samples, "kata_hypervisor_") > 20);
        assert_eq!(names(&samples, "kata_virtiofsd_"), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        let samples = telemetry.samples(&State::Running, 0);
        assert_eq!(names(&samples, "kata_hypervisor_"), 0);
    }
}
