//! `kbs record`: what was decided and administered, as JSON lines.

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;

use super::{Connection, out::say};
use crate::record::{Entry, Kind, Outcome, Search, from_word};

/// Entries that `list` shows unless told.
const LISTED: i64 = 100;
/// Entries of one answer.
const PAGE: i64 = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Record {
    /// Print entries, 100 unless told.
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
    /// At most this many entries.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
}

impl Record {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let (filter, all) = match self {
            Self::List(filter) => (filter, false),
            Self::Export(filter) => (filter, true),
        };
        // An export ends where there is no more, or where it was told to.
        let mut left = filter.limit.unwrap_or(if all { i64::MAX } else { LISTED });
        let mut search = Search {
            since: filter.since,
            until: filter.until,
            kind: filter.kind,
            subject: filter.subject,
            resource: filter.resource,
            result: filter.result,
            after: filter.after,
            limit: None,
        };
        loop {
            search.limit = Some(left.min(PAGE));
            let path = format!("record?{}", serde_urlencoded::to_string(&search)?);
            let answer = connection.ask(Method::GET, &path, "").await?;
            let page: Vec<Entry> = serde_json::from_slice(&answer).context("read the answer")?;
            for entry in &page {
                say!("{}", serde_json::to_string(entry)?);
            }
            left = left.saturating_sub_unsigned(page.len() as u64);
            search.after = page.last().map(|entry| entry.id);
            if left <= 0 || search.after.is_none() {
                return Ok(());
            }
        }
    }
}

fn from_text<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    from_word(text).ok_or_else(|| "no such word: see --help".to_owned())
}
