//! Whether a broker would start with a configuration, and what an operator will want to know of it
//! before it does. Nothing is changed by looking.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use time::OffsetDateTime;

use crate::{
    admin::Admins,
    broker::{OpenError, master_keys, store_address},
    config::Config,
    master::{KeyRing, Source},
    session::seconds,
    signer::Signers,
    store::{Found, probe, unknown},
    telemetry::Traces,
    tls::{NEAR_END, Shown},
    token::TokenSigner,
    verify::Verifiers,
};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Good,
    /// It starts, and somebody should look.
    Warning,
    /// It does not start, or no guest could use it.
    Fault,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    about: &'static str,
    text: String,
}

impl Finding {
    pub(crate) fn new(level: Level, about: &'static str, text: impl Into<String>) -> Self {
        Self {
            level,
            about,
            text: text.into(),
        }
    }

    fn of<E: fmt::Display>(about: &'static str, result: Result<String, E>) -> Self {
        match result {
            Ok(text) => Self::new(Level::Good, about, text),
            Err(error) => Self::new(Level::Fault, about, error.to_string()),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Good => "ok",
            Level::Warning => "warning",
            Level::Fault => "error",
        };
        write!(f, "{level:<8} {:<12} {}", self.about, self.text)
    }
}

/// Looks at everything that the configuration names.
pub(crate) async fn findings(config: &Config) -> Vec<Finding> {
    let mut found = vec![certificate(config), evidence(config)];
    found.extend(private_files(config));
    found.push(Finding::of("token", token_key(config)));
    if let Some(path) = &config.attestation.challenge_key {
        let read = KeyRing::read(Source::File(path.clone())).map(|_| path.display().to_string());
        let named = read.map_err(|error| format!("{}: {error}", path.display()));
        found.push(Finding::of("challenge", named));
    }
    let admins = Admins::read(&config.admin);
    found.push(Finding::of(
        "admin",
        admins.map(|_| {
            let (keys, issuers) = (&config.admin.public_keys, &config.admin.issuer);
            format!("{} public keys, {} issuers", keys.len(), issuers.len())
        }),
    ));
    let (keys, signers) = (&config.reference.signers, Signers::read(&config.reference));
    let signers = signers.map(|_| format!("{} files with signers' keys", keys.len()));
    found.push(Finding::of("reference", signers));
    let verifiers =
        Verifiers::open(config).map(|_| config.collateral.directory.display().to_string());
    found.push(Finding::of("collateral", verifiers));
    if let Some(collector) = &config.telemetry.otlp_endpoint {
        let traces = Traces::new(&config.telemetry).map(|_| collector.clone());
        found.push(Finding::of("telemetry", traces));
    }
    found.push(store(config).await);
    found
}

fn certificate(config: &Config) -> Finding {
    const ABOUT: &str = "tls";
    let Some(files) = &config.tls else {
        let text = "plain HTTP: only behind something that ends TLS on this machine";
        return Finding::new(Level::Warning, ABOUT, text);
    };
    let (start, end) = match Shown::read(files) {
        Ok(shown) => shown.valid,
        Err(error) => return Finding::new(Level::Fault, ABOUT, error.to_string()),
    };
    let name = files.certificate.display();
    let day = |seconds| {
        OffsetDateTime::from_unix_timestamp(seconds)
            .map_or_else(|_| seconds.to_string(), |time| time.date().to_string())
    };
    let now = i64::try_from(seconds(SystemTime::now())).unwrap_or(i64::MAX);
    let near = i64::try_from(NEAR_END.as_secs()).unwrap_or(i64::MAX);
    if now < start {
        let text = format!("{name} is valid from {} only", day(start));
        return Finding::new(Level::Fault, ABOUT, text);
    }
    if end < now {
        let text = format!("{name} ended on {}: guests will refuse it", day(end));
        return Finding::new(Level::Fault, ABOUT, text);
    }
    let level = if end.saturating_sub(now) < near {
        Level::Warning
    } else {
        Level::Good
    };
    Finding::new(level, ABOUT, format!("{name}, valid until {}", day(end)))
}

fn evidence(config: &Config) -> Finding {
    const ABOUT: &str = "attestation";
    let accept = &config.attestation.accept;
    if accept.is_empty() {
        let text = "accept is empty: every guest is refused";
        return Finding::new(Level::Warning, ABOUT, text);
    }
    let names: Vec<&str> = accept.iter().map(|kind| kind.name()).collect();
    if accept.iter().any(|kind| !kind.is_hardware()) {
        let text = format!(
            "accepts {}: anybody can make simulated evidence, so this is for development",
            names.join(", ")
        );
        return Finding::new(Level::Warning, ABOUT, text);
    }
    Finding::new(Level::Good, ABOUT, format!("accepts {}", names.join(", ")))
}

/// Private keys, and the database, that more than their owner can read.
fn private_files(config: &Config) -> Vec<Finding> {
    const OTHERS: u32 = 0o077;
    let files = [
        config.tls.as_ref().map(|tls| &tls.key),
        config.store.key.as_ref(),
        config.store.url_file.as_ref(),
        config.store.database.as_ref(),
        Some(&config.token.signing_key),
        config.attestation.challenge_key.as_ref(),
    ];
    let open = |path: &Path| {
        let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
        (mode & OTHERS != 0).then(|| {
            let text = format!(
                "{} can be read by others ({mode:o}): chmod 600",
                path.display()
            );
            Finding::new(Level::Warning, "files", text)
        })
    };
    let files = files.into_iter().flatten();
    files.filter_map(|path| open(path)).collect()
}

fn token_key(config: &Config) -> Result<String, String> {
    let path = &config.token.signing_key;
    TokenSigner::read(path, &config.token.issuer, Duration::ZERO)
        .map(|_| path.display().to_string())
        .map_err(|error| error.to_string())
}

async fn store(config: &Config) -> Finding {
    const ABOUT: &str = "store";
    let fault = |error: &OpenError| Finding::new(Level::Fault, ABOUT, error.to_string());
    let keys = match master_keys(&config.store) {
        Ok(keys) => keys,
        Err(error) => return fault(&error),
    };
    let address = match store_address(&config.store) {
        Ok(address) => address,
        Err(error) => return fault(&error),
    };
    if let Some(file) = config.store.database.as_ref().filter(|file| !file.exists()) {
        return new_database(file);
    }
    let place = address.place().to_owned();
    match probe(&address).await {
        Ok(Found::Empty) => {
            let text = format!("{place}: empty; the first start makes its tables");
            Finding::new(Level::Good, ABOUT, text)
        }
        Ok(Found::Data { older, masters }) => {
            if let Some(error) = unknown(masters, &keys) {
                return Finding::new(Level::Fault, ABOUT, format!("{place}: {error}"));
            }
            if older {
                let text = format!("{place}: of an older kbs; the start brings it to this version");
                return Finding::new(Level::Warning, ABOUT, text);
            }
            Finding::new(Level::Good, ABOUT, place)
        }
        Err(error) => fault(&error.into()),
    }
}

fn new_database(file: &Path) -> Finding {
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if directory.unwrap_or(Path::new(".")).is_dir() {
        let text = format!("{} is made by the first start", file.display());
        return Finding::new(Level::Good, "store", text);
    }
    let text = format!("{}: its directory does not exist: make it", file.display());
    Finding::new(Level::Fault, "store", text)
}
