//! The families that there are, whose they are and of which type. Kata's have Kata's names, labels and units
//! (docs/design/kata-2-0-metrics.md of Kata Containers), so that dashboards for it go on.
//!
//! A type is never taken from a page: two pages that disagree would make one that nobody reads.

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
    /// Nobody says.
    Untyped,
}

/// Who may tell a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The agent.
    Guest,
    /// The shim.
    Shim,
    /// The node's monitor.
    Node,
}

/// One family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Who tells it.
    pub whose: Whose,
    /// What it is, in one line.
    pub help: &'static str,
}

impl Kind {
    /// The word of the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Untyped => "untyped",
        }
    }
}

/// Labels that the monitor adds, and that no page may bring.
pub const NODE_LABELS: &[&str] = &[
    "sandbox_id",
    "namespace",
    "cri_uid",
    "cri_name",
    "cri_namespace",
];

macro_rules! families {
    ($($whose:ident $kind:ident $name:literal $help:literal)*) => {
        &[$(Family {
            name: $name,
            kind: Kind::$kind,
            whose: Whose::$whose,
            help: $help,
        }),*]
    };
}

/// All of them.
pub const FAMILIES: &[Family] = families! {
    Guest Counter "kata_agent_scrape_count" "Questions for metrics that the agent answered"
    Guest Gauge "kata_agent_threads" "Agent process threads"
    Guest Gauge "kata_agent_total_time" "Agent process CPU time in seconds"
    Guest Gauge "kata_agent_total_vm" "Agent process address space in bytes"
    Guest Gauge "kata_agent_total_rss" "Agent process resident set in bytes"
    Guest Gauge "kata_agent_proc_stat" "Agent process CPU time in clock ticks"
    Guest Gauge "kata_agent_proc_status" "Agent process status; memory in KiB"
    Guest Gauge "kata_agent_io_stat" "Agent process I/O"
    Guest Gauge "cloister_agent_pss_bytes" "Agent process proportional set in bytes"
    Guest Gauge "kata_guest_load" "Guest system load"
    Guest Gauge "kata_guest_tasks" "Guest tasks that run, and all"
    Guest Gauge "kata_guest_meminfo" "Guest memory in bytes"
    Guest Gauge "kata_guest_cpu_time" "Guest processor time in clock ticks"
    Guest Gauge "kata_guest_diskstat" "Guest disks"
    Guest Gauge "kata_guest_netdev_stat" "Guest network interfaces"
    Guest Gauge "kata_guest_vm_stat" "Guest virtual memory"

    Shim Gauge "kata_shim_threads" "Shim process threads"
    Shim Gauge "kata_shim_fds" "Shim open file descriptors"
    Shim Gauge "kata_shim_proc_stat" "Shim process CPU time in clock ticks"
    Shim Gauge "kata_shim_proc_status" "Shim process status; memory in KiB"
    Shim Gauge "kata_shim_io_stat" "Shim process I/O"
    Shim Counter "kata_shim_process_cpu_seconds_total" "Shim process CPU time in seconds"
    Shim Gauge "kata_shim_process_open_fds" "Shim open file descriptors"
    Shim Gauge "kata_shim_process_resident_memory_bytes" "Shim resident set in bytes"
    Shim Gauge "kata_shim_process_virtual_memory_bytes" "Shim address space in bytes"
    Shim Histogram "kata_shim_rpc_durations_histogram_milliseconds" "Calls of containerd, by method"
    Shim Gauge "kata_hypervisor_threads" "VMM process threads"
    Shim Gauge "kata_hypervisor_fds" "VMM open file descriptors"
    Shim Gauge "kata_hypervisor_proc_stat" "VMM process CPU time in clock ticks"
    Shim Gauge "kata_hypervisor_proc_status" "VMM process status; memory in KiB"
    Shim Gauge "kata_hypervisor_io_stat" "VMM process I/O"
    Shim Gauge "kata_virtiofsd_threads" "virtiofsd process threads"
    Shim Gauge "kata_virtiofsd_fds" "virtiofsd open file descriptors"
    Shim Gauge "kata_virtiofsd_proc_stat" "virtiofsd process CPU time in clock ticks"
    Shim Gauge "kata_virtiofsd_proc_status" "virtiofsd process status; memory in KiB"
    Shim Gauge "kata_virtiofsd_io_stat" "virtiofsd process I/O"
    Shim Gauge "cloister_sandbox_state" "1 for the state in which the sandbox is"
    Shim Gauge "cloister_sandbox_containers" "Containers of the sandbox"
    Shim Histogram "cloister_start_phase_seconds" "Phases of starts in this sandbox"
    Shim Counter "cloister_shim_rpc_errors_total" "Calls of containerd that failed, by method and code"
    Shim Counter "cloister_shim_log_lines_lost_total" "Lines of the log that nobody took"
    Shim Counter "cloister_shim_spans_lost_total" "Spans that could not be sent"
    Shim Gauge "cloister_guest_samples_left_out" "Samples of the guest with names that are not taken"
    Shim Gauge "cloister_guest_metrics" "1 for what became of the question to the guest"

    Node Gauge "kata_monitor_running_shim_count" "Sandboxes whose shim runs"
    Node Counter "kata_monitor_scrape_count" "Questions for metrics"
    Node Counter "kata_monitor_scrape_failed_count" "Sandboxes that gave no metrics when asked"
    Node Histogram "kata_monitor_scrape_durations_histogram_milliseconds" "Time to ask all shims"
    Node Gauge "cloister_node_sandboxes" "Sandboxes of the node by state"
    Node Gauge "cloister_node_sandboxes_left_out" "Sandboxes that were not asked, being too many"
    Node Gauge "cloister_sandbox_up" "Whether the sandbox's shim gave a page that could be used"
    Node Counter "cloister_node_starts_total" "Starts that succeeded since the monitor runs"
    Node Counter "cloister_node_start_failures_total" "Starts that failed since the monitor runs, by code"
    Node Histogram "cloister_node_start_phase_seconds" "Phases of starts since the monitor runs"
    Node Counter "cloister_node_reports_refused_total" "Reports of starts that could not be read"
};

/// The family of a sample's name: its own, or the histogram that it is a part of.
#[must_use]
pub fn of_sample(name: &str) -> Option<&'static Family> {
    let find = |name: &str| FAMILIES.iter().find(|family| family.name == name);
    find(name)
        .filter(|family| family.kind != Kind::Histogram)
        .or_else(|| {
            let parts = ["_bucket", "_sum", "_count"];
            let base = parts.iter().find_map(|part| name.strip_suffix(part))?;
            find(base).filter(|family| family.kind == Kind::Histogram)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_there_once_and_no_help_needs_escaping() {
        for (index, family) in FAMILIES.iter().enumerate() {
            let again = FAMILIES[index + 1..]
                .iter()
                .any(|other| other.name == family.name);
            assert!(!again, "{}", family.name);
            assert!(!family.help.contains(['\\', '\n']), "{}", family.name);
        }
    }

    #[test]
    fn a_part_belongs_to_its_histogram_and_to_nothing_else() {
        let histogram = "kata_shim_rpc_durations_histogram_milliseconds";
        let part = format!("{histogram}_bucket");
        assert_eq!(of_sample(&part).unwrap().name, histogram);
        assert!(of_sample(histogram).is_none(), "a histogram without a part");
        assert!(of_sample("kata_shim_threads_bucket").is_none());
        assert_eq!(
            of_sample("kata_agent_scrape_count").unwrap().kind,
            Kind::Counter
        );
    }
}
