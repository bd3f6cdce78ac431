//! A whole start through containerd: an encrypted image in an attested guest, by phases, and what
//! the pod's own process on the host and the agent in the guest weigh.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use support::image::Recipe;
use support::pod::Pod;
use support::stage::{KEY_ID, Stage};
use support::{host, timeline};

use crate::figure::{Figure, median};

/// The shim's program, as the process list has it.
const SHIM: &str = "containerd-shim-cloister-v2";

/// The most MiB of a shim with one pod, and of an agent in its guest.
const MAX_SHIM: f64 = 10.0;
const MAX_AGENT: f64 = 8.0;

/// Starts the pod `rounds` times and yields the medians.
///
/// # Errors
/// When a part does not start, or a pod does not run.
pub fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let stage = Stage::simulated()?;
    let key = stage.key("image.key")?;
    let image = stage.push_encrypted(&Recipe::busybox("bench")?, "bench", &key, KEY_ID)?;
    let init_data = stage.init_data();
    let broker = stage.broker()?;
    broker.put(KEY_ID, &key)?;
    broker.release_only_to_kind("sim-snp", &init_data.digest())?;
    let config = stage.settings().write(&stage.state, "bench.toml")?;
    let root = stage.empty();

    let (mut starts, mut shims, mut agents) = (Vec::new(), Vec::new(), Vec::new());
    let mut overheads = Vec::new();
    for round in 1..=rounds {
        let id = format!("bench{round}");
        let pod = Pod::new(&id, &config, &root, &["/bin/sleep", "3600"])
            .from_image(&image)
            .with_init_data(&init_data)
            .flag(&["--detach", "--null-io"]);
        let run = stage.run(&pod)?;
        ensure!(run.code == 0, "{}\n{}", run.report(), stage.log_tail());
        let shim = shim_mib(stage.state.path(), &id)?;
        let agent = agent_mib(&stage, &id)?;
        let programs = (agent.1, shim.1);
        shims.push(shim.0);
        agents.push(agent.0);
        overheads.push(overhead_mib(stage.state.path())?);
        starts.push(stage.timeline(&id)?);
        stage.containerd.remove(&id);
        eprintln!(
            "pod {round} of {rounds}: {} ms; agent {:.1} MiB, shim {:.1} MiB, of which program {:.1} and {:.1}",
            starts[starts.len() - 1].total(),
            agents[agents.len() - 1],
            shims[shims.len() - 1],
            programs.0,
            programs.1,
        );
    }

    let of = |part: &dyn Fn(&timeline::Timeline) -> Option<u64>| {
        let values: Vec<_> = starts
            .iter()
            .filter_map(part)
            .filter_map(|ms| u32::try_from(ms).ok())
            .map(f64::from)
            .collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let mut figures = Vec::new();
    for phase in timeline::PHASES {
        if let Some(value) = of(&|start| start.of(phase)) {
            figures.push(Figure::new(format!("start.{phase}"), value, "ms"));
        }
    }
    if let Some(total) = of(&|start| Some(start.total())) {
        figures.push(Figure::new("start.total", total, "ms"));
    }
    figures.push(Figure::new("shim.rss_mib", median(&shims), "MiB").at_most(MAX_SHIM));
    figures.push(Figure::new("agent.pss_mib", median(&agents), "MiB").at_most(MAX_AGENT));
    figures.push(Figure::new("vmm.overhead_mib", median(&overheads), "MiB"));
    Ok(figures)
}

/// Resident memory of the pod's shim, without the VM, which is a process of its own; and what of it is the program's
/// file.
fn shim_mib(base: &Path, id: &str) -> Result<(f64, f64)> {
    let shim = host::processes_of(base)
        .into_iter()
        .find(|process| process.command.contains(SHIM) && process.command.contains(id))
        .with_context(|| format!("no shim of {id} runs"))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid))?;
    let mib = |name: &str| -> Result<f64> {
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .context("the kernel does not say how much memory it has")?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    };
    Ok((mib("VmRSS:")?, mib("RssFile:")?))
}

/// What the pod costs the host beside its guest's memory: VMM, shim and helpers, each with its share of what it
/// maps with others. The guest's memory is the one thing that they share as a memory file.
fn overhead_mib(base: &Path) -> Result<f64> {
    let mut total = 0.0;
    let mut guest = 0.0;
    for process in host::processes_of(base) {
        let names = [SHIM, "qemu-system", "virtiofsd"];
        if !names.iter().any(|name| process.command.contains(name)) {
            continue;
        }
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()
        };
        let (all, shared) = (kib("Pss:"), kib("Pss_Shmem:"));
        let (all, shared) = all
            .zip(shared)
            .context("the kernel does not say how memory is shared")?;
        total += all - shared;
        guest += shared;
    }
    ensure!(guest > 0.0, "the guest's memory is no memory file");
    Ok(total / 1024.0)
}

/// The agent's proportional set size while the container runs, as the guest's kernel counts it: the
/// agent's pages, and its share of those that others map too. And what is resident of its program.
fn agent_mib(stage: &Stage, id: &str) -> Result<(f64, f64)> {
    let metrics = stage.metrics(id)?;
    let mib = |name: &str| -> Result<f64> {
        let bytes = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("the guest of {id} does not say {name}"))?;
        Ok(bytes.trim().parse::<f64>()? / 1024.0 / 1024.0)
    };
    Ok((
        mib("cloister_agent_pss_bytes ")?,
        mib("kata_agent_proc_status{item=\"rssfile\"} ")?,
    ))
}
