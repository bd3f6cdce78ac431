//! The owner's side: makes the signing key, and seals.

use std::path::PathBuf;
use std::time::Duration;

use attestation_agent::sealed::{SealKey, Sealer, Terms};
use attestation_agent::{ResourceUri, Secret};

use super::{Error, file, print};

/// Bytes of a key on the owner's disk.
const KEY_BYTES: usize = 64 * 1024;
/// Bytes of a secret: a resource's cap.
const SECRET_BYTES: usize = 2 * 1024 * 1024;

#[derive(clap::Args)]
pub(super) struct MakeKey {
    /// The file for the private key; it must not exist.
    private_key: PathBuf,
}

/// The two kinds of sealed secrets.
#[derive(clap::Subcommand)]
pub(super) enum Seal {
    /// The secret stays at the broker: its resource is what is sealed.
    Vault {
        #[command(flatten)]
        by: By,
        /// The resource, as `kbs:///<repository>/<type>/<tag>`.
        resource: ResourceUri,
    },
    /// The secret travels, encrypted under a key of the broker.
    Envelope {
        #[command(flatten)]
        by: By,
        /// The broker's key, as `kbs:///<repository>/<type>/<tag>`.
        #[arg(long)]
        kek_id: ResourceUri,
        /// The file with the 32 bytes of that key.
        #[arg(long)]
        kek_file: PathBuf,
        /// The file with the secret; `-` is standard input.
        secret: PathBuf,
    },
}

/// Who seals, and on which terms.
#[derive(clap::Args)]
pub(super) struct By {
    /// The private key that `seal-key` made.
    #[arg(long)]
    key: PathBuf,
    /// How guests find the public key: `kbs:///<repository>/<type>/<tag>`, or a name in init-data.
    #[arg(long)]
    kid: String,
    /// The one environment variable, or the one file of a volume, that may hold the secret.
    #[arg(long)]
    name: Option<String>,
    /// The digest, `<algorithm>:<hex>`, of the init-data that the pod must have.
    #[arg(long)]
    init_data_digest: Option<String>,
    /// After how many seconds a guest must ask the broker again. For files of volumes only.
    #[arg(long, value_parser = clap::value_parser!(u64).range(5..=31_622_400))]
    lease_seconds: Option<u64>,
}

impl MakeKey {
    pub(super) fn run(self) -> Result<(), Error> {
        let key = SealKey::generate();
        file::write_new(&self.private_key, key.to_jwk().as_bytes())?;
        print(format!("{}\n", key.public_jwk()).as_bytes())
    }
}

impl Seal {
    pub(super) fn run(self) -> Result<(), Error> {
        let sealed = match self {
            Self::Vault { by, resource } => by.sealer()?.vault(&resource, &by.terms()),
            Self::Envelope {
                by,
                kek_id,
                kek_file,
                secret,
            } => {
                let kek = Secret::from(file::read(&kek_file, KEY_BYTES)?);
                let secret = Secret::from(file::read(&secret, SECRET_BYTES)?);
                by.sealer()?.envelope(&secret, &kek_id, &kek, &by.terms())?
            }
        };
        print(format!("{sealed}\n").as_bytes())
    }
}

impl By {
    fn sealer(&self) -> Result<Sealer, Error> {
        let key = SealKey::from_jwk(&file::read(&self.key, KEY_BYTES)?)?;
        Ok(Sealer::new(&key, &self.kid))
    }

    fn terms(&self) -> Terms {
        Terms {
            name: self.name.clone(),
            init_data: self.init_data_digest.clone(),
            lease: self.lease_seconds.map(Duration::from_secs),
        }
    }
}
