//! The guest's half of an attestation: from nothing to an opened key, on loopback, against the real broker.
//!
//! What it is compared with cannot be done without: what the TEE takes to sign its report, both ends' cryptography by
//! itself, and two round trips of bare bytes between the two cores. A connection, the third round trip (for the key) and
//! all of HTTP, JSON and policy are ours to keep small.

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
use crate::kbs::crypto::Crypto;

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

    let (mut ours, mut signing) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        client()?.resource(first).await?;
        ours.push(micros(began.elapsed()));
        let began = Instant::now();
        platform.report(&[7; REPORT_DATA_BYTES])?;
        signing.push(micros(began.elapsed()));
    }
    let (ours, signing) = (median(&ours), median(&signing));
    let floor = signing + both_ends(&Crypto::measure()?) + 2.0 * round_trip(cores)?;
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

/// Microseconds of the cryptography of a proof and a key: the broker's, and the guest's key pair, its agreement with the
/// broker's, and the unwrapping, which is as long as the wrapping.
fn both_ends(crypto: &Crypto) -> f64 {
    let guest = crypto.key_pair + crypto.agreement + crypto.wraps;
    crypto.attestation() + crypto.release() + guest
}

/// Microseconds of one round trip, from this core to the broker's and back.
fn round_trip(cores: Cores) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answering = thread::spawn(move || -> Result<()> {
        pin(cores.broker)?;
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut asked, answer) = ([0; ASKED_BYTES], [0; ANSWER_BYTES]);
        for _ in 0..ROUNDS {
            stream.read_exact(&mut asked)?;
            stream.write_all(&answer)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (asked, mut answer) = ([0; ASKED_BYTES], [0; ANSWER_BYTES]);
    let mut all = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        stream.write_all(&asked)?;
        stream.read_exact(&mut answer)?;
        all.push(micros(began.elapsed()));
    }
    let ended = answering.join();
    ended.map_err(|_| anyhow!("the answering end panicked"))??;
    Ok(median(&all))
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
