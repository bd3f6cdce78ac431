//! The record as it is looked through: for a ticket, and for what an auditor asks.
//!
//! A search that finds little has to look at much, and a record has a million entries. So it goes from one
//! part of the record to the next on a connection of its own, which no release waits for, and gives up
//! after a while: the entries of a narrow time are found by the index, however long the record is.

use sqlx::Row;
use tokio::time::{Duration, Instant, timeout_at};

use super::{Store, StoreError, TENANT};
use crate::record::{Entry, Search, from_millis, from_word, millis, word};

/// Entries of one answer.
const PAGE: i64 = 1000;
/// Numbers of entries that are looked at in one go: some milliseconds.
const PART: i64 = 10_000;
/// For one search, with what it waits for others: well within a request's time.
const SEARCH_TIME: Duration = Duration::from_secs(10);
/// As `entry` reads it.
const COLUMNS: &str =
    "id, time, kind, subject, resource, result, ticket, evidence, versions, claims, attestation";

/// What is looked for, as the database compares it.
struct Wanted {
    since: i64,
    until: i64,
    kind: String,
    result: String,
    subject: String,
    resource: String,
}

impl Store {
    /// The refusal of a ticket.
    pub(crate) async fn ticket(&self, ticket: &str) -> Result<Option<Entry>, StoreError> {
        let text = format!(
            "SELECT {COLUMNS} FROM record WHERE tenant = $1 AND ticket = $2 AND ticket <> ''"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(TENANT)
            .bind(ticket)
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(entry).transpose()
    }

    /// A page of entries in the order of their numbers.
    ///
    /// # Errors
    /// [`StoreError::Slow`] where there is too much to look through.
    pub(crate) async fn search(&self, search: &Search) -> Result<Vec<Entry>, StoreError> {
        self.search_until(search, Instant::now() + SEARCH_TIME)
            .await
    }

    pub(super) async fn search_until(
        &self,
        search: &Search,
        end: Instant,
    ) -> Result<Vec<Entry>, StoreError> {
        let time = |text: &Option<String>, default| match text {
            None => Ok(default),
            Some(text) => millis(text).ok_or(StoreError::Time),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let wanted = Wanted {
            since: time(&search.since, i64::MIN)?,
            until: time(&search.until, i64::MAX)?,
            kind: search.kind.as_ref().map(word).unwrap_or_default(),
            result: search.result.as_ref().map(word).unwrap_or_default(),
            subject: text(&search.subject),
            resource: text(&search.resource),
        };
        let after = search.after.unwrap_or(0);
        let limit = search.limit.unwrap_or(PAGE).clamp(1, PAGE);
        let looking = self.look_through(&wanted, after, limit, end);
        // The task of a connection that is given up ends with its part.
        timeout_at(end, looking)
            .await
            .unwrap_or(Err(StoreError::Slow))
    }

    async fn look_through(
        &self,
        wanted: &Wanted,
        after: i64,
        limit: i64,
        end: Instant,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut found = Vec::new();
        let Some((first, last)) = self.range(wanted, after).await? else {
            return Ok(found);
        };
        let mut seen = first - 1;
        while seen < last {
            if Instant::now() >= end {
                return Err(StoreError::Slow);
            }
            let upto = seen.saturating_add(PART).min(last);
            let left = limit - i64::try_from(found.len()).unwrap_or(i64::MAX);
            found.extend(self.part(wanted, seen, upto, left).await?);
            if i64::try_from(found.len()).is_ok_and(|count| count >= limit) {
                break;
            }
            seen = upto;
        }
        Ok(found)
    }

    /// The numbers of the first and the last entry that may be found. Without a time the two ends of the
    /// record; entries of two brokers are not in the order of their times.
    async fn range(&self, wanted: &Wanted, after: i64) -> Result<Option<(i64, i64)>, StoreError> {
        let query = if wanted.since == i64::MIN && wanted.until == i64::MAX {
            sqlx::query(
                "SELECT (SELECT MIN(id) FROM record WHERE id > $1), (SELECT MAX(id) FROM record)",
            )
            .bind(after)
        } else {
            // By the index of times, and not from the first number on.
            sqlx::query(
                "SELECT MIN(id + 0), MAX(id + 0) FROM record
                 WHERE id + 0 > $1 AND time >= $2 AND time < $3 AND tenant = $4",
            )
            .bind(after)
            .bind(wanted.since)
            .bind(wanted.until)
            .bind(TENANT)
        };
        let row = query.fetch_one(&self.search).await?;
        let (first, last): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(first.zip(last))
    }

    async fn part(
        &self,
        wanted: &Wanted,
        after: i64,
        upto: i64,
        limit: i64,
    ) -> Result<Vec<Entry>, StoreError> {
        let text = format!(
            "SELECT {COLUMNS} FROM record
             WHERE tenant = $1 AND id > $2 AND id <= $3 AND time >= $4 AND time < $5
             AND ($6 = '' OR kind = $6) AND ($7 = '' OR result = $7)
             AND substr(subject, 1, length($8)) = $8
             AND substr(resource, 1, length($9)) = $9
             ORDER BY id LIMIT $10"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(TENANT)
            .bind(after)
            .bind(upto)
            .bind(wanted.since)
            .bind(wanted.until)
            .bind(&wanted.kind)
            .bind(&wanted.result)
            .bind(&wanted.subject)
            .bind(&wanted.resource)
            .bind(limit)
            .fetch_all(&self.search)
            .await?;
        rows.iter().map(entry).collect()
    }
}

fn entry(row: &sqlx::any::AnyRow) -> Result<Entry, StoreError> {
    let broken = || StoreError::Content("record entry");
    let text = |column: usize| row.try_get::<String, _>(column);
    Ok(Entry {
        id: row.try_get(0)?,
        time: from_millis(row.try_get(1)?).ok_or_else(broken)?,
        kind: from_word(&text(2)?).ok_or_else(broken)?,
        subject: text(3)?,
        resource: text(4)?,
        result: from_word(&text(5)?).ok_or_else(broken)?,
        ticket: text(6)?,
        evidence: text(7)?,
        versions: serde_json::from_str(&text(8)?).map_err(|_| broken())?,
        claims: serde_json::from_str(&text(9)?).map_err(|_| broken())?,
        attestation: text(10)?,
        affirms_nothing: false,
    })
}
