//! For whom an image is encrypted, as it is said on the command line, in the words of skopeo where it has some.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use ocicrypt::Key;
use ocicrypt::keyprovider::{Endpoint, Providers, VARIABLE};

use super::broker::Broker;
use super::key::{KeyId, read, read_or_make_kek};

/// Who can open the image afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recipient {
    /// A guest to which a broker releases the key.
    Broker {
        /// The broker's name of the key.
        kid: KeyId,
        /// The key's own file.
        file: Option<PathBuf>,
    },
    /// The holder of a private key.
    Jwe(PathBuf),
    /// Whoever the provider unwraps for.
    Provider(ProviderName),
}

/// A key provider, and what is said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProviderName {
    pub(super) name: String,
    pub(super) words: String,
}

impl FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        match scheme {
            "kbs" => {
                let (kid, file) = match text.split_once("::") {
                    None => (text, None),
                    Some((kid, word)) => match word.split_once('=') {
                        Some(("keypath", file)) if !file.is_empty() => (kid, Some(file.into())),
                        _ => return Err(format!("{word:?} is not keypath=FILE")),
                    },
                };
                Ok(Self::Broker {
                    kid: kid.parse()?,
                    file,
                })
            }
            "jwe" if !rest.is_empty() => Ok(Self::Jwe(rest.into())),
            "provider" => rest.parse().map(Self::Provider),
            "pkcs7" => Err(
                "PKCS#7 is refused: it wraps by RSA with PKCS#1 v1.5 padding, which whoever may try messages on can \
                 open. Give the certificate's public key as jwe:public.pem"
                    .to_owned(),
            ),
            "pgp" | "pkcs11" => Err(format!(
                "{scheme} is refused: no guest is given a keyring or a device. Use kbs:///, jwe: or provider:"
            )),
            _ => Err(
                "a recipient is kbs:///repository/type/tag[::keypath=FILE], jwe:PUBLIC.pem or provider:NAME[:WORDS]"
                    .to_owned(),
            ),
        }
    }
}

impl FromStr for ProviderName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, words) = text.split_once(':').unwrap_or((text, ""));
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if !is_name {
            return Err(
                "a key provider has a name of letters, digits, '.', '_' and '-'".to_owned(),
            );
        }
        Ok(Self {
            name: name.to_owned(),
            words: words.to_owned(),
        })
    }
}

/// Which key providers there are.
#[derive(Debug, Default, Args)]
pub(super) struct ProviderArgs {
    /// The file that names key providers, as skopeo and buildah read it.
    #[arg(long, value_name = "FILE", env = VARIABLE)]
    keyprovider_config: Option<PathBuf>,
}

impl ProviderArgs {
    /// How the provider is reached.
    pub(super) fn endpoint(&self, name: &str) -> anyhow::Result<Endpoint> {
        let path = self.keyprovider_config.as_deref().with_context(|| {
            format!(
                "key provider {name}: no file of providers; give --keyprovider-config, or {VARIABLE} in the \
                 environment"
            )
        })?;
        let providers = Providers::from_json(&read(path)?);
        let providers = providers.with_context(|| path.display().to_string())?;
        Ok(providers.get(name)?.clone())
    }
}

/// Where the key of a broker comes from, and goes to, before the image is encrypted.
pub(super) struct Preparation<'a> {
    pub(super) broker: Option<&'a Broker>,
    pub(super) replace: bool,
}

impl Preparation<'_> {
    /// The key, safe in its file or at the broker before it is used.
    pub(super) async fn key(&self, kid: &KeyId, file: Option<&Path>) -> anyhow::Result<Key> {
        let (key, made) = match (file, self.broker) {
            (Some(path), _) => read_or_make_kek(path)?,
            (None, Some(_)) => (Key::generate()?, true),
            (None, None) => {
                bail!("the key would be lost: give --key-file, or --kbs with --admin-token-file")
            }
        };
        let Some(broker) = self.broker else {
            eprintln!(
                "key {kid} is in its file only: register it at your broker as {}",
                kid.path()
            );
            return Ok(key);
        };
        if made && !self.replace && broker.has(kid).await? == Some(true) {
            bail!(
                "the broker has a key {kid} already, and images that need it would be lost with it: \
                 give that key with --key-file, another key id, or --replace-key"
            );
        }
        broker.register(kid, &key).await?;
        eprintln!("key {kid} is registered at the broker");
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_recipient_is_read() {
        let read = |text: &str| text.parse::<Recipient>().unwrap();
        let kid: KeyId = "kbs:///a/b/c".parse().unwrap();
        let broker = |file: Option<&str>| Recipient::Broker {
            kid: kid.clone(),
            file: file.map(PathBuf::from),
        };
        assert_eq!(read("kbs:///a/b/c"), broker(None));
        assert_eq!(read("kbs:///a/b/c::keypath=/k"), broker(Some("/k")));
        assert_eq!(read("jwe:/k.pem"), Recipient::Jwe("/k.pem".into()));
        let provider = |words: &str| {
            Recipient::Provider(ProviderName {
                name: "attestation-agent".to_owned(),
                words: words.to_owned(),
            })
        };
        assert_eq!(read("provider:attestation-agent"), provider(""));
        let words = "keypath=/k::keyid=kbs:///a/b/c";
        assert_eq!(
            read(&format!("provider:attestation-agent:{words}")),
            provider(words)
        );
    }

    #[test]
    fn what_is_no_recipient_is_told_with_the_fix() {
        for (text, words) in [
            ("pkcs7:/c.pem", "PKCS#1 v1.5"),
            ("pgp:me@example.com", "keyring"),
            ("/k.pem", "jwe:PUBLIC.pem"),
            ("jwe:", "jwe:PUBLIC.pem"),
            ("kbs://host/a/b/c", "kbs:///repository/type/tag"),
            ("kbs:///a/b/c::key=/k", "keypath=FILE"),
            ("provider:", "name"),
        ] {
            let error = text.parse::<Recipient>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
