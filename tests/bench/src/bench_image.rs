//! `bench-image`: measures pulls of images, and prints each figure as a line that a script can read.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::figure::{Figure, median};
use bench::image::build::{self, Keys};
use bench::image::node::Node;
use bench::image::registry::PlainRegistry;
use bench::image::throttle::Line;
use bench::image::{Cost, Variant, floor, peer, pull, tree};
use clap::{Parser, Subcommand};
use support::State;
use support::run::within;

/// Measures pulls of images on this machine.
#[derive(Parser)]
struct Options {
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB of files in the image.
    #[arg(long, default_value_t = 300)]
    mib: u64,
    /// Where images are unpacked: memory, as in a guest.
    #[arg(long, default_value = "/dev/shm")]
    place: PathBuf,
    /// Only this variant.
    #[arg(long)]
    only: Option<Variant>,
    /// Layers at once; as the product has it, where nothing is said.
    #[arg(long)]
    layers: Option<NonZeroUsize>,
    /// Not against skopeo and umoci, nor over a slow line: for a profiler.
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    child: Option<Child>,
}

/// What a process of the bench does that does only this.
#[derive(Subcommand)]
enum Child {
    /// Pulls.
    #[command(hide = true)]
    Pull {
        image: String,
        target: PathBuf,
        #[arg(long)]
        layers: Option<NonZeroUsize>,
        #[arg(long)]
        key: Option<PathBuf>,
        #[arg(long)]
        node: Option<PathBuf>,
    },
    /// The floor.
    #[command(hide = true)]
    Floor {
        layout: PathBuf,
        target: PathBuf,
        #[arg(long)]
        key: Option<PathBuf>,
    },
}

const LIMIT: Duration = Duration::from_secs(300);
/// The line of the second pod's pull.
const BITS_PER_SECOND: f64 = 200e6;

fn main() -> Result<()> {
    let start = Instant::now();
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let Some(child) = options.child else {
        for figure in runtime.block_on(measure(&options))? {
            println!("{figure}");
        }
        return Ok(());
    };
    let cost = match child {
        Child::Pull {
            image,
            target,
            layers,
            key,
            node,
        } => {
            let pull = pull::once(&image, &target, read(key)?, layers, node, start);
            runtime.block_on(pull)?
        }
        Child::Floor {
            layout,
            target,
            key,
        } => runtime.block_on(floor::once(&layout, &target, read(key)?))?,
    };
    println!("{}", cost.to_json());
    Ok(())
}

fn read(key: Option<PathBuf>) -> Result<Option<Vec<u8>>> {
    Ok(key.map(std::fs::read).transpose()?)
}

/// The stage: the image in its registry, and where it is unpacked.
struct Stage {
    state: State,
    room: tempfile::TempDir,
    registry: PlainRegistry,
    private: PathBuf,
    key: PathBuf,
    layers: Option<NonZeroUsize>,
}

impl Stage {
    async fn build(options: &Options, variants: &[Variant]) -> Result<Self> {
        let state = State::new()?;
        let registry = PlainRegistry::start(&state)?;
        let keys = Keys::generate(&state)?;
        let layers = tree::layers(options.mib << 20)?;
        for (index, layer) in layers.iter().enumerate() {
            let mib = layer.tar.len() >> 20;
            eprintln!("layer {index}: {mib} MiB, {} files", layer.files);
        }
        build::layouts(state.path(), &layers, &keys).await?;
        let stage = Self {
            room: tempfile::Builder::new()
                .prefix("bench-image-")
                .tempdir_in(&options.place)?,
            key: state.file("key", keys.key.expose())?,
            private: keys.private,
            layers: options.layers,
            registry,
            state,
        };
        for variant in variants {
            build::push(stage.state.path(), *variant, &stage.image(*variant, None))?;
        }
        rustix::fs::sync();
        Ok(stage)
    }

    fn image(&self, variant: Variant, registry: Option<&str>) -> String {
        let registry = registry.unwrap_or_else(|| self.registry.address());
        format!("{registry}/usr:{}", variant.name())
    }

    /// Runs this program as a child, into a place that is empty before and after.
    fn child(&self, what: &str, from: &str, variant: Variant, node: Option<&Node>) -> Result<Cost> {
        let target = self.room.path().join("root");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(what).arg(from).arg(&target);
        if variant.is_encrypted() {
            command.arg("--key").arg(&self.key);
        }
        if let (Some(layers), "pull") = (self.layers, what) {
            command.arg("--layers").arg(layers.to_string());
        }
        if let Some(node) = node {
            command.arg("--node").arg(node.path());
        }
        let said = within(LIMIT, &mut command)?.ok()?;
        std::fs::remove_dir_all(&target)?;
        let cost = serde_json::from_str(&said.stdout)?;
        Cost::from_json(&cost).context("a child said something else")
    }

    fn floor(&self, variant: Variant) -> Result<Cost> {
        let layout = self.state.path().join(variant.name());
        self.child("floor", &layout.to_string_lossy(), variant, None)
    }

    fn pull(&self, variant: Variant) -> Result<Cost> {
        self.child("pull", &self.image(variant, None), variant, None)
    }

    fn peer(&self, variant: Variant) -> Result<Cost> {
        let room = self.room.path().join("peer");
        std::fs::create_dir(&room)?;
        let image = self.image(variant, None);
        let cost = peer::once(&image, variant, &self.private, &room)?;
        std::fs::remove_dir_all(&room)?;
        Ok(cost)
    }
}

/// What the rounds of one variant gave.
#[derive(Default)]
struct Measured {
    floor: Vec<Cost>,
    ours: Vec<Cost>,
    peer: Vec<Cost>,
    first: Vec<Cost>,
    second: Vec<Cost>,
}

async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let variants = options.only.map_or(Variant::ALL.to_vec(), |one| vec![one]);
    let stage = Stage::build(options, &variants).await?;
    let line = Line::start(stage.registry.address(), BITS_PER_SECOND).await?;
    let mut all: Vec<_> = variants
        .iter()
        .map(|variant| (*variant, Measured::default()))
        .collect();
    // The first round warms up.
    for round in 0..=options.rounds {
        for (variant, measured) in &mut all {
            let one = turn(&stage, &line, *variant, options)?;
            if round > 0 {
                measured.floor.extend(one.floor);
                measured.ours.extend(one.ours);
                measured.peer.extend(one.peer);
                measured.first.extend(one.first);
                measured.second.extend(one.second);
            }
        }
    }
    Ok(figures(&all))
}

/// All that is compared in turns, so that the machine's mood is the same for each.
fn turn(stage: &Stage, line: &Line, variant: Variant, options: &Options) -> Result<Measured> {
    let mut one = Measured {
        floor: vec![stage.floor(variant)?],
        ours: vec![stage.pull(variant)?],
        ..Measured::default()
    };
    if !options.quick {
        one.peer.push(stage.peer(variant)?);
        let node = Node::start(stage.state.path())?;
        let image = stage.image(variant, Some(line.address()));
        let through = || stage.child("pull", &image, variant, Some(&node));
        one.first.push(through()?);
        one.second.push(through()?);
    }
    let said = |costs: &[Cost]| {
        costs.first().map_or_else(String::new, |cost| {
            let Cost {
                wall,
                cpu,
                peak_mib,
            } = cost;
            format!("{wall:.2} s ({cpu:.2} s of cores, {peak_mib:.0} MiB)")
        })
    };
    eprintln!(
        "{}: floor {}, ours {}, skopeo and umoci {}, slow line {}, again {}",
        variant.name(),
        said(&one.floor),
        said(&one.ours),
        said(&one.peer),
        said(&one.first),
        said(&one.second),
    );
    Ok(one)
}

/// A figure's name, how it comes from the rounds, its goal, and whether more is worse.
struct Kind {
    name: &'static str,
    unit: &'static str,
    of: fn(&Measured) -> Vec<f64>,
    goal: Option<f64>,
    at_least: bool,
}

const KINDS: [Kind; 11] = [
    Kind::plain("image.floor_s", "s", |m| walls(&m.floor)),
    Kind::plain("image.floor_cpu_s", "s", |m| cpus(&m.floor)),
    Kind::plain("image.pull_s", "s", |m| walls(&m.ours)),
    Kind::plain("image.pull_cpu_s", "s", |m| cpus(&m.ours)),
    Kind::plain("image.skopeo_umoci_s", "s", |m| walls(&m.peer)),
    Kind::plain("image.skopeo_umoci_cpu_s", "s", |m| cpus(&m.peer)),
    Kind::plain("image.first_pull_s", "s", |m| walls(&m.first)),
    Kind {
        name: "image.pull.over_floor",
        unit: "ratio",
        of: |m| ratios(&m.ours, &m.floor),
        goal: Some(1.3),
        at_least: false,
    },
    Kind {
        name: "image.pull.over_skopeo_umoci",
        unit: "ratio",
        of: |m| ratios(&m.peer, &m.ours),
        goal: Some(2.5),
        at_least: true,
    },
    Kind {
        name: "image.peak_mib",
        unit: "MiB",
        of: peaks,
        goal: Some(48.0),
        at_least: false,
    },
    Kind {
        name: "image.second_pull_over_first",
        unit: "ratio",
        of: |m| ratios(&m.second, &m.first),
        goal: Some(0.5),
        at_least: false,
    },
];

impl Kind {
    const fn plain(name: &'static str, unit: &'static str, of: fn(&Measured) -> Vec<f64>) -> Self {
        Self {
            name,
            unit,
            of,
            goal: None,
            at_least: false,
        }
    }

    fn figure(&self, name: String, value: f64) -> Figure {
        let figure = Figure::new(name, value, self.unit);
        match self.goal {
            None => figure,
            Some(goal) if self.at_least => figure.at_least(goal),
            Some(goal) => figure.at_most(goal),
        }
    }
}

fn figures(all: &[(Variant, Measured)]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for kind in &KINDS {
        let mut worst: Option<f64> = None;
        for (variant, measured) in all {
            let values = (kind.of)(measured);
            if values.is_empty() {
                continue;
            }
            let value = median(&values);
            let name = format!("{}_{}", kind.name, variant.name());
            figures.push(kind.figure(name, value));
            worst = Some(match worst {
                None => value,
                Some(other) if kind.at_least => other.min(value),
                Some(other) => other.max(value),
            });
        }
        if let (Some(worst), Some(_)) = (worst, kind.goal) {
            figures.push(kind.figure(kind.name.to_owned(), worst));
        }
    }
    figures
}

fn walls(costs: &[Cost]) -> Vec<f64> {
    costs.iter().map(|cost| cost.wall).collect()
}

fn cpus(costs: &[Cost]) -> Vec<f64> {
    costs.iter().map(|cost| cost.cpu).collect()
}

/// Of the pull of each round that took the most; the node's mirror is fed and read by some.
fn peaks(measured: &Measured) -> Vec<f64> {
    let others = |round: usize| [&measured.first, &measured.second].map(|all| all.get(round));
    let rounds = measured.ours.iter().enumerate();
    rounds
        .map(|(round, ours)| {
            let others = others(round).into_iter().flatten();
            others.fold(ours.peak_mib, |most, cost| most.max(cost.peak_mib))
        })
        .collect()
}

/// Of the same round each.
fn ratios(over: &[Cost], under: &[Cost]) -> Vec<f64> {
    let pairs = over.iter().zip(under);
    pairs.map(|(over, under)| over.wall / under.wall).collect()
}
