//! Reference values: what the owner says good evidence has, from whom, and from when until when.
//!
//! One name may have several values at once, so that a guest of the old and one of the new release
//! are both good while an upgrade runs. A value outside its time is as good as none. What is
//! replaced or withdrawn stays in the history.

use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Characters of a name.
pub const NAME_CHARS: usize = 512;
/// Versions of one name that hold at once or later.
pub const VERSIONS: usize = 64;
/// Versions that are kept of those that no longer hold; the oldest go first.
pub const HISTORY: usize = 256;

/// Everything known about one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceValue {
    /// The name that appraisal policies ask for.
    pub name: String,
    /// What holds now or will; they may overlap.
    pub versions: Vec<Version>,
    /// What was replaced or withdrawn, oldest first.
    pub history: Vec<Version>,
}

/// One value and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The value; a list stands for each of its members.
    pub value: Value,
    /// Who said so.
    pub provenance: Provenance,
    /// The first moment at which it holds; always where there is none.
    pub not_before: Option<SystemTime>,
    /// The first moment at which it no longer holds; never where there is none.
    pub not_after: Option<SystemTime>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "who")]
pub enum Provenance {
    /// An administrator, by the name of the role.
    Administrator(String),
    /// A document without a signature, as its holder brought it.
    Unsigned(String),
    /// A document whose signature was checked, by the id of the key.
    Signer(String),
}

/// A value that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No name, a long one, or one that cannot be printed.
    #[error("a reference value's name has 1 to {NAME_CHARS} characters, and no control character")]
    Name,
    /// It would hold at no time.
    #[error("the reference value ends before it begins: exchange not_before and not_after")]
    Window,
    /// Too many values at once.
    #[error("more than {VERSIONS} values of one name: withdraw one first")]
    Full,
}

impl ReferenceValue {
    /// A name without a value yet.
    ///
    /// # Errors
    /// When the name is empty or long, or has control characters.
    pub fn new(name: &str) -> Result<Self, ReferenceError> {
        if !(1..=NAME_CHARS).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            return Err(ReferenceError::Name);
        }
        Ok(Self {
            name: name.to_owned(),
            versions: Vec::new(),
            history: Vec::new(),
        })
    }

    /// Adds a version beside those that hold: the start of an upgrade.
    ///
    /// # Errors
    /// When it would hold at no time, or there are too many.
    pub fn add(&mut self, version: Version) -> Result<(), ReferenceError> {
        check(&version)?;
        if self.versions.len() >= VERSIONS {
            return Err(ReferenceError::Full);
        }
        self.versions.push(version);
        Ok(())
    }

    /// Puts one version in the place of all.
    ///
    /// # Errors
    /// When it would hold at no time. Then nothing changes.
    pub fn replace(&mut self, version: Version) -> Result<(), ReferenceError> {
        check(&version)?;
        self.withdraw(|_| true);
        self.versions.push(version);
        Ok(())
    }

    /// Moves the versions that `which` picks into the history, and says how many.
    pub fn withdraw(&mut self, which: impl Fn(&Version) -> bool) -> usize {
        let (gone, kept) = std::mem::take(&mut self.versions)
            .into_iter()
            .partition::<Vec<_>, _>(which);
        self.versions = kept;
        let count = gone.len();
        self.history.extend(gone);
        let surplus = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..surplus);
        count
    }

    /// What a policy sees at `now`: the value itself where one version holds, one list of all members
    /// where several do, `None` where none does.
    #[must_use]
    pub fn at(&self, now: SystemTime) -> Option<Value> {
        let mut valid = self.versions.iter().filter(|version| version.holds(now));
        let first = valid.next()?;
        let mut members = Vec::new();
        for version in valid {
            merge(&mut members, &version.value);
        }
        if members.is_empty() {
            return Some(first.value.clone());
        }
        let mut all = Vec::new();
        merge(&mut all, &first.value);
        members.iter().for_each(|member| merge(&mut all, member));
        Some(Value::Array(all))
    }
}

impl Version {
    /// The same, and no earlier or longer than this.
    #[must_use]
    pub fn within(mut self, begin: Option<SystemTime>, end: Option<SystemTime>) -> Self {
        self.not_before = self.not_before.max(begin);
        self.not_after = match (self.not_after, end) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self
    }

    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds(&self, now: SystemTime) -> bool {
        self.not_before.is_none_or(|begin| begin <= now)
            && self.not_after.is_none_or(|end| now < end)
    }
}

/// What appraisal policies may ask for at `now`, by name.
#[must_use]
pub fn valid_at<'a>(
    values: impl IntoIterator<Item = &'a ReferenceValue>,
    now: SystemTime,
) -> BTreeMap<String, Value> {
    let value = |known: &ReferenceValue| Some((known.name.clone(), known.at(now)?));
    values.into_iter().filter_map(value).collect()
}

/// The time around `now` for which [`valid_at`] gives the same: from the last moment at which a
/// version began or ended, to the next one at which one does. `None` is for ever.
#[must_use]
pub fn steady_at<'a>(
    values: impl IntoIterator<Item = &'a ReferenceValue>,
    now: SystemTime,
) -> (Option<SystemTime>, Option<SystemTime>) {
    let (mut since, mut until) = (None, None);
    for version in values.into_iter().flat_map(|known| &known.versions) {
        for moment in [version.not_before, version.not_after]
            .into_iter()
            .flatten()
        {
            if moment <= now {
                since = since.max(Some(moment));
            } else if until.is_none_or(|next| moment < next) {
                until = Some(moment);
            }
        }
    }
    (since, until)
}

fn check(version: &Version) -> Result<(), ReferenceError> {
    match (version.not_before, version.not_after) {
        (Some(begin), Some(end)) if end <= begin => Err(ReferenceError::Window),
        _ => Ok(()),
    }
}

/// Adds a value, or the members of a list, where they are not there yet.
fn merge(all: &mut Vec<Value>, value: &Value) {
    let members = match value {
        Value::Array(members) => members.as_slice(),
        other => std::slice::from_ref(other),
    };
    for member in members {
        if !all.contains(member) {
            all.push(member.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn version(value: Value, from: u64, until: u64) -> Version {
        Version {
            value,
            provenance: Provenance::Administrator("owner".to_owned()),
            not_before: Some(at(from)),
            not_after: Some(at(until)),
        }
    }

    #[test]
    fn a_value_holds_in_its_time_and_two_hold_while_an_upgrade_runs() {
        let mut known = ReferenceValue::new("measurement").unwrap();
        known.add(version(json!(["old"]), 10, 30)).unwrap();
        known.add(version(json!(["new"]), 20, 40)).unwrap();
        for (now, expected) in [
            (9, None),
            (10, Some(json!(["old"]))),
            (20, Some(json!(["old", "new"]))),
            (30, Some(json!(["new"]))),
            (40, None),
        ] {
            assert_eq!(known.at(at(now)), expected, "{now}");
        }
        assert!(valid_at([&known], at(50)).is_empty());
        for (now, since, until) in [
            (9, None, Some(10)),
            (10, Some(10), Some(20)),
            (29, Some(20), Some(30)),
            (40, Some(40), None),
        ] {
            let steady = (since.map(at), until.map(at));
            assert_eq!(steady_at([&known], at(now)), steady, "{now}");
        }
    }

    #[test]
    fn two_windows_are_their_overlap() {
        let always = Version {
            not_before: None,
            not_after: None,
            ..version(json!(1), 0, 1)
        };
        let window = |version: &Version| (version.not_before, version.not_after);
        let once = always.within(Some(at(10)), None).within(None, Some(at(40)));
        assert_eq!(window(&once), (Some(at(10)), Some(at(40))));
        let twice = once.within(Some(at(5)), Some(at(20)));
        assert_eq!(window(&twice), (Some(at(10)), Some(at(20))));
    }

    #[test]
    fn one_scalar_stays_a_scalar() {
        let mut known = ReferenceValue::new("smt").unwrap();
        known.add(version(json!(true), 0, 9)).unwrap();
        assert_eq!(known.at(at(1)), Some(json!(true)));
        known.add(version(json!(false), 0, 9)).unwrap();
        assert_eq!(known.at(at(1)), Some(json!([true, false])));
    }

    #[test]
    fn what_is_replaced_no_longer_holds_and_is_remembered() {
        let mut known = ReferenceValue::new("a").unwrap();
        known.add(version(json!(1), 0, 9)).unwrap();
        known.replace(version(json!(2), 0, 9)).unwrap();
        assert_eq!(known.at(at(1)), Some(json!(2)));
        assert_eq!(known.history[0].value, json!(1));
        assert_eq!(known.withdraw(|_| true), 1);
        assert_eq!(known.at(at(1)), None);
    }

    #[test]
    fn what_could_never_hold_is_refused_and_changes_nothing() {
        let mut known = ReferenceValue::new("a").unwrap();
        known.add(version(json!(1), 0, 9)).unwrap();
        assert_eq!(
            known.replace(version(json!(2), 9, 9)),
            Err(ReferenceError::Window)
        );
        assert_eq!(known.at(at(1)), Some(json!(1)));
        assert!(ReferenceValue::new("").is_err());
        for _ in 1..VERSIONS {
            known.add(version(json!(1), 0, 9)).unwrap();
        }
        assert_eq!(
            known.add(version(json!(1), 0, 9)),
            Err(ReferenceError::Full)
        );
    }
}
