//! The file that names key providers: `ocicrypt_keyprovider.conf`, which `OCICRYPT_KEYPROVIDER_CONFIG` points to.
//!
//! `{"key-providers": {"<name>": {"cmd": {"path", "args"}} | {"grpc": "…"} | {"ttrpc": "…"}}}`. The file is read by
//! the caller, so that nothing here depends on the environment.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::address::{Address, AddressError};
use super::client::Endpoint;
use super::command::Command;

/// The environment variable that holds the file's path.
pub const VARIABLE: &str = "OCICRYPT_KEYPROVIDER_CONFIG";

/// Cap on the file, in bytes.
const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// Cap on the providers in it.
const PROVIDERS_MAX: usize = 64;

/// Why the file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A cap.
    #[error(
        "the configuration of key providers has more than {CONFIG_BYTES_MAX} bytes or {PROVIDERS_MAX} providers"
    )]
    TooLong,
    /// Not such a file.
    #[error(
        "the configuration of key providers is not {{\"key-providers\": {{name: {{\"cmd\"|\"grpc\"|\"ttrpc\"}}}}}}"
    )]
    Json(#[source] serde_json::Error),
    /// None or several ways to one provider.
    #[error("key provider {0:?} needs exactly one of cmd, grpc and ttrpc")]
    Ways(String),
    /// CoCo's provider inside the reader's own process.
    #[error(
        "key provider {0:?} is \"native\", which is a guest's own; give it as cmd, grpc or ttrpc"
    )]
    Native(String),
    /// Where it listens.
    #[error("key provider {name:?}")]
    Address {
        /// Which provider.
        name: String,
        /// What is wrong.
        #[source]
        source: AddressError,
    },
    /// ttRPC has no TCP.
    #[error("key provider {name:?}: ttRPC is spoken over unix:///path, and {address:?} is none")]
    Ttrpc {
        /// Which provider.
        name: String,
        /// Where it shall listen.
        address: String,
    },
    /// Nobody of this name.
    #[error("no key provider {wanted:?} in the file that {VARIABLE} names; it has: {found}")]
    Unknown {
        /// Who was asked for.
        wanted: String,
        /// Who is there.
        found: String,
    },
}

/// Providers by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Providers(BTreeMap<String, Endpoint>);

impl Providers {
    /// Reads the file's text.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong);
        }
        let wire: Wire = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        if wire.providers.len() > PROVIDERS_MAX {
            return Err(ConfigError::TooLong);
        }
        let providers = wire.providers.into_iter();
        let providers = providers.map(|(name, attributes)| {
            let endpoint = attributes.endpoint(&name)?;
            Ok((name, endpoint))
        });
        providers.collect::<Result<_, _>>().map(Self)
    }

    /// The provider of this name.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`].
    pub fn get(&self, name: &str) -> Result<&Endpoint, ConfigError> {
        self.0.get(name).ok_or_else(|| {
            let found: Vec<_> = self.0.keys().map(String::as_str).collect();
            ConfigError::Unknown {
                wanted: name.to_owned(),
                found: if found.is_empty() {
                    "none".to_owned()
                } else {
                    found.join(", ")
                },
            }
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "key-providers")]
    providers: BTreeMap<String, Attributes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attributes {
    cmd: Option<CommandWire>,
    grpc: Option<String>,
    ttrpc: Option<String>,
    native: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandWire {
    path: std::path::PathBuf,
    // Go leaves `null` for no arguments.
    args: Option<Vec<String>>,
}

impl Attributes {
    fn endpoint(self, name: &str) -> Result<Endpoint, ConfigError> {
        if self.native.is_some() {
            return Err(ConfigError::Native(name.to_owned()));
        }
        let address = |text: &str| {
            Address::parse(text).map_err(|source| ConfigError::Address {
                name: name.to_owned(),
                source,
            })
        };
        match (self.cmd, self.grpc, self.ttrpc) {
            (Some(CommandWire { path, args }), None, None) => {
                let args = args.unwrap_or_default();
                Ok(Endpoint::Command(Command { path, args }))
            }
            (None, Some(text), None) => Ok(Endpoint::Grpc(address(&text)?)),
            (None, None, Some(text)) => match address(&text)? {
                Address::Unix(path) => Ok(Endpoint::Ttrpc(path)),
                Address::Tcp(address) => Err(ConfigError::Ttrpc {
                    name: name.to_owned(),
                    address,
                }),
            },
            _ => Err(ConfigError::Ways(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(providers: &str) -> Result<Providers, ConfigError> {
        Providers::from_json(format!(r#"{{"key-providers":{{{providers}}}}}"#).as_bytes())
    }

    #[test]
    fn every_kind_of_provider_is_read() {
        let providers = read(
            r#""a":{"cmd":{"path":"/usr/bin/p","args":["x"]}},"b":{"cmd":{"path":"/p","args":null}},
               "c":{"grpc":"127.0.0.1:50000"},"d":{"ttrpc":"unix:///run/cdh.sock"}"#,
        )
        .unwrap();
        let command = |path: &str, args: &[&str]| {
            Endpoint::Command(Command {
                path: path.into(),
                args: args.iter().map(|&arg| arg.to_owned()).collect(),
            })
        };
        assert_eq!(*providers.get("a").unwrap(), command("/usr/bin/p", &["x"]));
        assert_eq!(*providers.get("b").unwrap(), command("/p", &[]));
        let tcp = Address::Tcp("127.0.0.1:50000".to_owned());
        assert_eq!(*providers.get("c").unwrap(), Endpoint::Grpc(tcp));
        assert_eq!(
            *providers.get("d").unwrap(),
            Endpoint::Ttrpc("/run/cdh.sock".into())
        );
        let error = providers.get("e").unwrap_err().to_string();
        assert!(error.contains("a, b, c, d"), "{error}");
    }

    #[test]
    fn what_would_be_guessed_at_is_refused_by_name() {
        for (providers, words) in [
            (r#""a":{}"#, "exactly one"),
            (
                r#""a":{"grpc":"127.0.0.1:1","ttrpc":"unix:///s"}"#,
                "exactly one",
            ),
            (r#""a":{"native":"attestation-agent"}"#, "native"),
            (r#""a":{"ttrpc":"127.0.0.1:1"}"#, "ttRPC"),
        ] {
            let error = read(providers).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(
            read(r#""a":{"grpc":"10.0.0.1:1"}"#),
            Err(ConfigError::Address { .. })
        ));
        assert!(matches!(
            read(r#""a":{"exec":"/p"}"#),
            Err(ConfigError::Json(_))
        ));
    }
}
