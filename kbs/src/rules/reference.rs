//! The reference values as a decision sees them: those that hold at its moment. The list of what holds
//! is made once, and again when the next value begins or ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use policies::{
    appraisal::ReferenceValues,
    reference::{ReferenceValue, steady_at, valid_at},
};

use crate::store::Touched;

/// All that holds now or will, as one change left it.
#[derive(Default)]
pub(super) struct References {
    known: BTreeMap<String, Arc<ReferenceValue>>,
    version: i64,
    valid: Mutex<Option<Valid>>,
}

/// What holds, and from when until when just that does.
struct Valid {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    values: ReferenceValues,
}

impl References {
    pub(super) fn version(&self) -> i64 {
        self.version
    }

    /// The same after a change.
    pub(super) fn with(&self, touched: Touched) -> Self {
        let mut known = self.known.clone();
        for value in touched.values {
            if value.versions.is_empty() {
                known.remove(&value.name);
            } else {
                known.insert(value.name.clone(), Arc::new(value));
            }
        }
        Self {
            known,
            version: touched.version,
            valid: Mutex::default(),
        }
    }

    /// What holds at a moment.
    pub(super) fn at(&self, now: SystemTime) -> ReferenceValues {
        let mut valid = self.valid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(valid) = &*valid
            && valid.since.is_none_or(|since| since <= now)
            && valid.until.is_none_or(|until| now < until)
        {
            return Arc::clone(&valid.values);
        }
        let all = || self.known.values().map(|value| &**value);
        let (since, until) = steady_at(all(), now);
        let values = Arc::new(valid_at(all(), now));
        *valid = Some(Valid {
            since,
            until,
            values: Arc::clone(&values),
        });
        values
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use policies::reference::{Provenance, Version};
    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn value(name: &str, windows: &[(u64, u64)]) -> ReferenceValue {
        let mut value = ReferenceValue::new(name).unwrap();
        for (number, (from, until)) in windows.iter().enumerate() {
            let version = Version {
                value: json!([number]),
                provenance: Provenance::Administrator("owner".to_owned()),
                not_before: Some(at(*from)),
                not_after: Some(at(*until)),
            };
            value.add(version).unwrap();
        }
        value
    }

    #[test]
    fn a_value_ends_at_its_end_though_nothing_was_loaded_again() {
        let touched = Touched {
            version: 7,
            values: vec![value("a", &[(10, 30), (20, 40)]), value("b", &[(0, 25)])],
        };
        let references = References::default().with(touched);
        assert_eq!(references.version(), 7);
        let seen = |seconds| {
            let values = references.at(at(seconds));
            (values.get("a").cloned(), values.get("b").cloned())
        };
        // Also for a clock that is set back.
        for _ in 0..2 {
            assert_eq!(seen(9), (None, Some(json!([0]))));
            assert_eq!(seen(10), (Some(json!([0])), Some(json!([0]))));
            assert_eq!(seen(24), (Some(json!([0, 1])), Some(json!([0]))));
            assert_eq!(seen(25), (Some(json!([0, 1])), None));
            assert_eq!(seen(39), (Some(json!([1])), None));
            assert_eq!(seen(40), (None, None));
        }
        // Between two ends it is one list.
        assert!(Arc::ptr_eq(&references.at(at(25)), &references.at(at(29))));
    }

    #[test]
    fn a_change_touches_its_own_names_only() {
        let all = vec![value("a", &[(0, 9)]), value("b", &[(0, 9)])];
        let first = References::default().with(Touched {
            version: 1,
            values: all,
        });
        let second = first.with(Touched {
            version: 2,
            values: vec![value("a", &[])],
        });
        assert_eq!(first.at(at(1)).len(), 2);
        assert_eq!(second.at(at(1)).keys().collect::<Vec<_>>(), ["b"]);
    }
}
