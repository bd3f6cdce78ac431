//! What `GetMetrics` answers: the agent and the guest, in Prometheus' text format 0.0.4.
//!
//! Where Kata's agent has a metric, it has the same name, labels and unit here
//! (`src/agent/src/metrics.rs` of Kata Containers), so that its dashboards work. What the kernel does
//! not tell is absent: a zero would be a measurement.

use std::fmt::{Display, Write as _};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_api::agent;
use agent_api::metric::{DISK, INTERFACE, IO, LOAD, MEMORY, PROCESSOR, STAT, STATUS, TASKS, VM};

use crate::gate::Allowed;

/// Processors, interfaces and disks that are told, of each: more are of no use on a page.
const MAX_LISTED: usize = 16;
const KIB: u64 = 1024;

/// Counts the questions.
#[derive(Debug, Default)]
pub struct Scrapes(AtomicU64);

/// The kernel's texts from which the metrics are made (proc(5)); empty where there is none.
#[derive(Debug, Default)]
struct Texts {
    stat: String,
    status: String,
    smaps_rollup: String,
    io: String,
    loadavg: String,
    meminfo: String,
    processors: String,
    interfaces: String,
    disks: String,
    vmstat: String,
}

impl Scrapes {
    /// The metrics as of now.
    pub fn scrape(&self, _: &Allowed<agent::GetMetricsRequest>) -> String {
        self.read()
    }

    fn read(&self) -> String {
        let number = self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let texts = Texts {
            stat: read("/proc/self/stat"),
            status: read("/proc/self/status"),
            smaps_rollup: read("/proc/self/smaps_rollup"),
            io: read("/proc/self/io"),
            loadavg: read("/proc/loadavg"),
            meminfo: read("/proc/meminfo"),
            processors: read("/proc/stat"),
            interfaces: read("/proc/net/dev"),
            disks: read("/proc/diskstats"),
            vmstat: read("/proc/vmstat"),
        };
        render(number, &texts, rustix::param::clock_ticks_per_second())
    }
}

fn render(scrapes: u64, texts: &Texts, ticks_per_second: u64) -> String {
    let mut page = Page::default();
    page.family("kata_agent_scrape_count", "counter", "Metrics scrape count")
        .sample("", Some(scrapes));
    agent(&mut page, texts, ticks_per_second);
    guest(&mut page, texts);
    devices(&mut page, texts);
    page.text
}

/// The agent as a process.
fn agent(page: &mut Page, texts: &Texts, ticks_per_second: u64) {
    // The name before the fields may have blanks; a parenthesis ends it.
    let fields: Vec<&str> = texts
        .stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace().collect())
        .unwrap_or_default();
    // Field 3 of the page is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (user, system) = (field(14), field(15));
    page.family("kata_agent_threads", "gauge", "Agent process threads")
        .sample("", field(20));
    let seconds = user.zip(system).map(|(user, system)| {
        let ticks = u32::try_from(user.saturating_add(system)).unwrap_or(u32::MAX);
        f64::from(ticks) / f64::from(u32::try_from(ticks_per_second).unwrap_or(u32::MAX).max(1))
    });
    page.family("kata_agent_total_time", "gauge", "CPU time in seconds")
        .sample("", seconds);
    page.family("kata_agent_total_vm", "gauge", "Address space in bytes")
        .sample("", field(23));
    let rss = value(&texts.status, "VmRSS").map(bytes);
    page.family("kata_agent_total_rss", "gauge", "Resident set in bytes")
        .sample("", rss);
    let pss = value(&texts.smaps_rollup, "Pss").map(bytes);
    page.family(
        "cloister_agent_pss_bytes",
        "gauge",
        "Proportional set: the resident set, with each shared page divided by those who share it",
    )
    .sample("", pss);
    page.family("kata_agent_proc_stat", "gauge", "CPU time in clock ticks");
    for (item, number) in STAT {
        page.sample(item, field(*number));
    }
    page.family("kata_agent_proc_status", "gauge", "Agent process status");
    for name in STATUS {
        page.sample(&name.to_ascii_lowercase(), value(&texts.status, name));
    }
    page.family("kata_agent_io_stat", "gauge", "Agent process I/O");
    for item in IO {
        page.sample(item, value(&texts.io, item));
    }
}

/// The guest as a machine.
fn guest(page: &mut Page, texts: &Texts) {
    let words: Vec<&str> = texts.loadavg.split_ascii_whitespace().collect();
    let load = |index: usize| words.get(index)?.parse::<f64>().ok();
    page.family("kata_guest_load", "gauge", "Guest system load");
    for (index, item) in LOAD.iter().enumerate() {
        page.sample(item, load(index));
    }
    let tasks = words.get(3).and_then(|word| word.split_once('/'));
    let count = |text: &str| text.parse::<u64>().ok();
    let tasks = tasks.map_or([None; 2], |(running, all)| [count(running), count(all)]);
    page.family("kata_guest_tasks", "gauge", "Tasks that run, and all");
    for (item, value) in TASKS.iter().zip(tasks) {
        page.sample(item, value);
    }
    page.family("kata_guest_meminfo", "gauge", "Memory in bytes");
    for (name, item) in MEMORY {
        page.sample(item, value(&texts.meminfo, name).map(bytes));
    }
}

/// The guest's processors, interfaces and disks.
fn devices(page: &mut Page, texts: &Texts) {
    page.family("kata_guest_cpu_time", "gauge", "CPU time in clock ticks");
    let processors = texts.processors.lines().filter_map(|line| {
        let (name, columns) = line.strip_prefix("cpu")?.split_once(' ')?;
        Some((if name.is_empty() { "total" } else { name }, columns))
    });
    // The line of all of them is the first.
    page.table("cpu", processors.take(MAX_LISTED + 1), PROCESSOR);
    page.family("kata_guest_netdev_stat", "gauge", "Network interfaces");
    let interfaces = texts.interfaces.lines().filter_map(|line| {
        let (name, columns) = line.split_once(':')?;
        Some((name.trim(), columns))
    });
    page.table("interface", interfaces.take(MAX_LISTED), INTERFACE);
    page.family("kata_guest_diskstat", "gauge", "Disks");
    let disks = texts.disks.lines().filter_map(|line| {
        // Its numbers, its name, its columns.
        let (_, rest) = line.trim_start().split_once(' ')?;
        let (_, rest) = rest.trim_start().split_once(' ')?;
        rest.split_once(' ')
    });
    let disks = disks.filter(|(name, _)| !name.starts_with("loop") && !name.starts_with("ram"));
    page.table("disk", disks.take(MAX_LISTED), DISK);
    page.family("kata_guest_vm_stat", "gauge", "Virtual memory");
    for item in VM {
        let mut lines = texts.vmstat.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find_map(|(name, value)| (name == *item).then_some(value));
        page.sample(item, value.and_then(|value| value.parse::<u64>().ok()));
    }
}

/// The number of a line `<name>: <number>[ kB]`.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?.trim();
        rest.strip_suffix("kB").unwrap_or(rest).trim().parse().ok()
    })
}

fn bytes(kib: u64) -> u64 {
    kib.saturating_mul(KIB)
}

/// A page of metrics in the making. A family without a sample leaves no trace.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
    head: String,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.name = name;
        self.head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self
    }

    /// Samples of the family: a row for each name under `label`, a column for each item.
    fn table<'a>(
        &mut self,
        label: &str,
        rows: impl Iterator<Item = (&'a str, &'a str)>,
        items: &[&str],
    ) {
        // A name that would have to be escaped is none that the kernel gives by itself.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        for (name, columns) in rows.filter(|(name, _)| name.bytes().all(plain)) {
            let columns = columns.split_ascii_whitespace();
            for (item, value) in items.iter().zip(columns) {
                let Ok(value) = value.parse::<u64>() else {
                    continue;
                };
                self.text.push_str(&std::mem::take(&mut self.head));
                // A `String` takes everything.
                let _ = writeln!(
                    self.text,
                    "{}{{{label}=\"{name}\",item=\"{item}\"}} {value}",
                    self.name
                );
            }
        }
    }

    /// A sample of the family, under an item where it has several.
    fn sample(&mut self, item: &str, value: Option<impl Display>) -> &mut Self {
        let Some(value) = value else { return self };
        self.text.push_str(&std::mem::take(&mut self.head));
        // A `String` takes everything.
        let _ = match item {
            "" => writeln!(self.text, "{} {value}", self.name),
            item => writeln!(self.text, "{}{{item=\"{item}\"}} {value}", self.name),
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_texts_become_katas_metrics() {
        let fields = "S 0 1 1 0 -1 4194560 9 8 7 6 150 50 3 4 20 0 11 0 5 123456 99";
        let texts = Texts {
            stat: format!("1 (a) b) {fields}"),
            status: "VmPeak:\t  10 kB\nVmRSS:\t   2 kB\nvoluntary_ctxt_switches:\t7\n".into(),
            smaps_rollup: "0-1 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss:   3 kB\nPss_Anon: 1 kB\n"
                .into(),
            io: String::new(),
            loadavg: "0.50 0.25 0.10 2/57 99\n".into(),
            meminfo: "MemTotal: 4 kB\nActive(anon): 9 kB\nActive: 5 kB\n".into(),
            processors: "cpu  10 1 5 70\ncpu0 10 1 5 70\nintr 1 2\n".into(),
            interfaces: "Inter-|   Receive\n face |bytes\n  eth0: 7 1 0 0 0 0 0 0 9 2\n a\"b: 1\n"
                .into(),
            disks: " 254       0 vda 3 0 24 1 2\n   7       0 loop0 1 1 1 1\n".into(),
            vmstat: "nr_free_pages 9\noom_kill 2\n".into(),
        };
        let text = render(3, &texts, 100);
        for line in [
            "kata_agent_scrape_count 3",
            "kata_agent_threads 11",
            "kata_agent_total_time 2",
            "kata_agent_total_vm 123456",
            "kata_agent_total_rss 2048",
            "cloister_agent_pss_bytes 3072",
            "kata_agent_proc_stat{item=\"cstime\"} 4",
            "kata_agent_proc_status{item=\"vmpeak\"} 10",
            "kata_agent_proc_status{item=\"voluntary_ctxt_switches\"} 7",
            "kata_guest_load{item=\"load5\"} 0.25",
            "kata_guest_tasks{item=\"max\"} 57",
            "kata_guest_meminfo{item=\"mem_total\"} 4096",
            "kata_guest_meminfo{item=\"active\"} 5120",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} 10",
            "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"} 70",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"sent_bytes\"} 9",
            "kata_guest_diskstat{disk=\"vda\",item=\"sectors_read\"} 24",
            "kata_guest_vm_stat{item=\"oom_kill\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
        }
        // What the kernel does not tell is not there, with its head.
        for absent in ["kata_agent_io_stat", "vmswap", "loop0", "a\"b"] {
            assert!(!text.contains(absent), "{absent}");
        }
        assert_eq!(text.matches("# TYPE kata_guest_meminfo gauge").count(), 1);
    }

    #[test]
    fn this_process_has_a_proportional_set() {
        let scrapes = Scrapes::default();
        scrapes.read();
        let text = scrapes.read();
        assert!(text.contains("kata_agent_scrape_count 2\n"));
        let pss = text
            .lines()
            .find_map(|line| line.strip_prefix("cloister_agent_pss_bytes "));
        assert!(pss.unwrap().parse::<u64>().unwrap() > 100 * KIB);
    }
}
