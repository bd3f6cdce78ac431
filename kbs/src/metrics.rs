//! What a broker counts of itself. Names are Trustee's where it has them; labels are of closed sets, and
//! neither the name of a resource nor anything else that a client chose is one.

use std::{fs, sync::atomic::AtomicI64, time::Duration};

use http::{Method, StatusCode};
use kbs_protocol::{ErrorKind, PREFIX};
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::{
    record::{Entry, Kind, Outcome},
    store::Figures,
};

/// What the text is, for who fetches it.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds: from a health check to a fetch of collateral.
const BUCKETS: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

type One = [(&'static str, String); 1];
type Two = [(&'static str, &'static str); 2];
type Three = [(&'static str, String); 3];

/// Everything that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Three, Counter>,
    durations: Family<One, Histogram, fn() -> Histogram>,
    errors: Family<One, Counter>,
    auth: Outcomes,
    attestation: Outcomes,
    attested: Family<One, Counter>,
    refused: Family<One, Counter>,
    policy: Policy,
    resource: Resource,
    store: Load,
    pub(crate) connections: Gauge,
    /// The last second of the certificate.
    pub(crate) certificate_end: Gauge<i64, AtomicI64>,
}

#[derive(Default)]
struct Outcomes {
    requests: Counter,
    successes: Counter,
    errors: Counter,
}

#[derive(Default)]
struct Policy {
    evaluations: Counter,
    approvals: Counter,
    violations: Counter,
    errors: Counter,
}

#[derive(Default)]
struct Resource {
    reads: Counter,
    writes: Counter,
    deletes: Counter,
}

#[derive(Default)]
struct Load {
    connections: Family<Two, Gauge>,
    waiting: Gauge,
    memory: Gauge,
    files: Gauge,
}

/// One answer.
pub(crate) struct Answered<'a> {
    pub(crate) method: &'a Method,
    /// The pattern, where a route was found.
    pub(crate) route: Option<&'a str>,
    pub(crate) status: StatusCode,
    pub(crate) error: Option<ErrorKind>,
    pub(crate) took: Duration,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("kbs"),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            errors: Family::default(),
            auth: Outcomes::default(),
            attestation: Outcomes::default(),
            attested: Family::default(),
            refused: Family::default(),
            policy: Policy::default(),
            resource: Resource::default(),
            store: Load::default(),
            connections: Gauge::default(),
            certificate_end: Gauge::default(),
        };
        metrics.register_requests();
        metrics.register_decisions();
        metrics.register_load();
        metrics
    }

    fn register_requests(&mut self) {
        let to = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.register("build", "The program", version);
        to.register("http_requests", "Requests", self.requests.clone());
        to.register(
            "http_request_duration_seconds",
            "From a request's head to its answer's",
            self.durations.clone(),
        );
        to.register(
            "http_active_connections",
            "Connections that are open",
            self.connections.clone(),
        );
        to.register("errors", "Refusals by type", self.errors.clone());
        for (name, one) in [("auth", &self.auth), ("attestation", &self.attestation)] {
            let to = to.sub_registry_with_prefix(name);
            to.register("requests", "Requests", one.requests.clone());
            to.register(
                "errors",
                "Refused for another reason than the evidence",
                one.errors.clone(),
            );
        }
        to.register("auth_successes", "Challenges", self.auth.successes.clone());
    }

    fn register_decisions(&mut self) {
        let to = &mut self.registry;
        to.register(
            "attestation_successes",
            "Evidence taken",
            self.attested.clone(),
        );
        to.register(
            "attestation_failures",
            "Evidence refused",
            self.refused.clone(),
        );
        let policy = &self.policy;
        for (name, help, counter) in [
            (
                "evaluations",
                "Questions to the release policy",
                &policy.evaluations,
            ),
            ("approvals", "Releases that it allowed", &policy.approvals),
            ("violations", "Releases that it refused", &policy.violations),
            ("errors", "Policies that failed", &policy.errors),
        ] {
            to.register(format!("policy_{name}"), help, counter.clone());
        }
        let resource = &self.resource;
        for (name, help, counter) in [
            ("reads", "Releases", &resource.reads),
            ("writes", "Resources set", &resource.writes),
            ("deletes", "Resources deleted", &resource.deletes),
        ] {
            to.register(format!("resource_{name}"), help, counter.clone());
        }
    }

    fn register_load(&mut self) {
        let to = &mut self.registry;
        to.register(
            "store_connections",
            "Connections to the database",
            self.store.connections.clone(),
        );
        to.register(
            "record_queue_entries",
            "Decisions that wait to be on the disk",
            self.store.waiting.clone(),
        );
        to.register(
            "resident_memory_bytes",
            "Memory of the process",
            self.store.memory.clone(),
        );
        to.register(
            "open_files",
            "Descriptors of the process",
            self.store.files.clone(),
        );
        to.register(
            "tls_certificate_end_timestamp_seconds",
            "When the certificate ends; 0 without TLS",
            self.certificate_end.clone(),
        );
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, answer: &Answered<'_>) {
        let route = answer.route.unwrap_or("none");
        let labels = [
            ("method", method(answer.method).to_owned()),
            ("path", route.to_owned()),
            ("status", answer.status.as_u16().to_string()),
        ];
        self.requests.get_or_create(&labels).inc();
        let path = [("path", route.to_owned())];
        let seconds = answer.took.as_secs_f64();
        self.durations.get_or_create(&path).observe(seconds);
        if let Some(kind) = answer.error {
            let label = [("type", kind.name().to_owned())];
            self.errors.get_or_create(&label).inc();
            if kind == ErrorKind::PolicyEngineError {
                self.policy.errors.inc();
            }
        }
        let good = answer.status.is_success();
        match (route.strip_prefix(PREFIX), answer.method) {
            (Some("/auth"), &Method::POST) => self.auth.count(good, answer.error),
            (Some("/attest"), &Method::POST) => self.attestation.count(good, answer.error),
            (Some(path), &Method::POST) if good && path.starts_with("/resource/") => {
                self.resource.writes.inc();
            }
            (Some(path), &Method::DELETE) if good && path.starts_with("/resource/") => {
                self.resource.deletes.inc();
            }
            _ => {}
        }
    }

    /// Counts a decision.
    pub(crate) fn decided(&self, entry: &Entry) {
        match (entry.kind, entry.result) {
            // What an attestation is about is the kind of TEE, which the configuration lists.
            (Kind::Attest, Outcome::Allowed) => of_tee(&self.attested, entry),
            (Kind::Attest, Outcome::Denied) => of_tee(&self.refused, entry),
            (Kind::Release, result) => {
                self.policy.evaluations.inc();
                match result {
                    Outcome::Denied => self.policy.violations.inc(),
                    _ => self.policy.approvals.inc(),
                };
                if result == Outcome::Allowed {
                    self.resource.reads.inc();
                }
            }
            _ => {}
        }
    }

    /// All of it as text.
    pub(crate) fn text(&self, store: &Figures) -> String {
        for (pool, state, count) in [
            ("read", "busy", store.reading),
            ("read", "idle", store.reading_idle),
            ("write", "busy", store.writing),
            ("write", "idle", store.writing_idle),
        ] {
            let labels = [("pool", pool), ("state", state)];
            self.store.connections.get_or_create(&labels).set(count);
        }
        self.store.waiting.set(store.waiting);
        self.store.memory.set(resident_bytes().unwrap_or(0));
        let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        self.store
            .files
            .set(i64::try_from(files).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

fn of_tee(family: &Family<One, Counter>, entry: &Entry) {
    let label = [("tee_type", entry.resource.clone())];
    family.get_or_create(&label).inc();
}

impl Outcomes {
    fn count(&self, good: bool, error: Option<ErrorKind>) {
        self.requests.inc();
        if good {
            self.successes.inc();
        } else if error != Some(ErrorKind::AttestationError) {
            self.errors.inc();
        }
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "post",
        Method::DELETE => "delete",
        _ => "other",
    }
}

fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_without_the_names_of_resources() {
        let metrics = Metrics::new();
        let entry = |kind, result, about: &str| {
            Entry::new(kind, result, "key x".to_owned(), about.to_owned())
        };
        metrics.decided(&entry(Kind::Attest, Outcome::Allowed, "sample"));
        metrics.decided(&entry(Kind::Attest, Outcome::Denied, "snp"));
        metrics.decided(&entry(
            Kind::Release,
            Outcome::Allowed,
            "treasure/island/map",
        ));
        metrics.decided(&entry(
            Kind::Release,
            Outcome::Denied,
            "treasure/island/map",
        ));
        metrics.decided(&entry(
            Kind::Release,
            Outcome::Absent,
            "treasure/island/map",
        ));
        metrics.answered(&Answered {
            method: &Method::from_bytes(b"TREASURE").unwrap(),
            route: None,
            status: StatusCode::NOT_FOUND,
            error: Some(ErrorKind::InvalidRequestPath),
            took: Duration::from_millis(3),
        });
        let text = metrics.text(&Figures::default());
        for line in [
            "kbs_attestation_successes_total{tee_type=\"sample\"} 1",
            "kbs_attestation_failures_total{tee_type=\"snp\"} 1",
            "kbs_policy_evaluations_total 3",
            "kbs_policy_approvals_total 2",
            "kbs_policy_violations_total 1",
            "kbs_resource_reads_total 1",
            "kbs_errors_total{type=\"InvalidRequestPath\"} 1",
            "kbs_http_requests_total{method=\"other\",path=\"none\",status=\"404\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(!text.to_lowercase().contains("treasure"), "{text}");
    }
}
