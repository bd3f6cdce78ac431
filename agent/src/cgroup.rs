//! A container's cgroup, read and written directly (cgroup v2).
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>

mod devices;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use agent_api::{GuestError, agent, oci};

use crate::fault::OrFail;

pub use devices::Access;

/// Where cgroup v2 is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// All containers lie below, from the root of the hierarchy.
pub(crate) const PARENT: &str = "/cloister";
/// How long the kernel may take to freeze, or to empty a killed cgroup.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(5);

/// The cgroup of one container.
#[derive(Clone, Debug)]
pub struct Cgroup {
    name: String,
    directory: PathBuf,
}

impl Cgroup {
    /// That of a container; libcontainer makes it.
    #[must_use]
    pub fn of(container: &str) -> Self {
        let name = format!("{PARENT}/{container}");
        let directory = PathBuf::from(format!("{MOUNT}{name}"));
        Self { name, directory }
    }

    /// Its path in the hierarchy.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Lets its processes have the usual devices and these disks, by their numbers, and no other device.
    ///
    /// # Errors
    ///
    /// Those of open(2) and bpf(2).
    pub fn confine(&self, disks: &[Access]) -> io::Result<()> {
        devices::confine(&fs::File::open(&self.directory)?, disks)
    }

    /// Kills every process in it.
    ///
    /// # Errors
    ///
    /// Those of write(2); there is no error where there is no cgroup.
    pub fn kill(&self) -> io::Result<()> {
        match fs::write(self.file("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Kills what is left and removes the cgroup with those below it.
    ///
    /// # Errors
    ///
    /// Processes do not end, or those of rmdir(2).
    pub async fn remove(&self) -> io::Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        self.kill()?;
        let deadline = tokio::time::Instant::now() + SETTLE_TIMEOUT;
        loop {
            match remove_tree(&self.directory) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy
                        && tokio::time::Instant::now() < deadline => {}
                other => return other,
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }

    /// Stops or lets go every process, and waits until it is so.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or does not get there.
    pub async fn freeze(&self, frozen: bool) -> Result<(), GuestError> {
        let phase = if frozen { "pause" } else { "resume" };
        let wanted = if frozen { "1" } else { "0" };
        fs::write(self.file("cgroup.freeze"), wanted).or_internal(phase, "cgroup.freeze")?;
        let settle = async {
            while self.number("cgroup.events", "frozen") != u64::from(frozen) {
                tokio::time::sleep(SETTLE_POLL).await;
            }
        };
        tokio::time::timeout(SETTLE_TIMEOUT, settle)
            .await
            .or_internal(phase, "cgroup.events")
    }

    /// Applies changed limits. Zero and empty mean no change.
    ///
    /// # Errors
    ///
    /// Names the file that the kernel did not take.
    pub fn update(&self, resources: &oci::LinuxResources) -> Result<(), GuestError> {
        for (file, value) in settings(resources) {
            fs::write(self.file(file), &value).or_fail(
                agent_api::ErrorCode::InvalidArgument,
                "update",
                format!("{file} = {value}"),
            )?;
        }
        Ok(())
    }

    /// Processes that the kernel has killed here because memory ran out.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.number("memory.events", "oom_kill")
    }

    /// Usage and limits, as far as the kernel has the controllers.
    #[must_use]
    pub fn stats(&self) -> agent::CgroupStats {
        let mut stats = agent::CgroupStats::new();
        stats.cpu_stats = Some(self.cpu()).into();
        stats.memory_stats = Some(self.memory()).into();
        let pids = agent::PidsStats {
            current: self.value("pids.current"),
            limit: self.value("pids.max"),
            ..Default::default()
        };
        stats.pids_stats = Some(pids).into();
        stats.blkio_stats = Some(block_io(&self.text("io.stat"))).into();
        stats
    }

    fn cpu(&self) -> agent::CpuStats {
        let values = flat(&self.text("cpu.stat"));
        let micros = |name: &str| values.get(name).copied().unwrap_or(0).saturating_mul(1000);
        let count = |name: &str| values.get(name).copied().unwrap_or(0);
        let usage = agent::CpuUsage {
            total_usage: micros("usage_usec"),
            usage_in_kernelmode: micros("system_usec"),
            usage_in_usermode: micros("user_usec"),
            ..Default::default()
        };
        let throttling = agent::ThrottlingData {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: micros("throttled_usec"),
            ..Default::default()
        };
        agent::CpuStats {
            cpu_usage: Some(usage).into(),
            throttling_data: Some(throttling).into(),
            ..Default::default()
        }
    }

    fn memory(&self) -> agent::MemoryStats {
        let values = flat(&self.text("memory.stat"));
        let data = |prefix: &str, failures: u64| agent::MemoryData {
            usage: self.value(&format!("{prefix}.current")),
            max_usage: self.value(&format!("{prefix}.peak")),
            limit: self.value(&format!("{prefix}.max")),
            failcnt: failures,
            ..Default::default()
        };
        agent::MemoryStats {
            cache: values.get("file").copied().unwrap_or(0),
            usage: Some(data("memory", self.number("memory.events", "max"))).into(),
            swap_usage: Some(data(
                "memory.swap",
                self.number("memory.swap.events", "max"),
            ))
            .into(),
            use_hierarchy: true,
            stats: values.into_iter().collect(),
            ..Default::default()
        }
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.file(file)).unwrap_or_default()
    }

    /// A file with one number; `max` is the largest one.
    fn value(&self, file: &str) -> u64 {
        match self.text(file).trim() {
            "max" => u64::MAX,
            number => number.parse().unwrap_or(0),
        }
    }

    fn number(&self, file: &str, name: &str) -> u64 {
        flat(&self.text(file)).get(name).copied().unwrap_or(0)
    }
}

/// The files to write, and what.
fn settings(resources: &oci::LinuxResources) -> Vec<(&'static str, String)> {
    let max = |n: i64| {
        if n < 0 {
            "max".to_owned()
        } else {
            n.to_string()
        }
    };
    let mut settings = Vec::new();
    if let Some(memory) = resources.Memory.as_ref() {
        if memory.Limit != 0 {
            settings.push(("memory.max", max(memory.Limit)));
        }
        if memory.Swap != 0 {
            // OCI's value is memory and swap together, the file's is swap alone.
            let swap = match (memory.Swap, memory.Limit) {
                (swap, limit) if swap > 0 && limit > 0 => swap.saturating_sub(limit).max(0),
                (swap, _) => swap,
            };
            settings.push(("memory.swap.max", max(swap)));
        }
        if memory.Reservation != 0 {
            settings.push(("memory.low", max(memory.Reservation)));
        }
    }
    if let Some(cpu) = resources.CPU.as_ref() {
        if cpu.Shares != 0 {
            settings.push(("cpu.weight", weight(cpu.Shares).to_string()));
        }
        if cpu.Quota != 0 || cpu.Period != 0 {
            let quota = if cpu.Quota == 0 {
                "max".to_owned()
            } else {
                max(cpu.Quota)
            };
            let period = if cpu.Period == 0 { 100_000 } else { cpu.Period };
            settings.push(("cpu.max", format!("{quota} {period}")));
        }
        for (file, list) in [("cpuset.cpus", &cpu.Cpus), ("cpuset.mems", &cpu.Mems)] {
            if !list.is_empty() {
                settings.push((file, list.clone()));
            }
        }
    }
    if let Some(pids) = resources.Pids.as_ref().filter(|pids| pids.Limit != 0) {
        settings.push(("pids.max", max(pids.Limit)));
    }
    settings
}

/// Shares (2 to 262144) on the scale of weights (1 to 10000).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// `name value` on each line.
fn flat(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// `major:minor rbytes=1 wbytes=2 rios=3 wios=4 ...` on each line.
fn block_io(text: &str) -> agent::BlkioStats {
    let mut stats = agent::BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            let value = value.parse().unwrap_or(0);
            list.push(agent::BlkioStatsEntry {
                major,
                minor,
                op: op.to_owned(),
                value,
                ..Default::default()
            });
        }
    }
    stats
}

/// Only directories can be removed in a cgroup; the files go with them.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let mut resources = oci::LinuxResources::new();
        assert!(settings(&resources).is_empty());
        let memory = resources.Memory.mut_or_insert_default();
        (memory.Limit, memory.Swap) = (100, 150);
        let cpu = resources.CPU.mut_or_insert_default();
        (cpu.Shares, cpu.Quota, cpu.Cpus) = (1024, 5000, "0-1".into());
        resources.Pids.mut_or_insert_default().Limit = -1;
        let expected = [
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("cpu.weight", "39"),
            ("cpu.max", "5000 100000"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "max"),
        ];
        let expected = expected.map(|(file, value)| (file, value.to_owned()));
        assert_eq!(settings(&resources), expected);
        assert_eq!(
            (weight(0), weight(2), weight(262_144), weight(u64::MAX)),
            (1, 1, 10_000, 10_000)
        );
    }

    #[test]
    fn block_io_is_read_by_device() {
        let stats = block_io("254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0\nnonsense\n");
        assert_eq!(stats.io_service_bytes_recursive.len(), 2);
        let first = &stats.io_service_bytes_recursive[0];
        assert_eq!(
            (first.major, first.minor, first.op.as_str(), first.value),
            (254, 0, "Read", 4096)
        );
        assert_eq!(stats.io_serviced_recursive[0].value, 1);
    }
}
