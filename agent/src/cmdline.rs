//! The agent's words on the kernel's command line: `cloister.*`.
//!
//! The command line is part of the measurement where there is one, so it may be believed there;
//! an unknown, doubled or malformed word is still an error, so that a typo never weakens a guest.

use std::str::FromStr;

use agent_api::ports;
use evidence::Tee;
use evidence::init_data::InitDataDigest;

/// What every word of ours starts with.
const PREFIX: &str = "cloister.";

/// The kinds of guests.
const KINDS: &str = "none, snp, tdx, sim-snp, sim-tdx or sample";

/// What the command line told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline {
    /// How this guest proves what it is; `None` is a plain VM. It is told by name, never probed.
    pub tee: Option<Tee>,
    /// The digest of the init-data document, where no report has it; present exactly when there is one.
    pub init_data: Option<InitDataDigest>,
    /// Where the host port is.
    pub host_port: u32,
    /// What is logged to the console.
    pub log: tracing::level_filters::LevelFilter,
}

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not one of ours.
    #[error("unknown kernel parameter {0:?}; known are tee, init_data, host_port and log")]
    Unknown(String),
    /// The same word twice.
    #[error("kernel parameter {0} is given twice")]
    Twice(String),
    /// The value does not fit.
    #[error("kernel parameter {name}={value} is refused: it must be {expected}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// There is no default.
    #[error("kernel parameter cloister.tee is missing: it must be {KINDS}")]
    NoTee,
    /// The report has it.
    #[error(
        "kernel parameter cloister.init_data is for guests without reports: what the launch bound is in this one's"
    )]
    Bound,
}

impl FromStr for Cmdline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut tee, mut init_data, mut host_port, mut log) = (None, None, None, None);
        for word in text.split_ascii_whitespace() {
            let Some(ours) = word.strip_prefix(PREFIX) else {
                continue;
            };
            let (name, value) = ours.split_once('=').unwrap_or((ours, ""));
            let twice = match name {
                "tee" => tee.replace(parse_tee(value)?).is_some(),
                "init_data" => init_data.replace(parse_digest(value)?).is_some(),
                "host_port" => host_port.replace(parse_port(value)?).is_some(),
                "log" => log.replace(parse_level(value)?).is_some(),
                _ => return Err(Error::Unknown(word.to_owned())),
            };
            if twice {
                return Err(Error::Twice(format!("{PREFIX}{name}")));
            }
        }
        let tee = tee.ok_or(Error::NoTee)?;
        if tee.is_some_and(|tee| tee != Tee::Sample) && init_data.is_some() {
            return Err(Error::Bound);
        }
        Ok(Self {
            tee,
            init_data,
            host_port: host_port.unwrap_or(ports::HOST),
            log: log.unwrap_or(tracing::level_filters::LevelFilter::WARN),
        })
    }
}

fn refuse(name: &'static str, value: &str, expected: &'static str) -> Error {
    Error::Value {
        name,
        value: value.to_owned(),
        expected,
    }
}

fn parse_tee(value: &str) -> Result<Option<Tee>, Error> {
    Tee::configured(value).map_err(|_| refuse("cloister.tee", value, KINDS))
}

fn parse_digest(value: &str) -> Result<InitDataDigest, Error> {
    let expected = "sha256, sha384 or sha512, a colon and the digest in hex";
    value
        .parse()
        .map_err(|_| refuse("cloister.init_data", value, expected))
}

fn parse_port(value: &str) -> Result<u32, Error> {
    let refused = || {
        refuse(
            "cloister.host_port",
            value,
            "a vsock port from 1 to 4294967294",
        )
    };
    value
        .parse()
        .ok()
        .filter(|port| (1..u32::MAX).contains(port))
        .ok_or_else(refused)
}

fn parse_level(value: &str) -> Result<tracing::level_filters::LevelFilter, Error> {
    let refused = |_| {
        refuse(
            "cloister.log",
            value,
            "off, error, warn, info, debug or trace",
        )
    };
    value.parse().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::level_filters::LevelFilter;

    #[test]
    fn words_of_others_are_ignored_and_defaults_hold() {
        let parsed: Cmdline = "console=ttyS0 panic=-1 cloister.tee=none quiet"
            .parse()
            .unwrap();
        assert_eq!(parsed.tee, None);
        assert_eq!(parsed.init_data, None);
        assert_eq!(parsed.host_port, 1030);
        assert_eq!(parsed.log, LevelFilter::WARN);
    }

    #[test]
    fn every_word_is_read() {
        let digest = format!("sha256:{}", "0A".repeat(32));
        let text = format!(
            "cloister.tee=sample cloister.init_data={digest} cloister.host_port=7 cloister.log=debug\n"
        );
        let parsed: Cmdline = text.parse().unwrap();
        assert_eq!(parsed.tee, Some(Tee::Sample));
        assert_eq!(parsed.init_data.unwrap().to_string(), digest.to_lowercase());
        assert_eq!(parsed.host_port, 7);
        assert_eq!(parsed.log, LevelFilter::DEBUG);
    }

    #[test]
    fn unknown_doubled_and_malformed_words_are_refused() {
        let refused = |text: &str| text.parse::<Cmdline>().unwrap_err();
        assert_eq!(refused(""), Error::NoTee);
        assert!(matches!(refused("cloister.tea=none"), Error::Unknown(_)));
        assert!(matches!(
            refused("cloister.tee=none cloister.tee=none"),
            Error::Twice(_)
        ));
        let bound = format!(
            "cloister.tee=snp cloister.init_data=sha256:{}",
            "0a".repeat(32)
        );
        assert_eq!(refused(&bound), Error::Bound);
        assert_eq!(
            "cloister.tee=tdx".parse::<Cmdline>().unwrap().tee,
            Some(Tee::Tdx)
        );
        for text in [
            "cloister.tee=snp2",
            "cloister.tee",
            "cloister.init_data=md5:00",
            "cloister.init_data=sha256:00",
            "cloister.host_port=0",
            "cloister.log=loud",
        ] {
            assert!(matches!(refused(text), Error::Value { .. }), "{text}");
        }
    }
}
