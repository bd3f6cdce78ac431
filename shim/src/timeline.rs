//! How long each phase of a start took: one line on the log, and a file that tools read.
//!
//! What a guest says of its phases is held to this side's clock: nothing in it took longer than the VM is there,
//! or than the creation that it was a part of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use agent_api::{Event, Ready, TraceParent};
use serde::Serialize;
use tokio::sync::watch;

use crate::lock::lock;
use crate::state_dir::StateDir;
use crate::telemetry::{self, Telemetry};

/// The file in the state directory.
const FILE: &str = "timeline.json";
/// The phases of a pod's start, in order.
pub const PHASES: [&str; 7] = [
    "vmm", "kernel", "agent", "attest", "pull", "create", "start",
];
/// More entries than any pod has: the guest chooses how many events it sends.
const MAX_ENTRIES: usize = 512;

/// One phase that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The phase.
    pub phase: &'static str,
    /// Milliseconds.
    pub ms: u64,
    /// The container it was for; `None` where it was for the pod.
    pub container: Option<String>,
}

/// What a guest is asked to make, by this side's clock.
#[derive(Debug, Clone, Copy)]
struct Making {
    since: Instant,
    /// How long it took, where it is over.
    took: Option<Duration>,
}

/// The times within which a guest did what it tells.
#[derive(Debug, Default)]
struct Clock {
    /// When the VM was spawned.
    spawned: Option<Instant>,
    /// By container.
    makings: BTreeMap<String, Making>,
}

/// The phases of one sandbox, written down as they end.
#[derive(Debug, Clone)]
pub struct Timeline {
    sandbox: String,
    directory: StateDir,
    telemetry: Telemetry,
    entries: watch::Sender<Vec<Entry>>,
    clock: Arc<Mutex<Clock>>,
}

impl Timeline {
    /// An empty timeline.
    #[must_use]
    pub fn new(sandbox: &str, directory: StateDir, telemetry: Telemetry) -> Self {
        Self {
            sandbox: sandbox.to_owned(),
            directory,
            telemetry,
            entries: watch::Sender::new(Vec::new()),
            clock: Arc::default(),
        }
    }

    /// The VM is spawned now.
    pub fn spawned(&self) {
        self.clock().spawned = Some(Instant::now());
    }

    /// The guest is asked to make a container: what it is to know of the trace.
    #[must_use]
    pub fn making(&self, container: &str) -> Option<TraceParent> {
        let mut clock = self.clock();
        if clock.makings.len() < MAX_ENTRIES || clock.makings.contains_key(container) {
            let making = Making {
                since: Instant::now(),
                took: None,
            };
            clock.makings.insert(container.to_owned(), making);
        }
        drop(clock);
        self.telemetry.making(container)
    }

    /// The guest has made it, or has not.
    pub fn made(&self, container: &str) {
        if let Some(making) = self.clock().makings.get_mut(container) {
            making.took = Some(making.since.elapsed());
        }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        lock(&self.clock)
    }

    /// Notes a phase that this side measured.
    pub fn note(&self, phase: &'static str, took: Duration, container: Option<&str>) {
        self.add(&telemetry::Phase {
            name: phase,
            took,
            ended: Duration::ZERO,
            container,
            span: None,
        });
    }

    /// Adds a phase; one that the guest measured took no longer than it can have.
    fn add(&self, phase: &telemetry::Phase<'_>) {
        let most = self.clock().most(phase.name, phase.container);
        let took = most.map_or(phase.took, |most| {
            phase.took.min(most.saturating_sub(phase.ended))
        });
        let ended = most.map_or(phase.ended, |most| phase.ended.min(most));
        let phase = &telemetry::Phase {
            took,
            ended,
            ..*phase
        };
        let entry = Entry {
            phase: phase.name,
            ms: u64::try_from(phase.took.as_millis()).unwrap_or(u64::MAX),
            container: phase.container.map(str::to_owned),
        };
        let added = self.entries.send_if_modified(|entries| {
            let has_room = entries.len() < MAX_ENTRIES;
            if has_room {
                entries.push(entry);
            }
            has_room
        });
        if added {
            self.telemetry.phase(phase);
            self.save();
        }
    }

    /// Notes what the agent says of the guest's boot.
    pub fn note_ready(&self, ready: &Ready) {
        let agent = Duration::from_millis(ready.agent_ms);
        self.add(&telemetry::Phase {
            name: "kernel",
            took: Duration::from_millis(ready.kernel_ms),
            ended: agent,
            container: None,
            span: None,
        });
        self.note("agent", agent, None);
    }

    /// Notes a phase that the guest measured. Creation and start are measured on this side, where
    /// the way to the guest counts too.
    pub fn note_event(&self, event: &Event) {
        let phase = match event.phase {
            agent_api::Phase::Attest => "attest",
            agent_api::Phase::Pull => "pull",
            agent_api::Phase::Create | agent_api::Phase::Start => return,
        };
        self.add(&telemetry::Phase {
            name: phase,
            took: Duration::from_millis(event.ms),
            ended: Duration::ZERO,
            container: event.container.as_deref(),
            span: event.span,
        });
    }

    /// The line for one container: the pod's phases and its own, in milliseconds.
    #[must_use]
    pub fn line(&self, container: &str) -> String {
        let entries = self.entries.borrow();
        let mut line = format!("phases sandbox={} container={container}", self.sandbox);
        for (phase, ms) in of(&entries, |id| id.is_none_or(|id| id == container)) {
            line.push_str(&format!(" {phase}={ms}"));
        }
        line
    }

    /// The phases of a container in milliseconds; the pod's are with the one whose id it has.
    #[must_use]
    pub fn phases(&self, container: &str) -> Vec<(&'static str, u64)> {
        let has_pod = container == self.sandbox;
        of(&self.entries.borrow(), |id| {
            id.map_or(has_pod, |id| id == container)
        })
    }

    fn save(&self) {
        #[derive(Serialize)]
        struct File<'a> {
            sandbox: &'a str,
            phases: Vec<Entry>,
        }
        let entries = self.entries.borrow();
        let phases = entries.iter().map(|entry| Entry {
            ms: alone(entry, &entries),
            ..entry.clone()
        });
        let file = File {
            sandbox: &self.sandbox,
            phases: phases.collect(),
        };
        // A measurement that cannot be written down is no reason to fail a pod.
        if let Ok(text) = serde_json::to_vec_pretty(&file) {
            let _ = self.directory.write(FILE, &text);
        }
    }
}

impl Clock {
    /// How long a phase may have taken that the guest tells; `None` for one that this side measured.
    fn most(&self, phase: &str, container: Option<&str>) -> Option<Duration> {
        let of = |making: &Making| making.took.unwrap_or_else(|| making.since.elapsed());
        match (phase, container) {
            ("kernel" | "agent", _) => Some(self.spawned.map_or(Duration::ZERO, |at| at.elapsed())),
            ("pull", Some(container)) => {
                Some(self.makings.get(container).map_or(Duration::ZERO, of))
            }
            // The guest attests for the pod while it makes some container of it.
            ("attest" | "pull", _) => Some(self.makings.values().map(of).max().unwrap_or_default()),
            _ => None,
        }
    }
}

/// The first of each phase whose container is wanted, in order.
fn of(entries: &[Entry], wanted: impl Fn(Option<&str>) -> bool) -> Vec<(&'static str, u64)> {
    let of_phase = |phase: &&'static str| {
        let mut all = entries.iter().filter(|entry| entry.phase == *phase);
        let entry = all.find(|entry| wanted(entry.container.as_deref()))?;
        Some((*phase, alone(entry, entries)))
    };
    PHASES.iter().filter_map(of_phase).collect()
}

/// Milliseconds of a phase without the one inside it: a guest pulls its image while it creates the
/// container. (It attests at the same time, so `attest` is no part of the sum.)
fn alone(entry: &Entry, all: &[Entry]) -> u64 {
    let is_inside = |other: &&Entry| other.phase == "pull" && other.container == entry.container;
    let inside = match entry.phase {
        "create" => all.iter().find(is_inside).map_or(0, |pull| pull.ms),
        _ => 0,
    };
    entry.ms.saturating_sub(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_pod_and_the_container_in_order() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(root.path());
        let telemetry = Telemetry::new(directory.clone());
        let timeline = Timeline::new("pod", directory, telemetry);
        timeline.note("create", Duration::from_millis(5), Some("a"));
        timeline.note("create", Duration::from_millis(6), Some("b"));
        timeline.note("vmm", Duration::from_millis(7), None);
        let _ = timeline.making("b");
        let hour = Duration::from_secs(3600);
        timeline.clock().makings.get_mut("b").unwrap().took = Some(hour);
        timeline.note("pull", Duration::from_millis(4), Some("b"));
        assert_eq!(
            timeline.line("b"),
            "phases sandbox=pod container=b vmm=7 pull=4 create=2"
        );
        assert_eq!(timeline.phases("b"), [("pull", 4), ("create", 2)]);
        assert_eq!(timeline.phases("pod"), [("vmm", 7)]);
    }

    #[test]
    fn a_guest_cannot_say_that_it_took_longer_than_it_was_there() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(root.path());
        let timeline = Timeline::new("pod", directory.clone(), Telemetry::new(directory));
        let began = Instant::now();
        timeline.spawned();
        timeline.note_ready(&Ready {
            version: String::new(),
            kernel_ms: u64::MAX,
            agent_ms: 1 << 50,
        });
        let event = |phase, container: Option<&str>| Event {
            phase,
            container: container.map(str::to_owned),
            ms: u64::MAX,
            span: None,
        };
        let _ = timeline.making("c");
        timeline.note_event(&event(agent_api::Phase::Attest, None));
        timeline.note_event(&event(agent_api::Phase::Pull, Some("c")));
        timeline.made("c");
        timeline.note_event(&event(agent_api::Phase::Pull, Some("nobody")));
        let whole = u64::try_from(began.elapsed().as_millis()).unwrap();
        let entries = timeline.entries.borrow();
        assert_eq!(entries.len(), 5);
        assert!(entries.iter().all(|entry| entry.ms <= whole), "{entries:?}");
        assert_eq!(entries[4].ms, 0, "what nobody asked for took no time");
    }
}
