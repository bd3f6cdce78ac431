//! `cloister top`: what runs use, live on a terminal, else once.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::runtime::Shim;
use super::store::Run;
use super::table::Table;

/// Between two looks: shares of a processor are counted from one to the next.
const INTERVAL: Duration = Duration::from_secs(2);
/// Where only one look is wanted, how long it lasts.
const SHORT: Duration = Duration::from_millis(500);
/// How long a guest may take to tell.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// What begins a screen: the cursor home, and nothing below it.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";
/// Pages of the host.
const PAGE: u64 = 4096;

/// Of which runs.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Of these alone; else of all that run.
    names: Vec<String>,
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Once, also on a terminal.
    #[arg(long)]
    once: bool,
    /// Once, as JSON.
    #[arg(long)]
    json: bool,
}

/// What a container has used up to a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    cpu: Duration,
    memory: u64,
    limit: u64,
    pids: u64,
}

/// What one uses.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Hundredths of one processor.
    cpu_percent: f64,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    processes: u64,
    /// Resident memory of the VM on the host.
    vm_resident_bytes: u64,
}

impl Top {
    pub(crate) async fn run(self) -> Result<()> {
        let is_live = !self.once && !self.json && std::io::stdout().is_terminal();
        loop {
            let rows = self.look(if is_live { INTERVAL } else { SHORT }).await?;
            if self.json {
                println!("{}", serde_json::to_string_pretty(&rows)?);
            } else if is_live {
                print!("{CLEAR}{}", table(&rows));
            } else {
                print!("{}", table(&rows));
            }
            if !is_live {
                return Ok(());
            }
        }
    }

    async fn look(&self, interval: Duration) -> Result<Vec<Row>> {
        let mut looked = Vec::new();
        for run in self.runs()? {
            let record = run.read()?;
            if let Ok(shim) = Shim::of(&run, &record).await
                && let Some(used) = used(&shim).await
            {
                looked.push((run, shim, used, Instant::now()));
            }
        }
        sleep(interval).await;
        let mut rows = Vec::new();
        for (run, shim, before, at) in looked {
            if let Some(now) = used(&shim).await {
                rows.push(row(&run, before, now, at.elapsed()));
            }
        }
        Ok(rows)
    }

    fn runs(&self) -> Result<Vec<Run>> {
        if self.names.is_empty() {
            let mut runs = Run::all(Some(&self.namespace))?;
            runs.retain(|run| run.read().is_ok_and(|record| run.phase(&record).is_alive()));
            return Ok(runs);
        }
        let names = self.names.iter();
        names.map(|name| Run::find(&self.namespace, name)).collect()
    }
}

async fn used(shim: &Shim) -> Option<Used> {
    let any = timeout(TELL_TIMEOUT, shim.stats()).await.ok()?.ok()?;
    read(&any)
}

/// In the form of the host's cgroups, as containerd gets it.
fn read(any: &Any) -> Option<Used> {
    if any.type_url.ends_with("io.containerd.cgroups.v2.Metrics") {
        let told = v2::Metrics::parse_from_bytes(&any.value).ok()?;
        return Some(Used {
            cpu: Duration::from_micros(told.cpu.usage_usec),
            memory: told.memory.usage,
            limit: told.memory.usage_limit,
            pids: told.pids.current,
        });
    }
    let told = v1::Metrics::parse_from_bytes(&any.value).ok()?;
    Some(Used {
        cpu: Duration::from_nanos(told.cpu.usage.total),
        memory: told.memory.usage.usage,
        limit: told.memory.usage.limit,
        pids: told.pids.current,
    })
}

fn row(run: &Run, before: Used, now: Used, elapsed: Duration) -> Row {
    let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64();
    let elapsed = elapsed.as_secs_f64().max(0.001);
    Row {
        name: run.name.clone(),
        cpu_percent: (cpu / elapsed * 1000.0).round() / 10.0,
        memory_bytes: now.memory,
        // Without a limit, version 1 has the largest number of pages, and version 2 the largest number.
        memory_limit_bytes: Some(now.limit)
            .filter(|limit| (1..=i64::MAX.unsigned_abs() - PAGE).contains(limit)),
        processes: now.pids,
        vm_resident_bytes: run.vmm().map_or(0, |vmm| resident(vmm.pid)),
    }
}

/// Bytes of a process that are in the host's memory.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    pages.unwrap_or_default().saturating_mul(PAGE)
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&["NAME", "CPU", "MEMORY", "LIMIT", "PROCESSES", "VM ON HOST"]);
    for row in rows {
        table.row([
            row.name.clone(),
            format!("{:.1}%", row.cpu_percent),
            size(row.memory_bytes),
            row.memory_limit_bytes.map_or_else(|| "-".to_owned(), size),
            row.processes.to_string(),
            size(row.vm_resident_bytes),
        ]);
    }
    table.to_string()
}

fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_metrics_are_read() {
        let mut one = v1::Metrics::new();
        one.cpu
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default()
            .total = 5_000;
        one.memory
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default()
            .usage = 7;
        let mut two = v2::Metrics::new();
        two.cpu.mut_or_insert_default().usage_usec = 5;
        two.memory.mut_or_insert_default().usage = 7;
        let one = read(&shim::event::any(&one).unwrap()).unwrap();
        let two = read(&shim::event::any(&two).unwrap()).unwrap();
        assert_eq!(one, two);
        assert_eq!((one.cpu, one.memory), (Duration::from_micros(5), 7));
    }

    #[test]
    fn shares_are_of_the_time_between_two_looks() {
        let run = Run::of("default", "web").unwrap();
        let now = Used {
            cpu: Duration::from_secs(3),
            limit: u64::MAX,
            ..Used::default()
        };
        let row = row(&run, Used::default(), now, Duration::from_secs(2));
        assert!((row.cpu_percent - 150.0).abs() < 0.1);
        assert_eq!(row.memory_limit_bytes, None);
        assert!(table(&[row]).contains("150.0%"));
    }
}
