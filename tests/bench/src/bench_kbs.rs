//! `bench-kbs`: measures the broker, and prints each figure as a line that a script can read.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bench::figure::{Figure, median};
use bench::kbs::affinity::{Cores, pin};
use bench::kbs::broker::{self, Broker};
use bench::kbs::crypto::Crypto;
use bench::kbs::guest::{Attester, Guest, Kind, Work};
use bench::kbs::load::{self, Done};
use clap::Parser;
use evidence::init_data::InitData;
use evidence::sim::snp::{Chip, DevelopmentRoot, Validity};
use evidence::snp::{Generation, Report};
use support::{State, product};

/// Measures the key broker on two cores of this machine: one for it, one for its guests.
#[derive(Parser)]
struct Options {
    /// How often each load is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one load.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Guests at once, each on a connection of its own.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Resources in the store of the broker that is compared.
    #[arg(long, default_value_t = 10_000)]
    resources: usize,
    /// Release policies in it, each for a part of the resources.
    #[arg(long, default_value_t = 1000)]
    policies: usize,
    /// Only this load on the small store and no figures: for a profiler.
    #[arg(long)]
    only: Option<Load>,
    /// With `--only`: latencies at this share of the most that the broker can do.
    #[arg(long, requires = "only")]
    share: Option<f64>,
}

const INIT_DATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = \"[token_configs.kbs]\\nurl = 'https://broker'\"\n";
const SECRET_BYTES: usize = 32;
/// Resources that one guest asks for: more than the broker keeps decisions for.
const EACH: usize = 16;
/// Parts of the resources' paths.
const TENANTS: usize = 1000;
const VALIDITY: Validity = Validity {
    from: 1_700_000_000,
    until: 2_400_000_000,
};
/// About when an AMD platform of today was made; any would do.
const GENERATION: Generation = Generation::Genoa;
/// The load at which latencies are taken, as a share of the most.
const SHARE: f64 = 0.8;

fn main() -> Result<()> {
    let options = Options::parse();
    let cores = Cores::choose()?;
    pin(cores.guests)?;
    let state = State::new()?;
    let root = development_root()?;
    let certificates = state.file("sim-snp.pem", root.certificates_pem()?)?;
    let set = Set {
        state: &state,
        options: &options,
        cores,
        root: &root,
        certificates: &certificates,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let figures = runtime.block_on(async {
        let mut small = Stage::start(&set, "small", 0, 0).await?;
        if let Some(load) = options.only {
            let time = Duration::from_secs_f64(options.seconds);
            let done = small.run(load, time, None).await?;
            eprintln!("{:.1} us, {:.0}/s", done.micros(), done.rate());
            if let Some(share) = options.share {
                let done = small.run(load, time, Some(done.rate() * share)).await?;
                let [p50, p90, p99, most] =
                    [0.5, 0.9, 0.99, 1.0].map(|share| done.quantile(share) * 1000.0);
                eprintln!("p50 {p50:.2} ms, p90 {p90:.2}, p99 {p99:.2}, most {most:.2}");
            }
            return Ok(Vec::new());
        }
        let large = Stage::start(&set, "large", options.resources, options.policies).await?;
        measure(small, large, &options, cores).await
    })?;
    for figure in figures {
        println!("{figure}");
    }
    Ok(())
}

/// Making a root takes seconds, so the build directory keeps it.
fn development_root() -> Result<DevelopmentRoot> {
    let kept = product::target_dir().join("bench-sim-snp-root.pem");
    if let Ok(text) = std::fs::read_to_string(&kept) {
        return Ok(DevelopmentRoot::from_pem(&text)?);
    }
    let root = DevelopmentRoot::generate(VALIDITY)?;
    std::fs::write(&kept, root.to_pem()?.as_bytes())?;
    Ok(root)
}

/// What both brokers are made from.
struct Set<'a> {
    state: &'a State,
    options: &'a Options,
    cores: Cores,
    root: &'a DevelopmentRoot,
    certificates: &'a Path,
}

impl Set<'_> {
    fn snp(&self) -> Result<Attester> {
        let report = Report {
            measurement: [0xab; 48],
            ..Report::simulated(3, GENERATION)
        };
        let chip = Chip::of(&report, GENERATION, VALIDITY);
        Ok(Attester::Snp(Box::new(report), self.root.chip(&chip)?))
    }
}

/// A broker with its guests.
struct Stage {
    broker: Broker,
    sample: Vec<Guest>,
    snp: Vec<Guest>,
    fetching: Vec<Guest>,
}

/// What is measured.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Load {
    Sample,
    Snp,
    Release,
    Another,
}

impl Stage {
    async fn start(set: &Set<'_>, name: &str, more: usize, policies: usize) -> Result<Self> {
        let guests = set.options.connections;
        let broker = Broker::start(set.state, name, set.certificates, set.cores)?;
        let resources: Vec<(String, Vec<u8>)> = (0..guests * EACH + more)
            .map(|number| {
                let byte = u8::try_from(number % 251).unwrap_or(0);
                let path = format!("{}/key/{number}", tenant(number));
                (path, vec![byte; SECRET_BYTES])
            })
            .collect();
        broker.put(&resources).await?;
        let digest = InitData::parse(INIT_DATA.as_bytes())?.digest().hex();
        let rego = broker::pinned("sample", &digest)?;
        let scopes: Vec<String> = (0..policies).map(tenant).collect();
        broker.release_policies(&[String::new()], &rego).await?;
        broker.release_policies(&scopes, &rego).await?;
        // Guests of a large store are spread over all of it.
        let asked: Vec<_> = resources
            .chunks(resources.len() / guests)
            .filter_map(|part| part.get(..EACH))
            .take(guests)
            .collect();
        let start = async |attester: Attester, init_data: Option<&str>| {
            let kind = Arc::new(Kind {
                attester,
                init_data: init_data.map(str::to_owned),
            });
            let mut all = Vec::new();
            for resources in &asked {
                all.push(Guest::start(broker.address(), &kind, resources).await?);
            }
            anyhow::Ok(all)
        };
        let sample = start(Attester::Sample, None).await?;
        let snp = start(set.snp()?, None).await?;
        let mut fetching = start(Attester::Sample, Some(INIT_DATA)).await?;
        for guest in &mut fetching {
            guest.check().await?;
        }
        Ok(Self {
            broker,
            sample,
            snp,
            fetching,
        })
    }

    async fn run(&mut self, load: Load, time: Duration, rate: Option<f64>) -> Result<Done> {
        let (guests, work) = match load {
            Load::Sample => (&mut self.sample, Work::Attest),
            Load::Snp => (&mut self.snp, Work::Attest),
            Load::Release => (&mut self.fetching, Work::Release),
            Load::Another => (&mut self.fetching, Work::Another),
        };
        match rate {
            None => load::saturate(&self.broker, guests, work, time).await,
            Some(rate) => load::pace(&self.broker, guests, work, time, rate).await,
        }
    }
}

fn tenant(number: usize) -> String {
    format!("tenant{}", number % TENANTS)
}

/// What the rounds gave.
#[derive(Default)]
struct Measured {
    crypto: Vec<Crypto>,
    sample: Vec<Done>,
    snp: Vec<Done>,
    release: Vec<Done>,
    another: Vec<Done>,
    /// Of the large store, over the small one of the same round.
    change: Vec<f64>,
}

/// The small broker and the large one in turns, so that the machine's mood is the same for both.
async fn measure(
    mut small: Stage,
    mut large: Stage,
    options: &Options,
    cores: Cores,
) -> Result<Vec<Figure>> {
    let time = Duration::from_secs_f64(options.seconds);
    let mut all = Measured::default();
    // The first round warms up.
    for round in 0..=options.rounds {
        let one = turn(&mut small, &mut large, time, cores).await?;
        if round > 0 {
            all.crypto.extend(one.crypto);
            all.sample.extend(one.sample);
            all.snp.extend(one.snp);
            all.release.extend(one.release);
            all.another.extend(one.another);
            all.change.extend(one.change);
        }
    }
    let mut figures = costs(&all);
    let rates = [
        (Load::Sample, rate(&all.sample), "kbs.attest.sample"),
        (Load::Release, rate(&all.release), "kbs.resource"),
    ];
    let mut worst: f64 = 0.0;
    let mut rss: f64 = 0.0;
    for (load, rate, name) in rates {
        let mut paced = Vec::new();
        for _ in 0..options.rounds {
            paced.push(small.run(load, time, Some(rate * SHARE)).await?);
        }
        let of = |of: &dyn Fn(&Done) -> f64| median(&paced.iter().map(of).collect::<Vec<_>>());
        let (p50, p99) = (of(&|one| one.quantile(0.5)), of(&|one| one.quantile(0.99)));
        figures.push(Figure::new(format!("{name}_p50_ms"), p50 * 1000.0, "ms"));
        figures.push(Figure::new(format!("{name}_p99_ms"), p99 * 1000.0, "ms"));
        worst = worst.max(of(&|one| one.quantile(0.99) / one.quantile(0.5)));
        rss = rss.max(small.broker.rss_mib()?);
    }
    figures.push(Figure::new("kbs.p99_over_p50", worst, "ratio").at_most(5.0));
    figures.push(Figure::new("kbs.rss_mib", rss, "MiB").at_most(40.0));
    let large = large.broker.rss_mib()?;
    figures.push(Figure::new("kbs.large_store_rss_mib", large, "MiB"));
    Ok(figures)
}

async fn turn(
    small: &mut Stage,
    large: &mut Stage,
    time: Duration,
    cores: Cores,
) -> Result<Measured> {
    pin(cores.broker)?;
    let crypto = Crypto::measure()?;
    pin(cores.guests)?;
    let sample = small.run(Load::Sample, time, None).await?;
    let large_sample = large.run(Load::Sample, time, None).await?;
    let release = small.run(Load::Release, time, None).await?;
    let large_release = large.run(Load::Release, time, None).await?;
    let another = small.run(Load::Another, time, None).await?;
    let snp = small.run(Load::Snp, time, None).await?;
    let said = |done: &Done| format!("{:.0} us ({:.0}/s)", done.micros(), done.rate());
    eprintln!(
        "sample {}, with a large store {}; release {}, with a large store {}, of \
         another resource {}; snp {}",
        said(&sample),
        said(&large_sample),
        said(&release),
        said(&large_release),
        said(&another),
        said(&snp),
    );
    let change = [(&sample, &large_sample), (&release, &large_release)]
        .map(|(small, large)| large.micros() / small.micros());
    Ok(Measured {
        crypto: vec![crypto],
        sample: vec![sample],
        snp: vec![snp],
        release: vec![release],
        another: vec![another],
        change: vec![change.into_iter().fold(0.0, f64::max)],
    })
}

fn micros(all: &[Done]) -> f64 {
    median(&all.iter().map(Done::micros).collect::<Vec<_>>())
}

fn rate(all: &[Done]) -> f64 {
    median(&all.iter().map(Done::rate).collect::<Vec<_>>())
}

fn costs(all: &Measured) -> Vec<Figure> {
    let crypto = Crypto::median(&all.crypto);
    let (sample, snp, release) = (micros(&all.sample), micros(&all.snp), micros(&all.release));
    let over = |ours: &[Done], theirs: fn(&Crypto) -> f64| {
        let ratios = ours.iter().zip(&all.crypto);
        median(
            &ratios
                .map(|(ours, crypto)| ours.micros() / theirs(crypto))
                .collect::<Vec<_>>(),
        )
    };
    let change = (median(&all.change) - 1.0) * 100.0;
    let mut figures = crypto_figures(&crypto);
    figures.extend([
        Figure::new("kbs.attest.sample_us", sample, "us"),
        Figure::new("kbs.attest.snp_us", snp, "us"),
        Figure::new("kbs.resource.us", release, "us"),
        Figure::new("kbs.resource.another_us", micros(&all.another), "us"),
        Figure::new(
            "kbs.attest.over_crypto",
            over(&all.snp, Crypto::attestation),
            "ratio",
        )
        .at_most(1.6),
        Figure::new(
            "kbs.resource.over_crypto",
            over(&all.release, Crypto::release),
            "ratio",
        )
        .at_most(2.0),
        Figure::new("kbs.attest.sample_per_core_second", 1e6 / sample, "/s").at_least(5000.0),
        Figure::new("kbs.attest.snp_per_core_second", 1e6 / snp, "/s"),
        Figure::new("kbs.resource.per_core_second", 1e6 / release, "/s").at_least(10_000.0),
        Figure::new("kbs.large_store_percent", change, "percent").at_most(10.0),
    ]);
    figures
}

fn crypto_figures(crypto: &Crypto) -> Vec<Figure> {
    [
        ("report_verify_us", crypto.report_verify),
        ("token_sign_us", crypto.token_sign),
        ("token_verify_us", crypto.token_verify),
        ("key_pair_us", crypto.key_pair),
        ("agreement_us", crypto.agreement),
        ("wraps_us", crypto.wraps),
        ("attestation_us", crypto.attestation()),
        ("release_us", crypto.release()),
    ]
    .into_iter()
    .map(|(name, micros)| Figure::new(format!("kbs.crypto.{name}"), micros, "us"))
    .collect()
}
