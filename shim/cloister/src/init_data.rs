//! `cloister init-data`: what an owner binds to a pod, and the digest that a TEE will hold.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use evidence::init_data::content::{AA_TOML, CDH_TOML, POLICY_REGO};
use evidence::init_data::{Algorithm, InitData, InitDataDigest, annotation};
use serde::Serialize;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write init-data and print its digest.
    Build(Build),
    /// Print the digest of init-data.
    Digest(Existing),
    /// Print the pod's annotation that carries init-data.
    Annotation(Existing),
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let line = match self {
            Self::Build(build) => build.run()?.digest().to_string(),
            Self::Digest(existing) => existing.read()?.digest().to_string(),
            Self::Annotation(existing) => {
                let value = annotation::encode(&existing.read()?)?;
                format!("{}: {value}", annotation::KEY)
            }
        };
        writeln!(std::io::stdout(), "{line}")?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Existing {
    /// The init-data.
    file: PathBuf,
}

impl Existing {
    /// Also checks that the guest will obey it: a typing error is told here and not at the pod's start.
    fn read(&self) -> anyhow::Result<InitData> {
        read(&self.file)
    }
}

/// The digest of init-data that a guest will obey.
pub(super) fn digest(path: &Path) -> anyhow::Result<InitDataDigest> {
    Ok(read(path)?.digest())
}

/// Init-data that a guest will obey.
pub(super) fn read(path: &Path) -> anyhow::Result<InitData> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let data = InitData::parse(&bytes)?;
    data.content()?;
    Ok(data)
}

#[derive(Debug, Args)]
pub(super) struct Build {
    /// The broker that the guest asks for secrets.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// The certificates in PEM that the broker's TLS must chain to; public roots where absent.
    #[arg(long, value_name = "PEM", requires = "broker")]
    broker_cert: Option<PathBuf>,
    /// The policy over requests, in Rego.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Which images may run, as containers-policy.json; without one, a TEE pulls none.
    #[arg(long, value_name = "FILE")]
    image_policy: Option<PathBuf>,
    /// Where the broker keeps the credentials for registries: kbs:///repository/type/tag.
    #[arg(long, value_name = "KBS-URI")]
    registry_auth: Option<String>,
    /// A registry, host[:port], that is spoken to over plain HTTP.
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
    /// Roots in PEM that registries may chain to besides the public ones.
    #[arg(long, value_name = "PEM")]
    registry_cert: Vec<PathBuf>,
    /// The algorithm of the digest: sha256 fits SNP, sha384 fits TDX.
    #[arg(long, default_value = "sha256")]
    algorithm: Algorithm,
    /// Where to write it.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Build {
    fn run(self) -> anyhow::Result<InitData> {
        let cert = self.broker_cert.as_deref().map(read_text).transpose()?;
        let mut data = BTreeMap::new();
        if let Some(url) = &self.broker {
            let kbs = KbsTable {
                url,
                cert: cert.as_deref(),
            };
            data.insert(
                AA_TOML.to_owned(),
                toml::to_string(&Aa {
                    token_configs: TokenConfigs { kbs },
                })?,
            );
        }
        let cdh = Cdh {
            kbc: self.broker.as_deref().map(|url| Kbc {
                name: "cc_kbc",
                url,
                kbs_cert: cert.as_deref(),
            }),
            image: self.image()?,
        };
        data.insert(CDH_TOML.to_owned(), toml::to_string(&cdh)?);
        if let Some(path) = &self.policy {
            data.insert(POLICY_REGO.to_owned(), read_text(path)?);
        }
        let built = InitData::build(self.algorithm, data)?;
        built.content()?;
        fs::write(&self.output, built.text())
            .with_context(|| format!("write {}", self.output.display()))?;
        Ok(built)
    }

    fn image(&self) -> anyhow::Result<Image<'_>> {
        let rules = self
            .insecure_registry
            .iter()
            .map(|location| Rule {
                location,
                insecure: true,
            })
            .collect::<Vec<_>>();
        let roots = self
            .registry_cert
            .iter()
            .map(|path| read_text(path))
            .collect::<anyhow::Result<_>>()?;
        Ok(Image {
            image_security_policy: self.image_policy.as_deref().map(read_text).transpose()?,
            authenticated_registry_credentials_uri: self.registry_auth.as_deref(),
            extra_root_certificates: roots,
            registry_config: (!rules.is_empty()).then_some(RegistryConfig { registry: rules }),
        })
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// `aa.toml`, with CoCo's names.
#[derive(Serialize)]
struct Aa<'a> {
    token_configs: TokenConfigs<'a>,
}

#[derive(Serialize)]
struct TokenConfigs<'a> {
    kbs: KbsTable<'a>,
}

#[derive(Serialize)]
struct KbsTable<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<&'a str>,
}

/// `cdh.toml`, with CoCo's names.
#[derive(Serialize)]
struct Cdh<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kbc: Option<Kbc<'a>>,
    image: Image<'a>,
}

#[derive(Serialize)]
struct Kbc<'a> {
    name: &'a str,
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kbs_cert: Option<&'a str>,
}

#[derive(Serialize)]
struct Image<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    image_security_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authenticated_registry_credentials_uri: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extra_root_certificates: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_config: Option<RegistryConfig<'a>>,
}

#[derive(Serialize)]
struct RegistryConfig<'a> {
    registry: Vec<Rule<'a>>,
}

#[derive(Serialize)]
struct Rule<'a> {
    location: &'a str,
    insecure: bool,
}
