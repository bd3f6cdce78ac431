//! `cloister image`: encrypt, decrypt, inspect.
//!
//! The order of an encryption is such that nothing is lost: the key is in its file, then at the broker, and only then
//! is the image pushed. A broker that refuses the key stops the command before the first byte of the image.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use image_rs::inspect::{self, LayerInspection};
use image_rs::manifest::Platform;
use image_rs::recrypt::{self, ProviderRecipient, Recipients};
use image_rs::{shown, shown_up_to};
use ocicrypt::packet::Format;
use tokio::signal::unix::{SignalKind, signal};

use super::key::{KeyFile, KeyId, OwnersKeys, read_public};
use super::recipient::{Preparation, ProviderArgs, ProviderName, Recipient};
use super::{bars, broker, registry};

/// Cap on a line about a layer, in characters: its parts are the image's.
const LINE_SHOWN: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Encrypt every layer of an image, and give the key to a broker.
    Encrypt(Box<Encrypt>),
    /// Decrypt an image with key files or key providers.
    Decrypt(Decrypt),
    /// Show the layers of an image and whose keys open them.
    Inspect(Inspect),
}

impl Command {
    /// A signal stops the work where it is; what it has written has no name yet, and is gone. The handlers stand before
    /// the first byte is read.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let work = async {
            match self {
                Self::Encrypt(command) => command.run().await,
                Self::Decrypt(command) => command.run().await,
                Self::Inspect(command) => command.run().await,
            }
        };
        tokio::select! {
            // An image that is whole was written, whatever came in the same moment.
            biased;
            done = work => return done,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        bail!("interrupted: no image was written")
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
    /// The image: docker://registry/repository:tag, oci:directory[:tag] or oci-archive:file[:tag].
    source: String,
    /// Where the encrypted image goes, in the same words.
    destination: String,
    /// For whom: kbs:///repository/type/tag[::keypath=FILE], jwe:PUBLIC.pem or provider:NAME[:WORDS]; each of several
    /// can open the image alone.
    #[arg(long, short, required_unless_present = "key_id")]
    recipient: Vec<Recipient>,
    /// The same as --recipient kbs:///repository/type/tag.
    #[arg(long)]
    key_id: Option<KeyId>,
    /// The broker's key, 32 raw bytes; made and written there where the file is absent.
    #[arg(long)]
    key_file: Option<PathBuf>,
    /// Let a new key take the place of one that the broker has under this name.
    #[arg(long)]
    replace_key: bool,
    /// How the key packet for a broker's guests is written; every release of Confidential Containers reads 1.
    #[arg(long, value_enum, default_value_t = PacketVersion::Two)]
    packet_version: PacketVersion,
    #[command(flatten)]
    providers: ProviderArgs,
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
        // What cannot be read or written, or is encrypted already, is told before a key is made for it.
        to.check_destination()?;
        let found = from.manifest(&self.selection.platform()).await?;
        recrypt::check_plain(&found.manifest)?;
        let recipients = self.recipients(broker.as_ref()).await?;
        let report = bars::report();
        let pushed =
            recrypt::encrypt(&from, &to, &self.selection.platform(), &recipients, &report).await;
        let digest = pushed.with_context(|| self.advice())?;
        writeln!(std::io::stdout(), "{digest}")?;
        Ok(())
    }

    /// Everybody is prepared in the order in which nothing is lost: brokers last, because only they are changed.
    async fn recipients(&self, broker: Option<&broker::Broker>) -> anyhow::Result<Recipients> {
        let mut recipients = Recipients {
            format: self.packet_version.into(),
            ..Recipients::default()
        };
        let mut brokers: Vec<_> = self.key_id.iter().map(|kid| (kid, None)).collect();
        for recipient in &self.recipient {
            match recipient {
                Recipient::Broker { kid, file } => brokers.push((kid, file.as_deref())),
                Recipient::Jwe(path) => recipients.public.push(read_public(path)?),
                Recipient::Provider(ProviderName { name, words }) => {
                    recipients.providers.push(ProviderRecipient {
                        name: name.clone(),
                        words: words.clone(),
                        endpoint: self.providers.endpoint(name)?,
                    });
                }
            }
        }
        let without_file = brokers.iter().filter(|(_, file)| file.is_none()).count();
        if self.key_file.is_some() && without_file != 1 {
            bail!(
                "--key-file is the key of {without_file} recipients: give each its own, \
                 kbs:///repository/type/tag::keypath=FILE"
            );
        }
        let preparation = Preparation {
            broker,
            replace: self.replace_key,
        };
        for (kid, file) in brokers {
            let file = file.or(self.key_file.as_deref());
            let key = preparation.key(kid, file).await?;
            recipients.broker.push((kid.to_string(), key));
        }
        Ok(recipients)
    }

    /// What to do after an upload that failed, with the keys where they are.
    fn advice(&self) -> &'static str {
        let has_broker = self.key_id.is_some()
            || (self.recipient.iter()).any(|to| matches!(to, Recipient::Broker { .. }));
        let has_own_file = |to: &Recipient| !matches!(to, Recipient::Broker { file: None, .. });
        let in_files = self.key_file.is_some()
            || (self.key_id.is_none() && self.recipient.iter().all(has_own_file));
        match (has_broker, in_files) {
            (true, true) => {
                "the image was not written; its key is in the key file, so just try again"
            }
            (true, false) => {
                "the image was not written; its key is at the broker: try again with --replace-key"
            }
            (false, _) => "the image was not written",
        }
    }
}

/// The versions of a key packet, as they are said on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PacketVersion {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
}

impl From<PacketVersion> for Format {
    fn from(version: PacketVersion) -> Self {
        match version {
            PacketVersion::One => Self::V1,
            PacketVersion::Two => Self::V2,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Decrypt {
    /// The encrypted image: docker://registry/repository:tag, oci:directory[:tag] or oci-archive:file[:tag].
    source: String,
    /// Where the decrypted image goes, in the same words.
    destination: String,
    /// A key-encryption key (32 raw bytes) or a recipient's private key (PEM, DER or JWK); with several
    /// key-encryption keys each as kbs:///repository/type/tag=FILE.
    #[arg(long, value_name = "FILE")]
    key_file: Vec<KeyFile>,
    /// A key provider that unwraps what it has wrapped: NAME[:WORDS].
    #[arg(long, value_name = "PROVIDER")]
    provider: Vec<ProviderName>,
    #[command(flatten)]
    providers: ProviderArgs,
    #[command(flatten)]
    registry: registry::RegistryArgs,
    #[command(flatten)]
    selection: Selection,
}

impl Decrypt {
    async fn run(self) -> anyhow::Result<()> {
        let [from, to] = self.registry.places([&self.source, &self.destination])?;
        let keys = OwnersKeys::read(&self.key_file, &self.provider, &self.providers)?;
        let report = bars::report();
        let platform = self.selection.platform();
        let written = recrypt::decrypt(&from, &to, &platform, &keys, &report).await;
        let digest = written.context("the image was not written")?;
        writeln!(std::io::stdout(), "{digest}")?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The image: docker://registry/repository:tag, oci:directory[:tag] or oci-archive:file[:tag].
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
            writeln!(out, "         {}", shown(&layer.media_type))?;
            for line in describe(layer) {
                writeln!(out, "         {line}")?;
            }
        }
        Ok(())
    }
}

/// What is said of a layer's encryption: never a key, only how it is called.
fn describe(layer: &LayerInspection) -> Vec<String> {
    let lines = match (&layer.damage, layer.encrypted) {
        (None, false) => vec!["not encrypted".to_owned()],
        (Some(damage), false) => vec![format!("not known whether it is encrypted: {damage}")],
        (Some(damage), true) => vec![format!("encrypted, but nobody can open it: {damage}")],
        (None, true) => ways(layer),
    };
    lines
        .iter()
        .map(|line| shown_up_to(line, LINE_SHOWN))
        .collect()
}

fn ways(layer: &LayerInspection) -> Vec<String> {
    let refused = layer.refused.iter().map(|way| format!("for {way}"));
    let cipher = layer.cipher.map(|cipher| format!("encrypted by {cipher}"));
    let ways = layer.ways.iter().map(|way| {
        let scheme = way.scheme.as_deref().map(|scheme| format!(" ({scheme})"));
        let kid = way.key_id.as_deref().map(|kid| format!(", key {kid}"));
        format!(
            "for {}{}{}",
            way.provider,
            scheme.unwrap_or_default(),
            kid.unwrap_or_default()
        )
    });
    cipher.into_iter().chain(ways).chain(refused).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_of_its_layers_steers_no_terminal() {
        let hostile = "x\u{1b}[2J\u{202e}\n".to_owned();
        let way = inspect::Way {
            provider: hostile.clone(),
            scheme: Some(hostile.clone()),
            key_id: Some(hostile.clone()),
        };
        let mut layer = LayerInspection {
            digest: image_rs::Digest::of(b""),
            size: 0,
            media_type: hostile.clone(),
            encrypted: true,
            cipher: None,
            ways: vec![way],
            refused: vec![hostile.clone()],
            damage: None,
        };
        let mut lines = describe(&layer);
        layer.damage = Some(hostile);
        lines.extend(describe(&layer));
        layer.encrypted = false;
        lines.extend(describe(&layer));
        assert_eq!(lines.len(), 4);
        for line in lines {
            let steers = |letter: char| letter.is_control() || letter == '\u{202e}';
            assert!(!line.contains(steers), "{line:?}");
        }
    }
}
