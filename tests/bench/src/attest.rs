//! The guest's half of an attestation: from nothing to an opened key, on loopback, against the real broker.
//!
//! What it is compared with cannot be done without: two round trips of bare bytes between the two cores, in which the
//! TEE signs its report and both ends do their cryptography, and nothing else. The two are measured in turns, so that
//! caches and clocks are as cold for one as for the other: in a loop by itself the same cryptography takes three
//! quarters of the time. A connection, the third round trip (for the key), all of HTTP, JSON and policy, and the wait
//! for the disk that the broker's record is on are ours to keep small.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use attestation_agent::attester::{Platform, REPORT_DATA_BYTES, Report as Signed, SnpAttester};
use attestation_agent::{Broker as Client, BrokerConfig, EventLog, ResourceUri};
use evidence::Tee;
use evidence::init_data::{Algorithm, InitData};
use evidence::sim::snp::{Chip, ChipKey, DevelopmentRoot, Validity};
use evidence::snp::{Certificate, Generation, Report};
use futures_util::future::try_join_all;
use support::{State, dev_tee};
use transport::TcpDial;

use crate::figure::{Figure, median};
use crate::kbs::affinity::{Cores, pin};
use crate::kbs::broker::{self, Broker};
use crate::kbs::crypto::Work;

/// How often each is done, in turns.
const ROUNDS: usize = 40;
/// The goal of both ends' cryptography and their round trips.
const OVER_CRYPTO: f64 = 1.5;
/// Keys of a pod's layers, and its secrets.
const LAYERS: usize = 6;
const SECRETS: usize = 3;
/// The most MiB that trust services add to the agent.
const ADDED_MIB: f64 = 3.0;
const SECRET_BYTES: usize = 32;
/// Bytes of a round trip: about those of evidence, and of a token.
const ASKED_BYTES: usize = 8192;
const ANSWER_BYTES: usize = 2048;
const GENERATION: Generation = Generation::Genoa;
const VALIDITY: Validity = Validity {
    from: 1_700_000_000,
    until: 2_400_000_000,
};

/// A launch, and the key of the chip that it is on.
struct Launched {
    report: Report,
    key: ChipKey,
    asked: Mutex<usize>,
}

impl Platform for Launched {
    fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> io::Result<Signed> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut report = self.report.clone();
        report.report_data = *report_data;
        self.key.sign(&mut report).map_err(io::Error::other)?;
        Ok(Signed {
            outblob: report.to_bytes().map_err(io::Error::other)?.to_vec(),
            auxblob: Certificate::to_table(&[self.key.certificate_entry()]),
        })
    }

    fn boot_log(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// Measures.
///
/// # Errors
/// When the broker does not start, or refuses.
pub fn measure() -> Result<Vec<Figure>> {
    // On a thread of its own, for it is tied to one core.
    let measuring = thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build()?;
        runtime.block_on(all())
    });
    measuring
        .join()
        .map_err(|_| anyhow!("the measurement panicked"))?
}

async fn all() -> Result<Vec<Figure>> {
    let cores = Cores::choose()?;
    let state = State::new()?;
    let dir = dev_tee::directory()?;
    let root = DevelopmentRoot::from_pem(&std::fs::read_to_string(dir.join("snp-root.key"))?)?;
    let broker = Broker::start(&state, "attest", &dir.join("snp-root.pem"), cores)?;
    pin(cores.guests)?;
    let resources: Vec<(String, Vec<u8>)> = (0..LAYERS + SECRETS)
        .map(|number| (format!("default/key/{number}"), vec![7; SECRET_BYTES]))
        .collect();
    broker.put(&resources).await?;
    let init_data = InitData::build(Algorithm::Sha256, [("x".to_owned(), "y".to_owned())].into())?;
    let rego = broker::pinned("sim-snp", &init_data.digest().hex())?;
    broker.release_policies(&[String::new()], &rego).await?;

    let mut report = Report {
        measurement: [0xab; 48],
        ..Report::simulated(3, GENERATION)
    };
    let key = root.chip(&Chip::of(&report, GENERATION, VALIDITY))?;
    report
        .host_data
        .copy_from_slice(init_data.digest().as_bytes());
    let platform = Arc::new(Launched {
        report,
        key,
        asked: Mutex::default(),
    });
    let client = || client(&broker, &platform, &init_data);
    let uris: Vec<ResourceUri> = resources
        .iter()
        .map(|(path, _)| anyhow::Ok(format!("kbs:///{path}").parse::<ResourceUri>()?))
        .collect::<Result<_>>()?;
    let first = uris.first().context("no resource")?;

    let before = rss_mib()?;
    let pod = client()?;
    let opened = try_join_all(uris.iter().map(|uri| pod.resource(uri))).await?;
    ensure!(
        opened
            .iter()
            .all(|secret| secret.expose() == [7; SECRET_BYTES])
    );
    let per_pod = *platform
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let added = rss_mib()? - before;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let mut bare = Bare::start(cores)?;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        client()?.resource(first).await?;
        ours.push(micros(began.elapsed()));
        let began = Instant::now();
        bare.attest(&platform)?;
        floor.push(micros(began.elapsed()));
    }
    let (ours, floor) = (median(&ours), median(&floor));
    let per_pod = f64::from(u32::try_from(per_pod)?);
    Ok(vec![
        Figure::new("attest.to_key_us", ours, "us"),
        Figure::new("attest.floor_us", floor, "us"),
        Figure::new("attest.over_crypto", ours / floor, "ratio").at_most(OVER_CRYPTO),
        Figure::new("attest.per_pod", per_pod, "attestations").at_most(1.0),
        Figure::new("attest.agent_rss_added_mib", added, "MiB").at_most(ADDED_MIB),
    ])
}

fn client(broker: &Broker, platform: &Arc<Launched>, init_data: &InitData) -> Result<Client> {
    let mut config = BrokerConfig::new(format!("http://{}", broker.address()), None);
    config.plain_http = true;
    let attester = SnpAttester::new(Tee::SimSnp, Arc::clone(platform) as Arc<dyn Platform>);
    let client = Client::new(
        &config,
        Arc::new(TcpDial),
        Arc::new(attester),
        Some(init_data),
    )?;
    let log = EventLog::new(None);
    log.extend(
        "cloister",
        "InitData",
        &init_data.digest().to_string(),
        None,
    )?;
    Ok(client.with_event_log(Arc::new(log)))
}

/// Both ends of an attestation and a release without anything but their cryptography.
struct Bare {
    stream: TcpStream,
    work: Work,
}

impl Bare {
    /// The answering end goes on, on the broker's core, until this end is dropped.
    fn start(cores: Cores) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        stream.set_nodelay(true)?;
        let (answering, _) = listener.accept()?;
        answering.set_nodelay(true)?;
        let work = Work::new()?;
        thread::spawn(move || -> Result<()> {
            pin(cores.broker)?;
            Self::answer(answering, &work)
        });
        let work = Work::new()?;
        Ok(Self { stream, work })
    }

    fn answer(mut stream: TcpStream, work: &Work) -> Result<()> {
        let (mut asked, answer) = ([0; ASKED_BYTES], [0; ANSWER_BYTES]);
        loop {
            stream.read_exact(&mut asked)?;
            work.attestation()?;
            stream.write_all(&answer)?;
            stream.read_exact(&mut asked)?;
            work.release()?;
            stream.write_all(&answer)?;
        }
    }

    fn attest(&mut self, platform: &Launched) -> Result<()> {
        platform.report(&[7; REPORT_DATA_BYTES])?;
        self.round_trip()?;
        self.round_trip()?;
        self.work.exchange()
    }

    fn round_trip(&mut self) -> Result<()> {
        let mut answer = [0; ANSWER_BYTES];
        self.stream.write_all(&[0; ASKED_BYTES])?;
        Ok(self.stream.read_exact(&mut answer)?)
    }
}

fn rss_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
        .context("the kernel does not say how much memory this has")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

fn micros(took: Duration) -> f64 {
    took.as_secs_f64() * 1e6
}
