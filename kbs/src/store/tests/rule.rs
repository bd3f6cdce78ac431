//! Policies, reference values and the order of their changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use policies::reference::{HISTORY, Provenance, ReferenceValue, VERSIONS, Version};
use serde_json::{Value, json};

use super::*;
use crate::rules::{RuleError, Rules};

const ONE: &str = "resource-policy/a";
const OTHER: &str = "default_cpu";

fn told(kind: Kind) -> Entry {
    Entry::new(kind, Outcome::Set, "role admin".to_owned(), String::new())
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn value(name: &str, value: Value) -> ReferenceValue {
    timed(name, value, None, None)
}

fn timed(name: &str, value: Value, from: Option<u64>, until: Option<u64>) -> ReferenceValue {
    let mut known = ReferenceValue::new(name).unwrap();
    let version = Version {
        value,
        provenance: Provenance::Signer("key".to_owned()),
        not_before: from.map(at),
        not_after: until.map(at),
    };
    known.add(version).unwrap();
    known
}

async fn add(store: &Store, values: &[ReferenceValue], mode: Mode) -> Result<i64, StoreError> {
    let entry = told(Kind::Reference);
    store.set_reference_values(values, mode, 1, &entry).await
}

/// What policies see of a name.
async fn seen(store: &Store, name: &str, now: u64) -> Option<Value> {
    let all = store.references_after(0).await.unwrap().values;
    all.iter().find(|one| one.name == name)?.at(at(now))
}

pub(super) async fn nothing_is_decided_by_a_store_that_went_back(place: Place) {
    let store = place.open().await;
    let entry = told(Kind::Policy);
    for text in ["package policy", "package policy\nallow := true"] {
        store.set_policy(ONE, text, 1, &entry).await.unwrap();
    }
    let rules = Rules::open(store.clone()).await.unwrap();
    rules.refresh().await.unwrap();
    assert!(rules.release_for(&path("a/b/c")).await.is_ok());
    restored_to_the_first(&store).await;
    let refused = rules.refresh().await;
    assert!(matches!(refused, Err(StoreError::WentBack)));
    let decided = rules.release_for(&path("a/b/c")).await;
    assert!(matches!(decided, Err(RuleError::Stale)));
}

/// A restore of what was there after the first of two changes of [`ONE`].
async fn restored_to_the_first(store: &Store) {
    sqlx::raw_sql(
        "UPDATE change SET counter = 1, moment = 1; DELETE FROM change_stamp WHERE moment > 1;
         DELETE FROM policy WHERE version > 1;",
    )
    .execute(&store.writer.pool)
    .await
    .unwrap();
}

/// The change that is known has its number again, by another broker that is started on what was restored.
pub(super) async fn a_change_after_a_restore_is_not_taken_for_the_one_that_was_known(place: Place) {
    const DENY: &str = "package policy\nallow := false";
    let store = place.open().await;
    let entry = told(Kind::Policy);
    for text in [DENY, "package policy\nallow := true"] {
        store.set_policy(ONE, text, 1, &entry).await.unwrap();
    }
    let (rules, other) = (Rules::open(store.clone()), Rules::open(place.open().await));
    let (rules, other) = (rules.await.unwrap(), other.await.unwrap());
    assert!(rules.release_for(&path("a/b/c")).await.is_ok());
    restored_to_the_first(&store).await;
    // Not by who decides by what is no more.
    for refused in [
        store.set_policy(ONE, DENY, 1, &entry).await.map(|_| ()),
        store.delete_policy(ONE, 1, &entry).await.map(|_| ()),
        add(&store, &[value("svn", json!(1))], Mode::Add)
            .await
            .map(|_| ()),
    ] {
        assert!(matches!(refused, Err(StoreError::WentBack)), "{refused:?}");
    }
    let fresh = place.open().await;
    assert_eq!(fresh.changes(&Mark::BEGINNING).await.unwrap().len(), 1);
    assert_eq!(fresh.set_policy(ONE, DENY, 1, &entry).await.unwrap(), 2);
    // One looks at once, the other one after more changes.
    let refused = rules.refresh().await;
    assert!(matches!(refused, Err(StoreError::WentBack)));
    fresh.set_policy(ONE, DENY, 1, &entry).await.unwrap();
    let refused = other.refresh().await;
    assert!(matches!(refused, Err(StoreError::WentBack)));
    for lost in [&rules, &other] {
        let decided = lost.release_for(&path("a/b/c")).await;
        assert!(matches!(decided, Err(RuleError::Stale)));
    }
    let started = Rules::open(place.open().await).await.unwrap();
    let (_, _, version) = started.release_for(&path("a/b/c")).await.unwrap();
    assert_eq!(version, 3);
}

/// Who decides by a change that was changed again since has missed nothing but that.
pub(super) async fn many_changes_that_others_made_are_followed(place: Place) {
    let (store, elsewhere) = (place.open().await, place.open().await);
    let entry = told(Kind::Policy);
    store
        .set_policy(ONE, "package policy", 1, &entry)
        .await
        .unwrap();
    let rules = Rules::open(store.clone()).await.unwrap();
    for _ in 0..3 {
        elsewhere
            .set_policy(ONE, "package policy", 1, &entry)
            .await
            .unwrap();
    }
    assert_eq!(
        store
            .set_policy(ONE, "package policy", 1, &entry)
            .await
            .unwrap(),
        5
    );
    rules.refresh().await.unwrap();
    assert_eq!(rules.release_for(&path("a/b/c")).await.unwrap().2, 5);
}

pub(super) async fn a_policy_has_versions_and_an_end(place: Place) {
    let (one, two) = (place.open().await, place.open().await);
    let entry = told(Kind::Policy);
    for (number, text) in (1..).zip(["first", "second"]) {
        let set = one.set_policy(ONE, text, 1, &entry).await.unwrap();
        assert_eq!(set, number);
    }
    let text = async |version| two.policy(ONE, version).await.unwrap();
    assert_eq!(text(None).await.as_deref(), Some("second"));
    assert_eq!(text(Some(1)).await.as_deref(), Some("first"));
    assert_eq!(text(Some(3)).await, None);
    assert!(two.delete_policy(ONE, 2, &entry).await.unwrap());
    assert!(!one.delete_policy(ONE, 2, &entry).await.unwrap());
    assert_eq!((text(None).await, text(Some(3)).await), (None, None));
    assert_eq!(text(Some(2)).await.as_deref(), Some("second"));
    assert_eq!(one.set_policy(ONE, "é", 3, &entry).await.unwrap(), 4);
    let history = one.policy_history(ONE).await.unwrap();
    let shape = |one: &PolicyVersion| (one.version, one.bytes, one.deleted);
    assert_eq!(
        history.iter().map(shape).collect::<Vec<_>>(),
        [(1, 5, false), (2, 6, false), (3, 0, true), (4, 2, false)]
    );
    // Old texts go, numbers stay.
    for _ in 0..60 {
        one.set_policy(ONE, "text", 4, &entry).await.unwrap();
    }
    let history = one.policy_history(ONE).await.unwrap();
    assert_eq!((history.len(), history[0].version), (50, 15));
    let entries = one.search(&Search::default()).await.unwrap();
    assert_eq!(entries.len(), 64);
    assert_eq!(
        (entries[2].resource.as_str(), entries[2].versions.release),
        (ONE, 3)
    );
}

pub(super) async fn changes_are_told_once_and_in_their_order(place: Place) {
    let (one, two) = (place.open().await, place.open().await);
    let entry = told(Kind::Policy);
    assert_eq!(two.changes(&Mark::BEGINNING).await.unwrap(), vec![]);
    one.set_policy(ONE, "first", 1, &entry).await.unwrap();
    two.set_policy(OTHER, "first", 1, &entry).await.unwrap();
    add(&one, &[value("svn", json!(1))], Mode::Replace)
        .await
        .unwrap();
    let all = two.changes(&Mark::BEGINNING).await.unwrap();
    let what: Vec<_> = all
        .iter()
        .map(|one| (one.what.as_str(), one.version))
        .collect();
    assert_eq!(what, [(ONE, 1), (OTHER, 1), (REFERENCES, 1)]);
    assert!(
        all.windows(2)
            .all(|pair| pair[0].mark.moment < pair[1].mark.moment)
    );
    two.delete_policy(ONE, 2, &entry).await.unwrap();
    let new = one.changes(&all[2].mark).await.unwrap();
    assert_eq!(new.len(), 1);
    assert_eq!(
        (new[0].what.as_str(), new[0].version, new[0].present),
        (ONE, 2, false)
    );
    assert_eq!(one.changes(&new[0].mark).await.unwrap(), vec![]);
}

pub(super) async fn reference_values_replace_or_stay_beside_one_another(place: Place) {
    let (one, two) = (place.open().await, place.open().await);
    let old = timed("a/b:1", json!(["old"]), Some(10), Some(30));
    let new = timed("a/b:1", json!(["new"]), Some(20), None);
    add(&one, &[old, value("other", json!(2))], Mode::Replace)
        .await
        .unwrap();
    assert_eq!(
        add(&two, std::slice::from_ref(&new), Mode::Add)
            .await
            .unwrap(),
        2
    );
    // The same once more is the same.
    add(&one, &[new], Mode::Add).await.unwrap();
    for (now, expected) in [
        (9, None),
        (10, Some(json!(["old"]))),
        (20, Some(json!(["old", "new"]))),
        (30, Some(json!(["new"]))),
    ] {
        assert_eq!(seen(&two, "a/b:1", now).await, expected, "{now}");
    }
    // What another broker changed is read by itself.
    let touched = two.references_after(3).await.unwrap();
    assert_eq!((touched.version, touched.values.len()), (3, 0));
    add(&one, &[value("other", json!(3))], Mode::Replace)
        .await
        .unwrap();
    let touched = two.references_after(3).await.unwrap();
    assert_eq!((touched.version, touched.values.len()), (4, 1));
    assert_eq!(touched.values[0].at(at(1)), Some(json!(3)));
    // One version, then all.
    let entry = Entry::new(
        Kind::Reference,
        Outcome::Deleted,
        String::new(),
        String::new(),
    );
    let withdraw = async |name: &str, version| {
        let ended = two.withdraw_reference_value(name, version, 5, &entry).await;
        ended.unwrap()
    };
    assert_eq!(withdraw("a/b:1", Some(9)).await, 0);
    assert_eq!(withdraw("a/b:1", Some(1)).await, 1);
    assert_eq!(seen(&one, "a/b:1", 25).await, Some(json!(["new"])));
    assert_eq!(
        (withdraw("a/b:1", None).await, withdraw("a/b:1", None).await),
        (1, 0)
    );
    let touched = one.references_after(4).await.unwrap();
    assert!(touched.values.iter().all(|value| value.versions.is_empty()));
    let history = one.reference_history("a/b:1", at(25)).await.unwrap();
    let shape = |one: &ReferenceVersion| (one.value.clone(), one.state, one.holds);
    let withdrawn = ReferenceState::Withdrawn;
    assert_eq!(
        history.iter().map(shape).collect::<Vec<_>>(),
        [
            (json!(["old"]), withdrawn, false),
            (json!(["new"]), withdrawn, false)
        ]
    );
    assert_eq!(
        history[0].not_before.as_deref(),
        Some("1970-01-01T00:00:10Z")
    );
    assert_eq!(history[1].not_after, None);
    assert_eq!(history[1].provenance, Provenance::Signer("key".to_owned()));
    let named = Search {
        resource: Some("reference-value/a/".to_owned()),
        ..Search::default()
    };
    let entries = one.search(&named).await.unwrap();
    let told: Vec<_> = entries
        .iter()
        .map(|one| (one.result, one.versions.references))
        .collect();
    assert_eq!(told.len(), 5);
    assert_eq!(told[4], (Outcome::Deleted, 6));
}

pub(super) async fn a_list_of_reference_values_comes_in_whole_names(place: Place) {
    let store = place.open().await;
    let all: Vec<_> = (0..1300)
        .map(|number| value(&format!("n/{:04}", number / 2), json!(number)))
        .collect();
    add(&store, &all, Mode::Add).await.unwrap();
    let mut page = Page {
        prefix: "n/".to_owned(),
        ..Page::default()
    };
    let mut found = Vec::new();
    loop {
        let list = store.list_reference_values(&page, at(1)).await.unwrap();
        let Some(last) = list.last() else { break };
        page.after.clone_from(&last.name);
        assert!(list.len() % 2 == 0 && list.iter().all(|one| one.holds));
        found.extend(list.into_iter().map(|one| one.value));
    }
    assert_eq!(
        found,
        (0..1300).map(|number| json!(number)).collect::<Vec<_>>()
    );
    page = Page {
        prefix: "n/0001".to_owned(),
        ..Page::default()
    };
    assert_eq!(
        store
            .list_reference_values(&page, at(1))
            .await
            .unwrap()
            .len(),
        2
    );
}

pub(super) async fn reference_values_are_bounded_and_a_refused_change_leaves_nothing(place: Place) {
    let store = place.open().await;
    let bound = VERSIONS + HISTORY;
    for number in 0..VERSIONS {
        add(&store, &[value("a", json!(number))], Mode::Add)
            .await
            .unwrap();
    }
    let before = store.search(&Search::default()).await.unwrap().len();
    let changes = store.changes(&Mark::BEGINNING).await.unwrap();
    let many = [value("b", json!(1)), value("a", json!("one more"))];
    let large = value("b", json!("x".repeat(70_000)));
    for refused in [
        add(&store, &many, Mode::Add).await,
        add(&store, &[large], Mode::Add).await,
    ] {
        assert!(matches!(refused, Err(StoreError::Limit(_))));
    }
    assert_eq!(
        store.search(&Search::default()).await.unwrap().len(),
        before
    );
    assert_eq!(store.changes(&Mark::BEGINNING).await.unwrap(), changes);
    assert_eq!(seen(&store, "b", 1).await, None);
    for number in 0..HISTORY {
        let next = value("a", json!(number + VERSIONS));
        add(&store, &[next], Mode::Replace).await.unwrap();
    }
    let history = store.reference_history("a", at(1)).await.unwrap();
    assert_eq!(history.len(), HISTORY + 1);
    assert_eq!(history[HISTORY].value, json!(bound - 1));
    assert_eq!(history[0].value, json!(VERSIONS - 1));
}
