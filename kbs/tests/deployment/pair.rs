//! Two brokers with the same keys, on one PostgreSQL.

use support::postgres::Postgres;

use super::{Deployment, Replica};

pub(crate) const ALLOW_ALL: &str = "package policy\nallow := true\n";

/// Two brokers on one server, which ends with the value.
pub(crate) struct Pair {
    pub(crate) first: Deployment,
    pub(crate) second: Replica,
    _server: Postgres,
    _files: tempfile::TempDir,
}

impl Pair {
    /// `None` where there is no PostgreSQL.
    pub(crate) fn start() -> Option<Self> {
        let server = Postgres::start().unwrap()?;
        let files = tempfile::tempdir().unwrap();
        let (url, key) = (files.path().join("url"), files.path().join("challenge.key"));
        std::fs::write(&url, server.database("kbs").unwrap()).unwrap();
        std::fs::write(&key, "5a".repeat(32)).unwrap();
        let first = Deployment::start_with(&["sample"], |config| {
            let challenges = format!("challenge_seconds = 300\nchallenge_key = {key:?}");
            config
                .replace("database = \"kbs.sqlite\"", &format!("url_file = {url:?}"))
                .replace("challenge_seconds = 300", &challenges)
        });
        let policy = first.write("policy.rego", ALLOW_ALL);
        first.own(&["policy", "set", "--file", &policy]);
        let second = first.replica();
        Some(Self {
            first,
            second,
            _server: server,
            _files: files,
        })
    }
}
