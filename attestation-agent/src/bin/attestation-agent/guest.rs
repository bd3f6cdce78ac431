//! What a guest asks for: evidence, a token, a resource, a sealed secret's content.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use attestation_agent::attester::{
    REPORT_DATA_BYTES, Registers, SampleAttester, SnpAttester, TdxAttester, Tsm, is_bound,
    snp_platform,
};
use attestation_agent::sealed::SEALED_BYTES;
use attestation_agent::{Attester, Broker, BrokerConfig, EventLog, Hub, HubError, ResourceUri};
use evidence::Tee;
use evidence::init_data::content::{BrokerLocation, SealedSecrets};
use evidence::init_data::{InitData, InitDataDigest, TEXT_BYTES};
use transport::TcpDial;

use super::{Error, file, print};

/// Bytes of a file with certificates, or with a key.
const PEM_BYTES: usize = 1024 * 1024;
/// Where guest-components have their log.
const LOG_DIRECTORY: &str = "/run/attestation-agent";

/// Which guest this is, and who its broker is.
#[derive(clap::Args)]
pub(super) struct Guest {
    /// The kind of evidence.
    #[arg(long)]
    tee: Tee,
    /// The broker, as `https://host[:port]`; that of init-data where absent.
    #[arg(long)]
    url: Option<String>,
    /// The certificates in PEM that the broker must chain to; the public web roots where absent.
    #[arg(long, requires = "url")]
    cert: Option<PathBuf>,
    /// Init-data in TOML, as the launch bound it.
    #[arg(long)]
    init_data: Option<PathBuf>,
    /// The public key in JWK that sealed secrets must be signed with, as `<kid>=<file>`; may be repeated.
    #[arg(long = "verification-key", value_name = "KID=FILE")]
    verification_keys: Vec<String>,
}

/// The services, and the log that they are recorded in.
pub(super) struct Services {
    pub(super) hub: Hub,
    pub(super) log: Arc<EventLog>,
}

/// What is done to the machine's log.
#[derive(Clone, Copy)]
pub(super) enum Log {
    /// It goes into evidence.
    Read,
    /// Events go into it too.
    Write,
}

#[derive(clap::Args)]
pub(super) struct Evidence {
    #[command(flatten)]
    guest: Guest,
    /// A text for the report, of at most 64 bytes.
    #[arg(long, conflicts_with = "runtime_data_file")]
    runtime_data: Option<String>,
    /// A file with the bytes for the report; `-` is standard input.
    #[arg(long)]
    runtime_data_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct Get {
    #[command(flatten)]
    guest: Guest,
    /// The resource, as `kbs:///<repository>/<type>/<tag>`.
    resource: ResourceUri,
}

#[derive(clap::Args)]
pub(super) struct Unseal {
    #[command(flatten)]
    guest: Guest,
    /// The variable or file that it is for, where it is bound to one.
    #[arg(long)]
    name: Option<String>,
    /// The file with the sealed secret; `-` is standard input.
    sealed: PathBuf,
}

impl Guest {
    /// The services, with a broker where one is named.
    pub(super) fn services(&self, log: Log) -> Result<Services, Error> {
        let init_data = match &self.init_data {
            Some(path) => Some(InitData::parse(&file::read(path, TEXT_BYTES)?)?),
            None => None,
        };
        let content = match &init_data {
            Some(init_data) => init_data.content()?,
            None => Default::default(),
        };
        let digest = init_data.as_ref().map(InitData::digest);
        let (attester, log) = proof(self.tee, init_data.as_ref(), log)?;
        check_bound(self.tee, attester.as_ref(), digest.as_ref())?;
        let location = match &self.url {
            Some(url) => Some(BrokerLocation {
                url: url.clone(),
                root_cert_pem: match &self.cert {
                    Some(path) => Some(file::read_text(path, PEM_BYTES)?.to_string()),
                    None => None,
                },
            }),
            None => content.broker,
        };
        let broker = match location {
            Some(location) => {
                let config = BrokerConfig::of_init_data(&location, self.tee);
                let (dial, proof) = (Arc::new(TcpDial), Arc::clone(&attester));
                let broker = Broker::new(&config, dial, proof, init_data.as_ref())?;
                Some(Arc::new(broker.with_event_log(Arc::clone(&log))))
            }
            None => None,
        };
        let sealed = self.with_keys(content.sealed)?;
        let hub = Hub::new(Some(attester), broker, sealed, digest);
        Ok(Services { hub, log })
    }

    /// The services of a guest that needs a broker.
    fn with_broker(&self) -> Result<Hub, Error> {
        let hub = self.services(Log::Read)?.hub;
        match hub.has_broker() {
            true => Ok(hub),
            false => Err(Error::NoBroker),
        }
    }

    fn with_keys(&self, mut sealed: SealedSecrets) -> Result<SealedSecrets, Error> {
        for key in &self.verification_keys {
            let (kid, path) = key.split_once('=').unwrap_or((key, key));
            let jwk = file::read_text(path.as_ref(), PEM_BYTES)?;
            sealed
                .verification_keys
                .insert(kid.to_owned(), jwk.to_string());
        }
        Ok(sealed)
    }

    pub(super) async fn token(self) -> Result<(), Error> {
        let token = self.with_broker()?.token().await?;
        print(format!("{token}\n").as_bytes())
    }
}

/// Refuses init-data that this machine was not launched with, before anything of it is used. Where none is given, what
/// was bound is the broker's to judge.
fn check_bound(
    tee: Tee,
    attester: &dyn Attester,
    digest: Option<&InitDataDigest>,
) -> Result<(), Error> {
    if digest.is_none() {
        return Ok(());
    }
    let bound = attester.launch_bound().map_err(HubError::from)?;
    match is_bound(tee, &bound, digest) {
        true => Ok(()),
        false => Err(Error::NotBound),
    }
}

/// The maker of evidence of a kind, and the log of what happens. Simulated kinds are signed by the host of a guest, and
/// so by none of this machine's.
fn proof(
    tee: Tee,
    init_data: Option<&InitData>,
    log: Log,
) -> Result<(Arc<dyn Attester>, Arc<EventLog>), Error> {
    let root = Path::new("/");
    match tee {
        Tee::Sample => {
            let attester = SampleAttester::new(init_data.map(InitData::digest));
            Ok((Arc::new(attester), Arc::new(EventLog::new(None))))
        }
        Tee::Snp => {
            let attester = SnpAttester::new(tee, snp_platform(root).map_err(HubError::from)?);
            Ok((Arc::new(attester), Arc::new(EventLog::new(None))))
        }
        Tee::Tdx => {
            let platform = Arc::new(Tsm::tdx_guest(root));
            let log = log_of_machine(platform.clone(), log)?;
            let attester = TdxAttester::new(tee, platform, Arc::clone(&log));
            Ok((Arc::new(attester), log))
        }
        Tee::SimSnp | Tee::SimTdx => Err(Error::Kind(tee)),
    }
}

/// The log that outlives this process, as the registers do.
fn log_of_machine(registers: Arc<dyn Registers>, log: Log) -> Result<Arc<EventLog>, Error> {
    let registers = Some(registers);
    Ok(Arc::new(match log {
        Log::Read => EventLog::look(registers, LOG_DIRECTORY),
        Log::Write => EventLog::open(registers, LOG_DIRECTORY)?,
    }))
}

impl Evidence {
    pub(super) async fn run(self) -> Result<(), Error> {
        let data = match (&self.runtime_data, &self.runtime_data_file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(path)) => file::read(path, REPORT_DATA_BYTES)?.to_vec(),
            (None, None) => Vec::new(),
        };
        let evidence = self.guest.services(Log::Read)?.hub.evidence(data).await?;
        print(format!("{evidence}\n").as_bytes())
    }
}

impl Get {
    pub(super) async fn run(self) -> Result<(), Error> {
        let hub = self.guest.with_broker()?;
        print(hub.resource(&self.resource).await?.expose())
    }
}

impl Unseal {
    pub(super) async fn run(self) -> Result<(), Error> {
        let hub = self.guest.with_broker()?;
        let sealed = file::read_text(&self.sealed, SEALED_BYTES)?;
        let opened = hub.unseal(&sealed, self.name.as_deref()).await?;
        print(opened.secret.expose())
    }
}
