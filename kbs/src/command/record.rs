//! `kbs record`: what was decided and administered, as JSON lines.

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;

use super::Connection;
use crate::record::{Entry, Kind, Outcome, Search, from_word};

/// Entries that `list` shows unless told.
const LISTED: i64 = 100;

#[derive(Debug, Subcommand)]
pub(super) enum Record {
    /// Print one page of entries.
    List(Filter),
    /// Print all entries.
    Export(Filter),
}

#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Not before this time, in RFC 3339.
    #[arg(long)]
    since: Option<String>,
    /// Before this time, in RFC 3339.
    #[arg(long)]
    until: Option<String>,
    /// attest, release, resource, policy or reference.
    #[arg(long, value_parser = from_text::<Kind>)]
    kind: Option<Kind>,
    /// What the subject begins with.
    #[arg(long)]
    subject: Option<String>,
    /// What the resource begins with.
    #[arg(long)]
    resource: Option<String>,
    /// allowed, denied, absent, set or deleted.
    #[arg(long, value_parser = from_text::<Outcome>)]
    result: Option<Outcome>,
    /// Entries after the one of this number.
    #[arg(long)]
    after: Option<i64>,
    /// Entries of one page.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: Option<i64>,
}

impl Record {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let (filter, all) = match self {
            Self::List(filter) => (filter, false),
            Self::Export(filter) => (filter, true),
        };
        let mut search = Search {
            since: filter.since,
            until: filter.until,
            kind: filter.kind,
            subject: filter.subject,
            resource: filter.resource,
            result: filter.result,
            after: filter.after,
            limit: filter.limit.or((!all).then_some(LISTED)),
        };
        loop {
            let path = format!("record?{}", serde_urlencoded::to_string(&search)?);
            let answer = connection.ask(Method::GET, &path, "").await?;
            let page: Vec<Entry> = serde_json::from_slice(&answer).context("read the answer")?;
            for entry in &page {
                println!("{}", serde_json::to_string(entry)?);
            }
            search.after = page.last().map(|entry| entry.id);
            if !all || search.after.is_none() {
                return Ok(());
            }
        }
    }
}

fn from_text<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    from_word(text).ok_or_else(|| "no such word: see --help".to_owned())
}
