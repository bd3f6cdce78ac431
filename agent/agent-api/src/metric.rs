//! Items of the guest's metrics, by Kata's names (`src/agent/src/metrics.rs` of Kata Containers).
//!
//! The agent tells these, and the shim takes no other: a label's value becomes a series in the node's database, and
//! must not be a guest's choice.

/// Kernel's name in `/proc/meminfo`, and Kata's item. In bytes.
pub const MEMORY: &[(&str, &str)] = &[
    ("MemTotal", "mem_total"),
    ("MemFree", "mem_free"),
    ("MemAvailable", "mem_available"),
    ("Buffers", "buffers"),
    ("Cached", "cached"),
    ("Active", "active"),
    ("Inactive", "inactive"),
    ("Dirty", "dirty"),
    ("AnonPages", "anon_pages"),
    ("Mapped", "mapped"),
    ("Shmem", "shmem"),
    ("Slab", "slab"),
    ("SReclaimable", "s_reclaimable"),
    ("SUnreclaim", "s_unreclaim"),
    ("KernelStack", "kernel_stack"),
    ("PageTables", "page_tables"),
    ("Committed_AS", "committed_as"),
];
/// Names in `/proc/PID/status`; Kata's items are the same in lower case. Those of memory are in KiB.
pub const STATUS: &[&str] = &[
    "VmPeak",
    "VmSize",
    "VmLck",
    "VmPin",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmData",
    "VmStk",
    "VmExe",
    "VmLib",
    "VmPTE",
    "VmSwap",
    "HugetlbPages",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
];
/// Columns of a processor's line in `/proc/stat`; Kata's items are the same.
pub const PROCESSOR: &[&str] = &[
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guest_nice",
];
/// Columns of an interface's line in `/proc/net/dev`, as Kata's items.
pub const INTERFACE: &[&str] = &[
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];
/// The first columns of a disk's line in `/proc/diskstats` behind its name, as Kata's items.
pub const DISK: &[&str] = &[
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
];
/// Of `/proc/vmstat`: what says that memory is short.
pub const VM: &[&str] = &[
    "oom_kill",
    "pgfault",
    "pgmajfault",
    "pgscan_direct",
    "pgsteal_direct",
    "workingset_refault_file",
    "balloon_inflate",
    "balloon_deflate",
];
/// Fields of `/proc/PID/stat` by their numbers in proc(5). In clock ticks.
pub const STAT: &[(&str, usize)] = &[("utime", 14), ("stime", 15), ("cutime", 16), ("cstime", 17)];
/// Names in `/proc/PID/io`; Kata's items are the same.
pub const IO: &[&str] = &[
    "rchar",
    "wchar",
    "syscr",
    "syscw",
    "read_bytes",
    "write_bytes",
    "cancelled_write_bytes",
];
/// The means of `/proc/loadavg`, in its order.
pub const LOAD: &[&str] = &["load1", "load5", "load15"];
/// Tasks that run, and all.
pub const TASKS: &[&str] = &["cur", "max"];
