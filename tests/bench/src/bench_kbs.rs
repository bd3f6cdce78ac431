//! `bench-kbs`: measures the broker, and prints each figure as a line that a script can read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bench::figure::{Figure, median};
use bench::kbs::broker::{self, Broker};
use bench::kbs::core::{Cores, pin};
use bench::kbs::crypto::Crypto;
use bench::kbs::guest::{Guest, Kind, Work};
use bench::kbs::load::{self, Done};
use clap::Parser;
use evidence::init_data::InitData;
use support::State;

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
    /// A file with the share of single faults in percent whose cause was named, as the corpus's test
    /// leaves it.
    #[arg(long)]
    explained: Option<PathBuf>,
}

const INIT_DATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = \"[token_configs.kbs]\\nurl = 'https://broker'\"\n";
const SECRET_BYTES: usize = 32;
const RELEASE_POLICY: &str = "resource-policy";
/// The load at which latencies are taken, as a share of the most.
const LOAD: f64 = 0.8;

fn main() -> Result<()> {
    let options = Options::parse();
    let cores = Cores::choose()?;
    pin(cores.guests)?;
    let state = State::new()?;
    let small = Stage::start(&state, "small", 0, &options, cores)?;
    let large = Stage::start(&state, "large", options.resources, &options, cores)?;
    let mut figures = measure(small, large, &options, cores)?;
    if let Some(path) = &options.explained {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let percent = text.trim().parse().context("not a share in percent")?;
        figures.push(Figure::new("kbs.explain.exact_percent", percent, "percent").at_least(95.0));
    }
    for figure in figures {
        println!("{figure}");
    }
    Ok(())
}

/// A broker with its guests.
struct Stage {
    broker: Broker,
    attesting: Vec<Guest>,
    fetching: Vec<Guest>,
}

impl Stage {
    fn start(
        state: &State,
        name: &str,
        more: usize,
        options: &Options,
        cores: Cores,
    ) -> Result<Self> {
        let broker = Broker::start(state, name, &["sample"], cores)?;
        let resources: Vec<(String, Vec<u8>)> = (0..options.connections + more)
            .map(|number| {
                let byte = u8::try_from(number % 251).unwrap_or(0);
                (format!("bench/key/{number}"), vec![byte; SECRET_BYTES])
            })
            .collect();
        broker.put(&resources)?;
        let digest = InitData::parse(INIT_DATA.as_bytes())?.digest().hex();
        broker.release_policy(RELEASE_POLICY, &broker::pinned("sample", &digest)?)?;
        let start = |init_data: Option<&str>| {
            let kind = Arc::new(Kind {
                name: "sample",
                init_data: init_data.map(str::to_owned),
            });
            // Guests of a large store are spread over all of it.
            let step = resources.len() / options.connections.max(1);
            resources
                .iter()
                .step_by(step.max(1))
                .take(options.connections)
                .map(|(path, secret)| Guest::start(broker.address(), &kind, path, secret))
                .collect::<Result<Vec<_>>>()
        };
        let attesting = start(None)?;
        let mut fetching = start(Some(INIT_DATA))?;
        fetching.iter_mut().try_for_each(Guest::check)?;
        Ok(Self {
            broker,
            attesting,
            fetching,
        })
    }

    fn saturate(&mut self, work: Work, time: Duration) -> Result<Done> {
        let guests = match work {
            Work::Attest => &mut self.attesting,
            Work::Release => &mut self.fetching,
        };
        load::saturate(&self.broker, guests, work, time)
    }

    fn pace(&mut self, work: Work, time: Duration, rate: f64) -> Result<Done> {
        let guests = match work {
            Work::Attest => &mut self.attesting,
            Work::Release => &mut self.fetching,
        };
        load::pace(&self.broker, guests, work, time, rate)
    }
}

/// The small broker and the large one in turns, so that the machine's mood is the same for both.
fn measure(
    mut small: Stage,
    mut large: Stage,
    options: &Options,
    cores: Cores,
) -> Result<Vec<Figure>> {
    let time = Duration::from_secs_f64(options.seconds);
    let (mut cryptos, mut attests, mut releases) = (Vec::new(), Vec::new(), Vec::new());
    let (mut large_attests, mut large_releases) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        pin(cores.broker)?;
        let crypto = Crypto::measure()?;
        pin(cores.guests)?;
        let attest = small.saturate(Work::Attest, time)?;
        let release = small.saturate(Work::Release, time)?;
        let large_attest = large.saturate(Work::Attest, time)?;
        let large_release = large.saturate(Work::Release, time)?;
        eprintln!(
            "round {round}: sample attestation {:.0} us ({:.0}/s), release {:.0} us ({:.0}/s); \
             large store: {:.0} us, {:.0} us",
            attest.micros(),
            attest.rate(),
            release.micros(),
            release.rate(),
            large_attest.micros(),
            large_release.micros(),
        );
        // The first round warms up.
        if round > 0 {
            cryptos.push(crypto);
            attests.push(attest);
            releases.push(release);
            large_attests.push(large_attest);
            large_releases.push(large_release);
        }
    }
    let micros = |all: &[Done]| median(&all.iter().map(Done::micros).collect::<Vec<_>>());
    let most = |all: &[Done]| median(&all.iter().map(Done::rate).collect::<Vec<_>>());
    let crypto = Crypto::median(&cryptos);
    let (attest, release) = (micros(&attests), micros(&releases));
    let mut figures = crypto_figures(&crypto);
    figures.extend([
        Figure::new("kbs.attest.sample_us", attest, "us"),
        Figure::new("kbs.resource.us", release, "us"),
        Figure::new("kbs.attest.sample_per_core_second", 1e6 / attest, "/s").at_least(5000.0),
        Figure::new("kbs.resource.per_core_second", 1e6 / release, "/s").at_least(10_000.0),
        Figure::new(
            "kbs.resource.over_crypto",
            release / crypto.release(),
            "ratio",
        )
        .at_most(2.0),
    ]);
    let change = [
        micros(&large_attests) / attest,
        micros(&large_releases) / release,
    ];
    let change = change.into_iter().fold(0.0, f64::max) - 1.0;
    figures.push(Figure::new("kbs.large_store_percent", change * 100.0, "percent").at_most(10.0));
    let mut ratios = Vec::new();
    let mut rss: f64 = 0.0;
    for (work, rate, name) in [
        (Work::Attest, most(&attests), "kbs.attest.sample"),
        (Work::Release, most(&releases), "kbs.resource"),
    ] {
        let paced: Vec<Done> = (0..options.rounds)
            .map(|_| small.pace(work, time, rate * LOAD))
            .collect::<Result<_>>()?;
        let of = |share: f64| {
            median(
                &paced
                    .iter()
                    .map(|one| one.quantile(share) * 1000.0)
                    .collect::<Vec<_>>(),
            )
        };
        let ratio = |one: &Done| one.quantile(0.99) / one.quantile(0.5);
        ratios.push(median(&paced.iter().map(ratio).collect::<Vec<_>>()));
        figures.push(Figure::new(format!("{name}_p50_ms"), of(0.5), "ms"));
        figures.push(Figure::new(format!("{name}_p99_ms"), of(0.99), "ms"));
        rss = rss.max(small.broker.rss_mib()?);
    }
    let ratio = ratios.into_iter().fold(0.0, f64::max);
    figures.push(Figure::new("kbs.p99_over_p50", ratio, "ratio").at_most(5.0));
    figures.push(Figure::new("kbs.rss_mib", rss, "MiB").at_most(40.0));
    figures.push(Figure::new(
        "kbs.large_store_rss_mib",
        large.broker.rss_mib()?,
        "MiB",
    ));
    Ok(figures)
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
