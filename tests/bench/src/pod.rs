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

/// Starts the pod `rounds` times and yields the medians.
///
/// # Errors
/// When a part does not start, or a pod does not run.
pub fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let stage = Stage::confidential()?;
    let key = stage.key("image.key")?;
    let image = stage.push_encrypted(&Recipe::busybox("bench")?, "bench", &key, KEY_ID)?;
    let init_data = stage.init_data();
    let broker = stage.broker()?;
    broker.put(KEY_ID, &key)?;
    broker.release_only_to(&init_data.digest())?;
    let config = stage.settings().write(&stage.state, "bench.toml")?;
    let root = stage.empty();

    let (mut starts, mut shims, mut agents) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let id = format!("bench{round}");
        let pod = Pod::new(&id, &config, &root, &["/bin/sleep", "3600"])
            .from_image(&image)
            .with_init_data(&init_data)
            .flag(&["--detach", "--null-io"]);
        let run = stage.run(&pod)?;
        ensure!(run.code == 0, "{}\n{}", run.report(), stage.log_tail());
        shims.push(shim_rss_mib(stage.state.path(), &id)?);
        agents.push(agent_pss_mib(&stage, &id)?);
        starts.push(stage.timeline(&id)?);
        stage.containerd.remove(&id);
        eprintln!(
            "pod {round} of {rounds}: {} ms",
            starts[starts.len() - 1].total()
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
    figures.push(Figure::new("shim.rss_mib", median(&shims), "MiB"));
    figures.push(Figure::new("agent.pss_mib", median(&agents), "MiB"));
    Ok(figures)
}

/// Resident memory of the pod's shim, without the VM, which is a process of its own.
fn shim_rss_mib(base: &Path, id: &str) -> Result<f64> {
    let shim = host::processes_of(base)
        .into_iter()
        .find(|process| process.command.contains(SHIM) && process.command.contains(id))
        .with_context(|| format!("no shim of {id} runs"))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
        .context("the kernel does not say how much memory it has")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// The agent's proportional set size while the container runs, as the guest's kernel counts it: the
/// agent's pages, and its share of those that others map too.
fn agent_pss_mib(stage: &Stage, id: &str) -> Result<f64> {
    let metrics = stage.metrics(id)?;
    let bytes = metrics
        .lines()
        .find_map(|line| line.strip_prefix("cloister_agent_pss_bytes "))
        .with_context(|| format!("the guest of {id} does not say how much memory its agent has"))?;
    Ok(bytes.parse::<f64>()? / 1024.0 / 1024.0)
}
