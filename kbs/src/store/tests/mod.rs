//! The same tests on both databases.

mod entry;
mod open;
mod rule;

use std::{path::PathBuf, sync::Arc};

use kbs_protocol::ResourcePath;
use serde_json::json;
use sqlx::Row;
use support::postgres::Postgres;

use super::*;
use crate::{
    master::{KeyRing, Source, rotate},
    record::{Entry, Kind, Outcome, Search},
    seal::Sealer,
};
use entry::*;
use open::*;
use rule::*;

/// An empty database, which may be opened more than once.
struct Place {
    dir: tempfile::TempDir,
    address: Address,
}

impl Place {
    fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A name that an address has to escape.
        let address = Address::file(&dir.path().join("a b?%.sqlite")).unwrap();
        Self::with(dir, address)
    }

    fn postgres(server: &Postgres, name: &str) -> Self {
        let address = Address::server(&server.database(name).unwrap()).unwrap();
        Self::with(tempfile::tempdir().unwrap(), address)
    }

    fn with(dir: tempfile::TempDir, address: Address) -> Self {
        std::fs::write(dir.path().join("key"), Sealer::new_key().as_bytes()).unwrap();
        Self { dir, address }
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    async fn open(&self) -> Store {
        let keys = KeyRing::read(Source::File(self.key())).ok().unwrap();
        Store::open(&self.address, Arc::new(keys)).await.unwrap()
    }
}

/// Runs a test on a fresh database of each engine.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Place::sqlite()).await;
            })*
        }
        #[tokio::test]
        async fn the_same_on_postgresql() {
            let Some(server) = Postgres::start().unwrap() else { return };
            $($name(Place::postgres(&server, stringify!($name))).await;)*
        }
    };
}

on_both!(
    resources_are_versioned_and_survive,
    a_list_of_resources_has_all_that_one_may_see,
    another_key_or_another_place_opens_nothing,
    rotation_wraps_anew_while_others_read,
    a_data_key_that_does_not_open_holds_up_no_rotation,
    a_policy_has_versions_and_an_end,
    nothing_is_decided_by_a_store_that_went_back,
    a_change_after_a_restore_is_not_taken_for_the_one_that_was_known,
    many_changes_that_others_made_are_followed,
    changes_are_told_once_and_in_their_order,
    reference_values_replace_or_stay_beside_one_another,
    a_list_of_reference_values_comes_in_whole_names,
    reference_values_are_bounded_and_a_refused_change_leaves_nothing,
    entries_are_kept_in_order_and_found,
    a_search_holds_up_nobody_and_ends,
    a_probe_of_a_store_that_failed_is_written_and_over,
    entries_of_one_change_are_all_there_and_no_more,
    a_crowd_is_recorded_whole,
    retention_takes_the_oldest,
    a_clock_that_leapt_is_not_believed_for_a_restart,
    a_newer_database_is_left_alone,
    tables_of_another_program_are_named_and_left_alone,
    an_unprintable_name_stops_the_upgrade_and_is_named,
);

fn path(text: &str) -> ResourcePath {
    text.parse().unwrap()
}

fn entry(about: &str) -> Entry {
    Entry::new(
        Kind::Resource,
        Outcome::Set,
        "role admin".to_owned(),
        about.to_owned(),
    )
}

async fn a_list_of_resources_has_all_that_one_may_see(place: Place) {
    let store = place.open().await;
    let row = |number| format!("('{TENANT}', 'a/{}/{number:05}', 1, 2, 3, 1)", number % 2);
    let rows: Vec<_> = (0..4500).map(row).collect();
    let text = format!(
        "INSERT INTO resource (tenant, path, version, bytes, updated, present) VALUES {}",
        rows.join(", ")
    );
    let text = sqlx::AssertSqlSafe(text);
    sqlx::raw_sql(text)
        .execute(&store.writer.pool)
        .await
        .unwrap();
    let list = async |prefix: &str, may_see: fn(&ResourcePath) -> bool| {
        let mut page = Page {
            prefix: prefix.to_owned(),
            ..Page::default()
        };
        let mut found = Vec::new();
        loop {
            let part = store.list_resources(&page, may_see).await.unwrap();
            let Some(last) = part.last() else { break };
            page.after = last.path.to_string();
            found.extend(part.into_iter().map(|one| one.path.to_string()));
        }
        found
    };
    let all = list("", |_| true).await;
    assert_eq!(all.len(), 4500);
    assert!(all.is_sorted());
    let last: fn(&ResourcePath) -> bool = |path| *path.to_string() >= *"a/1/04490";
    let seen = [
        "a/1/04491",
        "a/1/04493",
        "a/1/04495",
        "a/1/04497",
        "a/1/04499",
    ];
    assert_eq!(list("", last).await, seen);
    assert_eq!(list("a/0/0000", |_| true).await.len(), 5);
    assert!(list("b", |_| true).await.is_empty());
}

async fn resources_are_versioned_and_survive(place: Place) {
    let first = place.open().await;
    let name = path("a/b/c");
    for number in 1..=12 {
        let text = format!("secret {number}");
        let set = first
            .set_resource(&name, text.as_bytes(), number, &entry("a/b/c"))
            .await;
        assert_eq!(set.unwrap(), number);
    }
    first.close().await;
    let second = place.open().await;
    assert_eq!(
        &**second.resource(&name).await.unwrap().unwrap().1,
        b"secret 12"
    );
    let listed = second
        .list_resources(&Page::default(), |_| true)
        .await
        .unwrap();
    assert_eq!(
        (listed[0].version, listed[0].bytes, listed[0].updated),
        (12, 9, 12)
    );
    let history = second.resource_history(&name).await.unwrap();
    let versions: Vec<i64> = history.iter().map(|one| one.version).collect();
    assert_eq!(versions, (3..=12).collect::<Vec<_>>());
    assert!(
        second
            .delete_resource(&name, 13, &entry("a/b/c"))
            .await
            .unwrap()
    );
    assert!(
        !second
            .delete_resource(&name, 13, &entry("a/b/c"))
            .await
            .unwrap()
    );
    assert!(second.resource(&name).await.unwrap().is_none());
    assert!(second.resource_history(&name).await.unwrap().is_empty());
    // A number names one content for ever.
    assert_eq!(
        second
            .set_resource(&name, b"new", 14, &entry("a/b/c"))
            .await
            .unwrap(),
        14
    );
    // Each change is on the record, once; the deletion that deleted nothing is not.
    assert_eq!(second.search(&Search::default()).await.unwrap().len(), 14);
}

async fn another_key_or_another_place_opens_nothing(place: Place) {
    let store = place.open().await;
    for name in ["a/b/c", "a/b/d"] {
        store
            .set_resource(&path(name), name.as_bytes(), 1, &entry(name))
            .await
            .unwrap();
    }
    sqlx::raw_sql(
        "DELETE FROM resource_version WHERE path = 'a/b/d';
         UPDATE resource_version SET path = 'a/b/d' WHERE path = 'a/b/c';",
    )
    .execute(&store.writer.pool)
    .await
    .unwrap();
    assert!(matches!(
        store.resource(&path("a/b/d")).await,
        Err(StoreError::Seal(_))
    ));
    store
        .set_resource(&path("a/b/e"), b"x", 1, &entry("a/b/e"))
        .await
        .unwrap();
    std::fs::write(place.key(), Sealer::new_key().as_bytes()).unwrap();
    let keys = KeyRing::read(Source::File(place.key())).ok().unwrap();
    let other = Store::open(&place.address, Arc::new(keys)).await;
    assert!(matches!(other.err(), Some(StoreError::Masters(_))));
}

async fn rotation_wraps_anew_while_others_read(place: Place) {
    let (one, two) = (place.open().await, place.open().await);
    for number in 0..150 {
        let name = path(&format!("a/b/n{number}"));
        one.set_resource(&name, b"kept", 1, &entry("n"))
            .await
            .unwrap();
    }
    let old = one.key_status().await.unwrap().newest;
    let new = rotate(&place.key()).unwrap();
    one.reload_keys();
    assert_eq!(one.rewrap().await.unwrap().wrapped, 100);
    let status = one.key_status().await.unwrap();
    assert_eq!((status.versions[&old], status.versions[&new]), (50, 100));
    // The other broker knows the old key only, meets both kinds, and reads the file meanwhile.
    let other = two.clone();
    let reloaded = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        other.reload_keys();
    });
    for number in 0..150 {
        let name = path(&format!("a/b/n{number}"));
        assert_eq!(&**two.resource(&name).await.unwrap().unwrap().1, b"kept");
    }
    reloaded.await.unwrap();
    assert_eq!(one.rewrap().await.unwrap().wrapped, 50);
    assert_eq!(one.rewrap().await.unwrap().wrapped, 0);
    assert!(!one.key_status().await.unwrap().versions.contains_key(&old));
}

async fn a_data_key_that_does_not_open_holds_up_no_rotation(place: Place) {
    let store = place.open().await;
    // More damaged ones than one step looks at, before and after a whole one.
    for number in 0..250 {
        let name = path(&format!("a/b/n{number:03}"));
        let set = store.set_resource(&name, b"kept", 1, &entry("n")).await;
        set.unwrap();
    }
    let damage = "UPDATE resource_version SET wrapped = sealed WHERE path <> 'a/b/n170'";
    sqlx::raw_sql(damage)
        .execute(&store.writer.pool)
        .await
        .unwrap();
    rotate(&place.key()).unwrap();
    store.reload_keys();
    assert_eq!(store.rewrap().await.unwrap().wrapped, 1);
    let rest = store.rewrap().await.unwrap();
    assert_eq!((rest.wrapped, rest.passed_over), (0, 249));
    assert_eq!(rest.first, Some(("a/b/n000".to_owned(), 1)));
    let kept = store.resource(&path("a/b/n170")).await.unwrap().unwrap();
    assert_eq!(&**kept.1, b"kept");
}

/// What a broker leaves that is frozen in the middle of a change: the turn is taken, and nothing is said.
#[tokio::test]
async fn a_turn_that_nobody_ends_is_over_within_seconds() {
    let Some(server) = Postgres::start().unwrap() else {
        return;
    };
    let place = Place::postgres(&server, "turn");
    let (frozen, other) = (place.open().await, place.open().await);
    let mut turn = frozen.begin().await.unwrap();
    record::insert(&mut turn, &[&entry("frozen")])
        .await
        .unwrap();
    let written = tokio::time::timeout(PATIENCE, other.record([entry("other")])).await;
    written.expect("the turn never ended").unwrap();
    assert!(turn.commit().await.is_err());
    // The one that was frozen goes on with a new connection.
    frozen.record([entry("thawed")]).await.unwrap();
    let found = other.search(&Search::default()).await.unwrap();
    let about: Vec<_> = found.iter().map(|one| one.resource.as_str()).collect();
    assert_eq!(about, ["other", "thawed"]);
}

async fn a_newer_database_is_left_alone(place: Place) {
    let store = place.open().await;
    sqlx::raw_sql("UPDATE kbs_schema SET version = 99")
        .execute(&store.writer.pool)
        .await
        .unwrap();
    let keys = KeyRing::read(Source::File(place.key())).ok().unwrap();
    let newer = Store::open(&place.address, Arc::new(keys)).await;
    assert!(matches!(newer, Err(StoreError::Newer)));
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_brought_over_whole() {
    let place = Place::sqlite();
    sqlx::any::install_default_drivers();
    let pool = connect(&place.address, 1).await.unwrap();
    sqlx::raw_sql(schema::STEPS[0])
        .execute(&pool)
        .await
        .unwrap();
    let sealed = Sealer::from_hex(std::fs::read_to_string(place.key()).unwrap().trim())
        .ok()
        .unwrap()
        .seal("a/b/c", b"treasure")
        .unwrap();
    sqlx::query("INSERT INTO resource (path, sealed, bytes, version, updated) VALUES ('a/b/c', $1, 8, 5, 6)")
        .bind(sealed)
        .execute(&pool)
        .await
        .unwrap();
    sqlx::raw_sql(
        r#"INSERT INTO policy (id, rego, updated) VALUES ('p', 'text', 1);
        INSERT INTO reference_value (id, value) VALUES ('svn', '["1"]');
        INSERT INTO denial (ticket, record) VALUES ('t1', '{"ticket":"t1",
            "time":"2026-01-02T03:04:05Z","step":"attest","subject":"sample","reasons":[]}');
        PRAGMA user_version = 1;"#,
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let store = place.open().await;
    assert_eq!(
        &**store.resource(&path("a/b/c")).await.unwrap().unwrap().1,
        b"treasure"
    );
    let listed = store
        .list_resources(&Page::default(), |_| true)
        .await
        .unwrap();
    assert_eq!((listed[0].version, listed[0].updated), (5, 6));
    let kept = store.policy("p", None).await.unwrap();
    assert_eq!(kept, Some("text".to_owned()));
    let values = store.references_after(0).await.unwrap();
    let svn = &values.values[0];
    assert_eq!((svn.name.as_str(), values.version), ("svn", 1));
    assert_eq!(svn.at(std::time::SystemTime::now()), Some(json!(["1"])));
    let changes = store.changes(&Mark::BEGINNING).await.unwrap();
    let told: Vec<_> = changes
        .iter()
        .map(|one| (one.what.as_str(), one.present))
        .collect();
    assert_eq!(told, [("p", true), (REFERENCES, false)]);
    let ticket = store.ticket("t1").await.unwrap().unwrap();
    assert_eq!(
        (ticket.kind, ticket.resource.as_str()),
        (Kind::Attest, "sample")
    );
    store.close().await;
    // The second start finds nothing to do.
    let again = place.open().await;
    let row = sqlx::query("SELECT version FROM kbs_schema")
        .fetch_one(&again.read)
        .await
        .unwrap();
    let newest = i64::try_from(schema::STEPS.len()).unwrap();
    assert_eq!(row.try_get::<i64, _>(0).unwrap(), newest);
}
