//! Asks a broker for a resource from any machine, with the evidence of a development kind.
//!
//! It is for those who set a broker up and want to see what a guest would get. The kind must be named,
//! and kinds with hardware behind them are refused: their evidence is made in a guest only.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use attestation_agent::{
    Broker, BrokerConfig, BrokerError, ConfigError, ResourceUri, attester::SampleAttester,
};
use clap::{Parser, Subcommand};
use evidence::{
    Tee,
    init_data::{InitData, InitDataError, TEXT_BYTES, content::BrokerLocation},
};
use transport::TcpDial;

/// Bytes of a file with certificates.
const PEM_BYTES: usize = 1024 * 1024;

/// Attests to a key broker.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a resource to standard output.
    GetResource(GetResource),
}

#[derive(clap::Args)]
struct GetResource {
    /// The kind of evidence; only `sample` can be made outside of a guest.
    #[arg(long)]
    tee: Tee,
    /// The broker, as `https://host[:port]`.
    #[arg(long)]
    url: String,
    /// The certificates in PEM that the broker must chain to; the public web roots where absent.
    #[arg(long)]
    cert: Option<PathBuf>,
    /// Init-data in TOML, which stands for what a launch would bind.
    #[arg(long)]
    init_data: Option<PathBuf>,
    /// The resource, as `kbs:///<repository>/<type>/<tag>`.
    resource: ResourceUri,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("evidence of `{0}` is made in a guest only: use `--tee sample`")]
    Kind(Tee),
    #[error("read {path}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error("{path} has more than {cap} bytes")]
    TooLarge { path: PathBuf, cap: usize },
    #[error("{path} is not UTF-8 text")]
    Text { path: PathBuf },
    #[error(transparent)]
    InitData(#[from] InitDataError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("write the resource: {0}")]
    Write(io::Error),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Command::GetResource(arguments) = Arguments::parse().command;
    match get_resource(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attestation-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn get_resource(arguments: GetResource) -> Result<(), Error> {
    if arguments.tee != Tee::Sample {
        return Err(Error::Kind(arguments.tee));
    }
    let root_cert_pem = match &arguments.cert {
        Some(path) => {
            let path = path.clone();
            let pem = read(&path, PEM_BYTES)?;
            Some(String::from_utf8(pem).map_err(|_| Error::Text { path })?)
        }
        None => None,
    };
    let init_data = match &arguments.init_data {
        Some(path) => Some(InitData::parse(&read(path, TEXT_BYTES)?)?),
        None => None,
    };
    let location = BrokerLocation {
        url: arguments.url,
        root_cert_pem,
    };
    let config = BrokerConfig::of_init_data(&location, arguments.tee);
    let attester = SampleAttester::new(init_data.as_ref().map(InitData::digest));
    let dial = Arc::new(TcpDial);
    let broker = Broker::new(&config, dial, Arc::new(attester), init_data.as_ref())?;
    let secret = broker.resource(&arguments.resource).await?;
    io::stdout()
        .write_all(secret.expose())
        .map_err(Error::Write)
}

fn read(path: &Path, cap: usize) -> Result<Vec<u8>, Error> {
    let failed = |cause| Error::Read {
        path: path.to_owned(),
        cause,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(cap as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > cap {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            cap,
        });
    }
    Ok(bytes)
}
