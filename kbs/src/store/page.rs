//! Long lists are told in pages, so that neither side holds all of one: who lists asks again after the last
//! name that it got, until there is none.

use serde::{Deserialize, Serialize};

/// Rows of a page.
pub(super) const ROWS: i64 = 1000;

/// A part of a list; names in the database's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    /// Names that begin with this.
    #[serde(default)]
    pub(crate) prefix: String,
    /// Names after this one.
    #[serde(default)]
    pub(crate) after: String,
}

/// Whether there may be more after so many rows.
pub(super) fn is_full(rows: usize) -> bool {
    i64::try_from(rows).is_ok_and(|rows| rows >= ROWS)
}
