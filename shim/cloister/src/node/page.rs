//! The node's page: what the monitor counts itself, and the samples of all sandboxes with their labels.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent_api::ErrorCode;
use bytes::Bytes;
use http::StatusCode;
use shim::exposition::{Group, Histogram, MILLISECONDS, SECONDS, Sample, number, write_groups};
use shim::state_dir::{self, StateDir};
use shim::telemetry::report::Report;
use shim::timeline::PHASES;

use super::ask::{self, AT_ONCE, Asked, DEAD, Patience, STATES, UNREACHABLE};

/// Sandboxes that are asked; those beyond are counted.
const MAX_SANDBOXES: usize = 1024;

/// The node, and what was counted since the monitor runs.
#[derive(Debug)]
pub(super) struct Node {
    root: PathBuf,
    patience: Patience,
    counts: Mutex<Counts>,
    /// The last page, and how many there were: who asks while one is made gets that one, with all who wait.
    last: tokio::sync::Mutex<Bytes>,
    made: AtomicU64,
}

#[derive(Debug)]
struct Counts {
    scrapes: u64,
    failed: u64,
    durations: Histogram,
    starts: u64,
    failures: BTreeMap<&'static str, u64>,
    phases: BTreeMap<&'static str, Histogram>,
    refused: u64,
}

impl Node {
    /// The node whose sandboxes are in this directory.
    pub(super) fn new(root: PathBuf) -> Self {
        let counts = Counts {
            scrapes: 0,
            failed: 0,
            durations: Histogram::new(MILLISECONDS),
            starts: 0,
            failures: BTreeMap::new(),
            phases: BTreeMap::new(),
            refused: 0,
        };
        Self {
            root,
            patience: Patience::default(),
            counts: Mutex::new(counts),
            last: tokio::sync::Mutex::default(),
            made: AtomicU64::new(0),
        }
    }

    /// Takes a report of a start.
    pub(super) fn take(&self, bytes: &[u8]) {
        let mut counts = self.counts();
        match Report::parse(bytes) {
            Ok(Report::Started { phases }) => {
                counts.starts = counts.starts.saturating_add(1);
                for phase in PHASES {
                    if let Some(ms) = phases.get(phase) {
                        let new = || Histogram::new(SECONDS);
                        let histogram = counts.phases.entry(phase).or_insert_with(new);
                        histogram.observe(number(*ms) / 1000.0);
                    }
                }
            }
            Ok(Report::Failed { code }) => {
                let count = counts.failures.entry(code.name()).or_default();
                *count = count.saturating_add(1);
            }
            Err(_) => counts.refused = counts.refused.saturating_add(1),
        }
    }

    /// The ids of the sandboxes, a line each.
    pub(super) fn list(&self) -> String {
        let all = state_dir::sandboxes(&self.root);
        all.iter()
            .map(|(_, sandbox)| format!("{sandbox}\n"))
            .collect()
    }

    /// All there is: made for all that wait for it by the first of them.
    pub(super) async fn page(&self) -> Bytes {
        let order = Ordering::Relaxed;
        let before = self.made.load(order);
        let mut last = self.last.lock().await;
        if self.made.load(order) == before {
            *last = self.scrape().await.into();
            self.made.fetch_add(1, order);
        }
        last.clone()
    }

    async fn scrape(&self) -> String {
        let began = Instant::now();
        let mut places = self.places(|_, _| true);
        // Where there is not time or room for all, each has its turn.
        let made = usize::try_from(self.made.load(Ordering::Relaxed)).unwrap_or_default();
        if let Some(turn) = made.wrapping_mul(AT_ONCE).checked_rem(places.len()) {
            places.rotate_left(turn);
        }
        let left_out = places.len().saturating_sub(MAX_SANDBOXES);
        places.truncate(MAX_SANDBOXES);
        let asked = ask::all(&places, self.patience).await;
        let own = Group {
            samples: self.own(&asked, left_out, began),
            ..Group::default()
        };
        let groups = asked.into_iter().map(Asked::labelled);
        write_groups(&std::iter::once(own).chain(groups).collect::<Vec<_>>())
    }

    /// What one sandbox tells.
    pub(super) async fn page_of(
        &self,
        sandbox: &str,
        namespace: Option<&str>,
    ) -> Result<String, (StatusCode, String)> {
        let wanted = |of: &str, id: &str| id == sandbox && namespace.is_none_or(|it| it == of);
        let mut places = self.places(wanted);
        places.truncate(MAX_SANDBOXES);
        if places.is_empty() {
            return Err((StatusCode::NOT_FOUND, "there is no such sandbox".to_owned()));
        }
        let mut groups = Vec::new();
        for one in ask::all(&places, self.patience).await {
            if let Err(why) = &one.page {
                return Err((StatusCode::BAD_GATEWAY, why.clone()));
            }
            groups.push(one.labelled());
        }
        Ok(write_groups(&groups))
    }

    fn places(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<(String, String, StateDir)> {
        let all = state_dir::sandboxes(&self.root).into_iter();
        let wanted = all.filter(|(namespace, sandbox)| wanted(namespace, sandbox));
        wanted
            .filter_map(|(namespace, sandbox)| {
                let directory = StateDir::under(&self.root, &namespace, &sandbox).ok()?;
                Some((namespace, sandbox, directory))
            })
            .collect()
    }

    /// The node's own samples; counts this scrape.
    fn own(&self, asked: &[Asked], left_out: usize, began: Instant) -> Vec<Sample> {
        let count = |count: usize| number(u64::try_from(count).unwrap_or(u64::MAX));
        let mut counts = self.counts();
        let failed = asked.iter().filter(|one| one.page.is_err()).count();
        counts.scrapes = counts.scrapes.saturating_add(1);
        counts.failed = counts
            .failed
            .saturating_add(u64::try_from(failed).unwrap_or(u64::MAX));
        counts
            .durations
            .observe(began.elapsed().as_secs_f64() * 1000.0);
        let running = asked.iter().filter(|one| one.state != DEAD).count();
        // What never was is told too: the first failure is to be seen as one more than none.
        let known = STATES.into_iter().chain([UNREACHABLE, DEAD]);
        let mut states: BTreeMap<&str, usize> = known.map(|state| (state, 0)).collect();
        for one in asked {
            *states.entry(one.state).or_default() += 1;
        }
        let mut all = vec![
            Sample::new("kata_monitor_running_shim_count", count(running)),
            Sample::new("kata_monitor_scrape_count", number(counts.scrapes)),
            Sample::new("kata_monitor_scrape_failed_count", number(counts.failed)),
            Sample::new("cloister_node_sandboxes_left_out", count(left_out)),
            Sample::new("cloister_node_starts_total", number(counts.starts)),
            Sample::new(
                "cloister_node_reports_refused_total",
                number(counts.refused),
            ),
        ];
        let durations = "kata_monitor_scrape_durations_histogram_milliseconds";
        counts.durations.samples(durations, None, &mut all);
        for (state, sandboxes) in states {
            all.push(Sample::new("cloister_node_sandboxes", count(sandboxes)).with("state", state));
        }
        for code in ErrorCode::ALL.iter().map(|code| code.name()) {
            let failures = counts.failures.get(code).copied().unwrap_or_default();
            let sample = Sample::new("cloister_node_start_failures_total", number(failures));
            all.push(sample.with("code", code));
        }
        for (phase, histogram) in &counts.phases {
            let label = Some(("phase", *phase));
            histogram.samples("cloister_node_start_phase_seconds", label, &mut all);
        }
        all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// Its samples, with the labels that tell whose they are.
    fn labelled(self) -> Group {
        let up = if self.page.is_ok() { 1.0 } else { 0.0 };
        let pod = self.pod.unwrap_or_default();
        let mut labels = vec![
            ("sandbox_id", self.sandbox),
            ("namespace", self.namespace),
            ("cri_uid", pod.uid),
            ("cri_name", pod.name),
            ("cri_namespace", pod.namespace),
        ];
        labels.retain(|(_, value)| !value.is_empty());
        let mut samples = self.page.unwrap_or_default();
        samples.push(Sample::new("cloister_sandbox_up", up));
        Group { labels, samples }
    }
}

#[cfg(test)]
mod tests;
