//! What a container uses, in the form that fits the host's cgroups: containerd reads version 1 or
//! version 2 of the metrics by that.

use agent_api::agent::{self as api, StatsContainerResponse};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, MessageField};

use crate::event::any;

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The magic number of a cgroup2 file system (linux/magic.h).
const CGROUP2_MAGIC: i64 = 0x6367_7270;
const MICROSECOND: u64 = 1000;

/// Which metrics the host's tools read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// Version 1, also where version 2 is mounted beside it.
    V1,
    /// Version 2 alone.
    V2,
}

impl CgroupMode {
    /// The host's.
    #[must_use]
    pub fn of_host() -> Self {
        match rustix::fs::statfs(CGROUPS) {
            Ok(stat) if stat.f_type == CGROUP2_MAGIC => Self::V2,
            _ => Self::V1,
        }
    }
}

/// Packs the statistics of a container.
///
/// # Errors
/// Where the message is too large to be written.
pub fn pack(mode: CgroupMode, stats: &StatsContainerResponse) -> protobuf::Result<Any> {
    match mode {
        CgroupMode::V1 => any(&metrics_v1(stats)),
        CgroupMode::V2 => any(&metrics_v2(stats)),
    }
}

/// The counters of the network devices: the versions have a message each, with the same fields.
macro_rules! network {
    ($version:ident, $stats:expr) => {
        $stats
            .network_stats
            .iter()
            .map(|net| $version::NetworkStat {
                name: net.name.clone(),
                rx_bytes: net.rx_bytes,
                rx_packets: net.rx_packets,
                rx_errors: net.rx_errors,
                rx_dropped: net.rx_dropped,
                tx_bytes: net.tx_bytes,
                tx_packets: net.tx_packets,
                tx_errors: net.tx_errors,
                tx_dropped: net.tx_dropped,
                ..Default::default()
            })
            .collect()
    };
}

fn metrics_v1(stats: &StatsContainerResponse) -> v1::Metrics {
    let cgroup = &stats.cgroup_stats;
    v1::Metrics {
        cpu: MessageField::some(cpu_v1(&cgroup.cpu_stats)),
        memory: MessageField::some(memory_v1(&cgroup.memory_stats)),
        pids: MessageField::some(v1::PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..Default::default()
        }),
        blkio: MessageField::some(blkio_v1(&cgroup.blkio_stats)),
        network: network!(v1, stats),
        ..Default::default()
    }
}

fn cpu_v1(cpu: &api::CpuStats) -> v1::CPUStat {
    v1::CPUStat {
        usage: MessageField::some(v1::CPUUsage {
            total: cpu.cpu_usage.total_usage,
            kernel: cpu.cpu_usage.usage_in_kernelmode,
            user: cpu.cpu_usage.usage_in_usermode,
            per_cpu: cpu.cpu_usage.percpu_usage.clone(),
            ..Default::default()
        }),
        throttling: MessageField::some(v1::Throttle {
            periods: cpu.throttling_data.periods,
            throttled_periods: cpu.throttling_data.throttled_periods,
            throttled_time: cpu.throttling_data.throttled_time,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory_v1(memory: &api::MemoryStats) -> v1::MemoryStat {
    // The guest has cgroup v2 names; v1 readers look for these.
    let stat = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| memory.stats.get(*name))
            .copied()
            .unwrap_or_default()
    };
    let entry = |data: &api::MemoryData| {
        MessageField::some(v1::MemoryEntry {
            limit: data.limit,
            usage: data.usage,
            max: data.max_usage,
            failcnt: data.failcnt,
            ..Default::default()
        })
    };
    let (rss, mapped) = (
        stat(&["rss", "anon"]),
        stat(&["mapped_file", "file_mapped"]),
    );
    let (inactive, active) = (stat(&["inactive_file"]), stat(&["active_file"]));
    v1::MemoryStat {
        cache: memory.cache,
        rss,
        mapped_file: mapped,
        pg_fault: stat(&["pgfault"]),
        pg_maj_fault: stat(&["pgmajfault"]),
        inactive_file: inactive,
        active_file: active,
        inactive_anon: stat(&["inactive_anon"]),
        active_anon: stat(&["active_anon"]),
        unevictable: stat(&["unevictable"]),
        total_cache: memory.cache,
        total_rss: rss,
        total_mapped_file: mapped,
        total_inactive_file: inactive,
        total_active_file: active,
        usage: entry(&memory.usage),
        swap: entry(&memory.swap_usage),
        kernel: entry(&memory.kernel_usage),
        ..Default::default()
    }
}

fn blkio_v1(blkio: &api::BlkioStats) -> v1::BlkIOStat {
    let entries = |from: &[api::BlkioStatsEntry]| {
        from.iter()
            .map(|entry| v1::BlkIOEntry {
                op: entry.op.clone(),
                device: String::new(),
                major: entry.major,
                minor: entry.minor,
                value: entry.value,
                ..Default::default()
            })
            .collect()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: entries(&blkio.io_service_bytes_recursive),
        io_serviced_recursive: entries(&blkio.io_serviced_recursive),
        ..Default::default()
    }
}

fn metrics_v2(stats: &StatsContainerResponse) -> v2::Metrics {
    let cgroup = &stats.cgroup_stats;
    let cpu = &cgroup.cpu_stats;
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: cpu.cpu_usage.total_usage / MICROSECOND,
            user_usec: cpu.cpu_usage.usage_in_usermode / MICROSECOND,
            system_usec: cpu.cpu_usage.usage_in_kernelmode / MICROSECOND,
            nr_periods: cpu.throttling_data.periods,
            nr_throttled: cpu.throttling_data.throttled_periods,
            throttled_usec: cpu.throttling_data.throttled_time / MICROSECOND,
            ..Default::default()
        }),
        memory: MessageField::some(memory_v2(&cgroup.memory_stats)),
        io: MessageField::some(v2::IOStat {
            usage: io_v2(&cgroup.blkio_stats),
            ..Default::default()
        }),
        network: network!(v2, stats),
        ..Default::default()
    }
}

fn memory_v2(memory: &api::MemoryStats) -> v2::MemoryStat {
    let stat = |name: &str| memory.stats.get(name).copied().unwrap_or_default();
    v2::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        swap_usage: memory.swap_usage.usage,
        swap_limit: memory.swap_usage.limit,
        max_usage: memory.usage.max_usage,
        ..Default::default()
    }
}

/// Bytes and operations of each device, which the guest sends as separate entries.
fn io_v2(blkio: &api::BlkioStats) -> Vec<v2::IOEntry> {
    let mut devices = std::collections::BTreeMap::<(u64, u64), v2::IOEntry>::new();
    let all = blkio
        .io_service_bytes_recursive
        .iter()
        .map(|entry| (entry, true));
    for (entry, is_bytes) in all.chain(
        blkio
            .io_serviced_recursive
            .iter()
            .map(|entry| (entry, false)),
    ) {
        let device = devices
            .entry((entry.major, entry.minor))
            .or_insert_with(|| v2::IOEntry {
                major: entry.major,
                minor: entry.minor,
                ..Default::default()
            });
        match (entry.op.to_ascii_lowercase().as_str(), is_bytes) {
            ("read", true) => device.rbytes = entry.value,
            ("write", true) => device.wbytes = entry.value,
            ("read", false) => device.rios = entry.value,
            ("write", false) => device.wios = entry.value,
            _ => {}
        }
    }
    devices.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message;

    fn stats() -> StatsContainerResponse {
        let mut stats = StatsContainerResponse::new();
        let cgroup = stats.cgroup_stats.mut_or_insert_default();
        cgroup
            .cpu_stats
            .mut_or_insert_default()
            .cpu_usage
            .mut_or_insert_default()
            .total_usage = 5_000_000;
        cgroup
            .memory_stats
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default()
            .usage = 77;
        cgroup
            .memory_stats
            .mut_or_insert_default()
            .stats
            .insert("anon".into(), 9);
        let read = api::BlkioStatsEntry {
            major: 8,
            op: "Read".into(),
            value: 3,
            ..Default::default()
        };
        cgroup
            .blkio_stats
            .mut_or_insert_default()
            .io_service_bytes_recursive
            .push(read);
        stats.network_stats.push(api::NetworkStats {
            name: "eth0".into(),
            rx_bytes: 4,
            tx_dropped: 5,
            ..Default::default()
        });
        stats
    }

    #[test]
    fn version_1_has_containerds_name_and_nanoseconds() {
        let any = pack(CgroupMode::V1, &stats()).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 5_000_000);
        assert_eq!((metrics.memory.usage.usage, metrics.memory.rss), (77, 9));
        let net = &metrics.network[0];
        assert_eq!(
            (net.name.as_str(), net.rx_bytes, net.tx_dropped),
            ("eth0", 4, 5)
        );
    }

    #[test]
    fn version_2_has_containerds_name_and_microseconds() {
        let any = pack(CgroupMode::V2, &stats()).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage_usec, 5000);
        assert_eq!((metrics.memory.usage, metrics.memory.anon), (77, 9));
        assert_eq!(metrics.io.usage[0].rbytes, 3);
        let net = &metrics.network[0];
        assert_eq!(
            (net.name.as_str(), net.rx_bytes, net.tx_dropped),
            ("eth0", 4, 5)
        );
    }
}
