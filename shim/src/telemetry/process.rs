//! What the kernel tells of a process, as Kata's families have it. What it does not tell is absent.

use std::fs;

use agent_api::metric::{IO, STAT, STATUS};

use crate::exposition::{Sample, number};

/// Fields of `stat`, counted as in proc(5).
const THREADS: usize = 20;
const ADDRESS_SPACE: usize = 23;
const KIB: u64 = 1024;

/// This process: Kata's families, and those that every exporter of Prometheus has.
pub(super) fn own(family: &str, into: &mut Vec<Sample>) {
    let texts = Texts::of("self");
    texts.samples(family, into);
    let mut add = |name: &str, value: Option<f64>| {
        let sample = |value| Sample::new(&format!("{family}_process_{name}"), value);
        into.extend(value.map(sample));
    };
    let ticks = texts.stat(14).zip(texts.stat(15));
    let rate = number(rustix::param::clock_ticks_per_second().max(1));
    add(
        "cpu_seconds_total",
        ticks.map(|(user, system)| number(user.saturating_add(system)) / rate),
    );
    add("open_fds", texts.descriptors.map(number));
    let resident = line(&texts.status, "VmRSS").map(|kib| number(kib.saturating_mul(KIB)));
    add("resident_memory_bytes", resident);
    add(
        "virtual_memory_bytes",
        texts.stat(ADDRESS_SPACE).map(number),
    );
}

/// Another process.
pub(super) fn other(family: &str, pid: u32, into: &mut Vec<Sample>) {
    Texts::of(&pid.to_string()).samples(family, into);
}

/// The kernel's texts; empty where there is none.
struct Texts {
    stat: String,
    status: String,
    io: String,
    descriptors: Option<u64>,
}

impl Texts {
    fn of(process: &str) -> Self {
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok();
        Self {
            stat: read("stat"),
            status: read("status"),
            io: read("io"),
            descriptors: descriptors.and_then(|all| u64::try_from(all.count()).ok()),
        }
    }

    fn stat(&self, field: usize) -> Option<u64> {
        // The name before may have blanks and parentheses; field 3 is the first behind it.
        let (_, rest) = self.stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        fields.nth(field.checked_sub(3)?)?.parse().ok()
    }

    fn samples(&self, family: &str, into: &mut Vec<Sample>) {
        let mut add = |name: &str, item: &str, value: Option<u64>| {
            let Some(value) = value else { return };
            let sample = Sample::new(&format!("{family}_{name}"), number(value));
            into.push(match item {
                "" => sample,
                item => sample.with("item", item),
            });
        };
        add("threads", "", self.stat(THREADS));
        add("fds", "", self.descriptors);
        for (item, field) in STAT {
            add("proc_stat", item, self.stat(*field));
        }
        for name in STATUS {
            let value = line(&self.status, name);
            add("proc_status", &name.to_ascii_lowercase(), value);
        }
        for item in IO {
            add("io_stat", item, line(&self.io, item));
        }
    }
}

/// The number of a line `<name>: <number>[ kB]`.
fn line(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?.trim();
        rest.strip_suffix("kB").unwrap_or(rest).trim().parse().ok()
    })
}
