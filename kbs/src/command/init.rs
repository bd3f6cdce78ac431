//! `kbs init`: everything that a broker needs to start, in one directory that is then its own.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use evidence::Tee;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::{
    collateral,
    config::{
        Admin, Attestation, Config, Limits, Log, Record, Reference, Store, Telemetry, Tls, Token,
    },
    seal::Sealer,
    token::new_key,
};

/// A root that guests pin in init-data must outlive the pods that pin it.
const ROOT_DAYS: i64 = 3650;
const SERVER_DAYS: i64 = 825;
/// The configuration's name in the directory.
pub(super) const CONFIG: &str = "kbs.toml";
/// The certificate that guests and owners pin.
pub(super) const ROOT: &str = "tls-root.pem";
/// The administrator's private key.
pub(super) const ADMIN_KEY: &str = "admin.key";
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Where to make it; the directory must be absent or empty.
    #[arg(long)]
    dir: PathBuf,
    /// DNS names and IP addresses of the server's certificate.
    #[arg(long = "name", default_values = ["localhost", "127.0.0.1"])]
    names: Vec<String>,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Kinds of evidence to accept. `sample` proves nothing: it is for development.
    #[arg(long = "accept")]
    accept: Vec<Tee>,
}

impl Init {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.make()?;
        let dir = &self.dir;
        println!("made {}", dir.display());
        println!(
            "  start it:       kbs serve --config {}",
            dir.join(CONFIG).display()
        );
        println!("  guests pin:     {}", dir.join(ROOT).display());
        println!(
            "  administer by:  --admin-key {}",
            dir.join(ADMIN_KEY).display()
        );
        if self.accept.iter().any(|kind| !kind.is_hardware()) {
            println!(
                "  simulated evidence is accepted: anybody can make it, so use no real secret"
            );
        }
        Ok(())
    }

    /// What a broker for development is made of: it accepts what anybody can make of nothing.
    pub(super) fn development(dir: PathBuf, listen: SocketAddr) -> Self {
        Self {
            dir,
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            listen,
            accept: vec![Tee::Sample],
        }
    }

    /// Makes the directory and all that is in it, and says nothing.
    pub(super) fn make(&self) -> anyhow::Result<()> {
        let dir = &self.dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make {}", dir.display()))?;
        if fs::read_dir(dir)?.next().is_some() {
            anyhow::bail!("{} is not empty: keys are never overwritten", dir.display());
        }
        self.write_certificates()?;
        let (admin, admin_public) = new_key()?;
        write(dir, ADMIN_KEY, PRIVATE, &admin)?;
        write(dir, "admin.pub", PUBLIC, &admin_public)?;
        let (token, _) = new_key()?;
        write(dir, "token.key", PRIVATE, &token)?;
        write(dir, "store.key", PRIVATE, &Sealer::new_key())?;
        let config = toml::to_string(&self.config()).context("write the configuration")?;
        write(dir, CONFIG, PUBLIC, &config)?;
        // The defaults must be ones that `serve` takes, so they are read back.
        Config::read(&dir.join(CONFIG))?;
        Ok(())
    }

    fn config(&self) -> Config {
        Config {
            listen: self.listen,
            metrics_listen: None,
            drain_seconds: 2,
            tls: Some(Tls {
                certificate: "server.pem".into(),
                key: "server.key".into(),
            }),
            insecure_http: false,
            store: Store {
                database: Some("kbs.sqlite".into()),
                url_file: None,
                key: Some("store.key".into()),
                key_env: None,
            },
            record: Record::default(),
            token: Token {
                signing_key: "token.key".into(),
                issuer: "cloister-kbs".to_owned(),
                lifetime_seconds: 300,
            },
            attestation: Attestation {
                accept: self.accept.iter().copied().collect(),
                ..Attestation::default()
            },
            reference: Reference::default(),
            admin: Admin {
                public_keys: vec!["admin.pub".into()],
                roles: BTreeSet::from(["admin".to_owned()]),
                audiences: BTreeSet::from(["kbs".to_owned()]),
                role: Vec::new(),
                issuer: Vec::new(),
            },
            limits: Limits {
                // All clients are on this machine, where one address is many of them.
                exempt_loopback: self.listen.ip().is_loopback(),
                ..Limits::default()
            },
            log: Log::default(),
            telemetry: Telemetry::default(),
            collateral: collateral::Config::default(),
        }
    }

    fn write_certificates(&self) -> anyhow::Result<()> {
        let now = OffsetDateTime::now_utc();
        let mut root = CertificateParams::new(Vec::new())?;
        root.distinguished_name
            .push(DnType::CommonName, "Cloister key broker root");
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A guest's clock may be a little behind.
        root.not_before = now - Duration::days(1);
        root.not_after = now + Duration::days(ROOT_DAYS);
        let root_key = KeyPair::generate()?;
        let root_pem = root_key.serialize_pem();
        let issuer = CertifiedIssuer::self_signed(root, root_key)?;
        let mut server = CertificateParams::new(self.names.clone()).context("--name")?;
        server
            .distinguished_name
            .push(DnType::CommonName, "Cloister key broker");
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        server.not_before = now - Duration::days(1);
        server.not_after = now + Duration::days(SERVER_DAYS);
        let server_key = KeyPair::generate()?;
        let certificate = server.signed_by(&server_key, &issuer)?;
        let dir = &self.dir;
        write(dir, ROOT, PUBLIC, &issuer.pem())?;
        write(dir, "tls-root.key", PRIVATE, &root_pem)?;
        let chain = certificate.pem() + &issuer.pem();
        write(dir, "server.pem", PUBLIC, &chain)?;
        write(dir, "server.key", PRIVATE, &server_key.serialize_pem())
    }
}

fn write(dir: &Path, name: &str, mode: u32, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}
