//! What a pod costs the host, as the pod's cgroup counts it: the VMM with the guest's memory, its helpers, and
//! the shim where it is not kept apart.

use std::fs;
use std::path::Path;

use agent_api::agent::{
    CpuStats, CpuUsage, MemoryData, MemoryStats, PidsStats, StatsContainerResponse,
};
use protobuf::MessageField;

use super::record::Record;
use crate::state_dir::StateDir;

const MICROSECOND: u64 = 1000;

/// The pod's usage; none where it has no cgroup, or one that counts nothing.
#[must_use]
pub fn usage(directory: &StateDir) -> Option<StatsContainerResponse> {
    let record = Record::read(directory)?;
    let counted = record.directories.iter().filter(|path| path.is_dir());
    let mut stats = StatsContainerResponse::new();
    // Those above the pod's were noted before it, and count others too: the last word is the pod's.
    let found = counted.fold(false, |found, path| count(path, &mut stats) | found);
    found.then_some(stats)
}

/// Takes over what one directory counts: in version 1 each has some of it, in version 2 one has all.
fn count(path: &Path, stats: &mut StatsContainerResponse) -> bool {
    let all = stats.cgroup_stats.mut_or_insert_default();
    let cpu = flat(path, "cpu.stat", "usage_usec").map(|micros| micros.saturating_mul(MICROSECOND));
    let cpu = cpu.or_else(|| number(path, "cpuacct.usage"));
    if let Some(nanos) = cpu {
        all.cpu_stats = MessageField::some(CpuStats {
            cpu_usage: MessageField::some(CpuUsage {
                total_usage: nanos,
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    let memory = number(path, "memory.current").or_else(|| number(path, "memory.usage_in_bytes"));
    if let Some(bytes) = memory {
        let limit = number(path, "memory.max").or_else(|| number(path, "memory.limit_in_bytes"));
        all.memory_stats = MessageField::some(MemoryStats {
            usage: MessageField::some(MemoryData {
                usage: bytes,
                limit: limit.unwrap_or(u64::MAX),
                ..Default::default()
            }),
            stats: table(path, "memory.stat").collect(),
            ..Default::default()
        });
    }
    let pids = number(path, "pids.current");
    if let Some(current) = pids {
        all.pids_stats = MessageField::some(PidsStats {
            current,
            ..Default::default()
        });
    }
    cpu.is_some() || memory.is_some() || pids.is_some()
}

fn number(path: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(path.join(file))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// `name value` on each line.
fn table(path: &Path, file: &str) -> impl Iterator<Item = (String, u64)> {
    let text = fs::read_to_string(path.join(file)).unwrap_or_default();
    let pairs: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect();
    pairs.into_iter()
}

fn flat(path: &Path, file: &str, name: &str) -> Option<u64> {
    table(path, file)
        .find(|(found, _)| found == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_own_cgroup_counts_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(&root.path().join("state"));
        state.create().unwrap();
        assert!(usage(&state).is_none());
        let of = |name: &str, files: &[(&str, &str)]| {
            let path = root.path().join(name);
            fs::create_dir_all(&path).unwrap();
            for (file, text) in files {
                fs::write(path.join(file), text).unwrap();
            }
            path
        };
        let keep = |directories| {
            let record = Record {
                shim: 1,
                origins: Vec::new(),
                directories,
            };
            record.write(&state).unwrap();
        };
        let cpu = |name, text| of(name, &[("cpu.stat", text)]);
        let outer = cpu("two", "usage_usec 900\n");
        let inner = of(
            "two/pod",
            &[
                ("cpu.stat", "usage_usec 7\n"),
                ("memory.current", "4096\n"),
                ("memory.max", "max\n"),
            ],
        );
        keep(vec![outer, inner]);
        let stats = usage(&state).unwrap().cgroup_stats;
        assert_eq!(stats.cpu_stats.cpu_usage.total_usage, 7000);
        assert_eq!(stats.memory_stats.usage.usage, 4096);
        let one = of("cpuacct", &[("cpuacct.usage", "5\n")]);
        let other = of("memory", &[("memory.usage_in_bytes", "6\n")]);
        keep(vec![one, other]);
        let stats = usage(&state).unwrap().cgroup_stats;
        assert_eq!(stats.cpu_stats.cpu_usage.total_usage, 5);
        assert_eq!(stats.memory_stats.usage.usage, 6);
    }
}
