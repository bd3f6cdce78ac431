//! `cloister image`: encrypt, decrypt, inspect.
//!
//! The order of an encryption is such that nothing is lost: the key is in its file, then at the broker, and only then
//! is the image pushed. A broker that refuses the key stops the command before the first byte of the image.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use image_rs::inspect::{self, LayerInspection};
use image_rs::manifest::Platform;
use image_rs::recrypt::{self, Recipients};
use ocicrypt::Key;

use super::key::{FileKeys, KeyId, read_or_make_kek, read_public};
use super::{broker, progress, registry};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Encrypt every layer of an image, and give the key to a broker.
    Encrypt(Box<Encrypt>),
    /// Decrypt an image with a key file.
    Decrypt(Decrypt),
    /// Show the layers of an image and whose keys open them.
    Inspect(Inspect),
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Encrypt(command) => command.run().await,
            Self::Decrypt(command) => command.run().await,
            Self::Inspect(command) => command.run().await,
        }
    }
}

#[derive(Debug, Args)]
struct Selection {
    /// Whom the image is for, as os/architecture[/variant]; this machine where absent.
    #[arg(long, value_parser = parse_platform)]
    platform: Option<Platform>,
}

impl Selection {
    fn platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host)
    }
}

#[derive(Debug, Args)]
pub(super) struct Encrypt {
    /// The image: docker://registry/repository:tag or oci:directory[:tag].
    source: String,
    /// Where the encrypted image goes, in the same words.
    destination: String,
    /// The broker's name for the key: kbs:///repository/type/tag.
    #[arg(long, required_unless_present = "recipient")]
    key_id: Option<KeyId>,
    /// The key, 32 raw bytes; made and written there where the file is absent.
    #[arg(long, requires = "key_id")]
    key_file: Option<PathBuf>,
    /// Let a new key take the place of one that the broker has under this name.
    #[arg(long)]
    replace_key: bool,
    /// Also encrypt for this public key in PEM (JWE), as skopeo does.
    #[arg(long, value_name = "PEM")]
    recipient: Vec<PathBuf>,
    #[command(flatten)]
    broker: broker::BrokerArgs,
    #[command(flatten)]
    registry: registry::RegistryArgs,
    #[command(flatten)]
    selection: Selection,
}

impl Encrypt {
    async fn run(self) -> anyhow::Result<()> {
        let [from, to] = self.registry.places([&self.source, &self.destination])?;
        let broker = self.broker.open(self.registry.plain_http())?;
        let public = self
            .recipient
            .iter()
            .map(|path| read_public(path))
            .collect::<anyhow::Result<_>>()?;
        // An image that cannot be read is told before a key is made for it.
        from.manifest(&self.selection.platform()).await?;
        let mut recipients = Recipients {
            broker: Vec::new(),
            public,
        };
        if let Some(kid) = &self.key_id {
            let key = self.prepare_key(kid, broker.as_ref()).await?;
            recipients.broker.push((kid.to_string(), key));
        }
        let report = progress::bars();
        let pushed =
            recrypt::encrypt(&from, &to, &self.selection.platform(), &recipients, &report).await;
        let digest = pushed.with_context(|| self.advice())?;
        writeln!(std::io::stdout(), "{digest}")?;
        Ok(())
    }

    /// The key, safe in its file or at the broker before it is used.
    async fn prepare_key(
        &self,
        kid: &KeyId,
        broker: Option<&broker::Broker>,
    ) -> anyhow::Result<Key> {
        let (key, made) = match (&self.key_file, broker) {
            (Some(path), _) => read_or_make_kek(path)?,
            (None, Some(_)) => (Key::generate()?, true),
            (None, None) => {
                bail!("the key would be lost: give --key-file, or --kbs with --admin-token-file")
            }
        };
        let Some(broker) = broker else {
            eprintln!(
                "key {kid} is in its file only: register it at your broker as {}",
                kid.path()
            );
            return Ok(key);
        };
        if made && !self.replace_key && broker.has(kid).await? == Some(true) {
            bail!(
                "the broker has a key {kid} already, and images that need it would be lost with it: \
                 give that key with --key-file, another --key-id, or --replace-key"
            );
        }
        broker.register(kid, &key).await?;
        eprintln!("key {kid} is registered at the broker");
        Ok(key)
    }

    /// What to do after an upload that failed, with the key where it is.
    fn advice(&self) -> &'static str {
        match (&self.key_id, &self.key_file) {
            (Some(_), Some(_)) => {
                "the image was not pushed; its key is in the key file, so just try again"
            }
            (Some(_), None) => {
                "the image was not pushed; its key is at the broker: try again with --replace-key"
            }
            (None, _) => "the image was not pushed",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Decrypt {
    /// The encrypted image: docker://registry/repository:tag or oci:directory[:tag].
    source: String,
    /// Where the decrypted image goes, in the same words.
    destination: String,
    /// The key-encryption key (32 raw bytes), or a recipient's private key in PEM.
    #[arg(long)]
    key_file: PathBuf,
    #[command(flatten)]
    registry: registry::RegistryArgs,
    #[command(flatten)]
    selection: Selection,
}

impl Decrypt {
    async fn run(self) -> anyhow::Result<()> {
        let [from, to] = self.registry.places([&self.source, &self.destination])?;
        let keys = FileKeys::read(&self.key_file)?;
        let report = progress::bars();
        let digest =
            recrypt::decrypt(&from, &to, &self.selection.platform(), &keys, &report).await?;
        writeln!(std::io::stdout(), "{digest}")?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The image: docker://registry/repository:tag or oci:directory[:tag].
    image: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: registry::RegistryArgs,
    #[command(flatten)]
    selection: Selection,
}

impl Inspect {
    async fn run(self) -> anyhow::Result<()> {
        let [place] = self.registry.places([&self.image])?;
        let seen = inspect::inspect(&place, &self.selection.platform()).await?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&seen)?)?;
            return Ok(());
        }
        writeln!(out, "manifest {}", seen.manifest_digest)?;
        writeln!(out, "config   {}", seen.config_digest)?;
        for (index, layer) in seen.layers.iter().enumerate() {
            writeln!(out, "layer {index}  {}  {} bytes", layer.digest, layer.size)?;
            writeln!(out, "         {}", layer.media_type)?;
            writeln!(out, "         {}", describe(layer))?;
        }
        Ok(())
    }
}

fn describe(layer: &LayerInspection) -> String {
    if !layer.encrypted {
        return "not encrypted".to_owned();
    }
    if let Some(damage) = &layer.damage {
        return format!("encrypted, but nobody can open it: {damage}");
    }
    let ways = layer.ways.iter().map(|way| match &way.key_id {
        Some(kid) => format!("{} with {kid}", way.provider),
        None => way.provider.clone(),
    });
    format!("encrypted for {}", ways.collect::<Vec<_>>().join(", "))
}

fn parse_platform(text: &str) -> Result<Platform, String> {
    let mut parts = text.splitn(3, '/');
    let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
    match (os, architecture) {
        (Some(os), Some(architecture))
            if !os.is_empty() && !architecture.is_empty() && variant != Some("") =>
        {
            Ok(Platform::new(os, architecture, variant))
        }
        _ => Err("a platform is os/architecture[/variant]: linux/amd64, linux/arm/v7".to_owned()),
    }
}
