//! `kbs init`: everything that a broker needs to start, in one directory that is then its own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;
use evidence::Tee;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::DnsName;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{
    directory::{self, Made, PRIVATE, PUBLIC},
    out::say,
};
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

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Where to make it; the directory must be absent or empty, or left by an `init` that was ended.
    #[arg(long)]
    dir: PathBuf,
    /// DNS names and IP addresses of the server's certificate.
    #[arg(long = "name", value_name = "NAME", value_parser = server_name, default_values = ["localhost", "127.0.0.1"])]
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
        say!("made {}", dir.display());
        say!(
            "  start it:       kbs serve --config {}",
            dir.join(CONFIG).display()
        );
        say!("  guests pin:     {}", dir.join(ROOT).display());
        say!(
            "  administer by:  --admin-key {}",
            dir.join(ADMIN_KEY).display()
        );
        if self.accept.iter().any(|kind| !kind.is_hardware()) {
            say!("  simulated evidence is accepted: anybody can make it, so use no real secret");
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

    /// Makes the directory and all that is in it, or nothing, and says nothing.
    pub(super) fn make(&self) -> anyhow::Result<()> {
        let config = toml::to_string(&self.config()).context("write the configuration")?;
        let (admin, admin_public) = new_key()?;
        let (token, _) = new_key()?;
        let mut files = vec![
            public(CONFIG, config),
            private(ADMIN_KEY, admin),
            public("admin.pub", admin_public),
            private("token.key", token),
            private("store.key", Sealer::new_key()),
        ];
        files.extend(self.certificates()?);
        directory::make(&self.dir, &files)?;
        // The defaults must be ones that `serve` takes, so they are read back.
        Config::read(&self.dir.join(CONFIG))?;
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

    fn certificates(&self) -> anyhow::Result<[Made; 4]> {
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
        let chain = certificate.pem() + &issuer.pem();
        Ok([
            public(ROOT, issuer.pem()),
            private("tls-root.key", root_pem.into()),
            public("server.pem", chain),
            private("server.key", server_key.serialize_pem().into()),
        ])
    }
}

fn private(name: &'static str, text: Zeroizing<String>) -> Made {
    let mode = PRIVATE;
    Made { name, mode, text }
}

fn public(name: &'static str, text: String) -> Made {
    Made {
        name,
        mode: PUBLIC,
        text: text.into(),
    }
}

/// A name by which clients reach a server: a DNS name, of which the first label may be `*`, or an IP
/// address. A certificate for anything else would be one that no client takes.
fn server_name(text: &str) -> Result<String, String> {
    const WANTED: &str = "give a DNS name, such as kbs.example, or an IP address";
    if let Ok(address) = text.parse::<IpAddr>() {
        if address.is_unspecified() {
            return Err(format!("no client reaches this address: {WANTED}"));
        }
        return Ok(text.to_owned());
    }
    if text.is_empty() {
        return Err(format!("it is empty: {WANTED}"));
    }
    let plain = text.strip_prefix("*.").unwrap_or(text);
    if DnsName::try_from(plain).is_err() || plain.ends_with('.') {
        return Err(format!("no name of a server: {WANTED}"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_names_and_addresses_only() {
        for good in [
            "localhost",
            "kbs.example",
            "*.example.org",
            "127.0.0.1",
            "::1",
            "a_b.c",
        ] {
            assert_eq!(server_name(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            " ",
            "a b",
            "a..b",
            "a.",
            ".a",
            "*",
            "*.",
            "a.*.b",
            "https://a",
            "a:80",
            "[::1]",
            "0.0.0.0",
            "::",
            "\u{e9}.example",
            "-a.b",
            "a\n",
        ] {
            assert!(server_name(bad).is_err(), "{bad:?}");
        }
    }
}
