//! What a database may be when a broker is started on it: somebody else's, damaged, absent, or older.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use sqlx::Executor;

use super::*;

fn keys(place: &Place) -> Arc<KeyRing> {
    Arc::new(KeyRing::read(Source::File(place.key())).ok().unwrap())
}

async fn refused(place: &Place) -> String {
    let opened = Store::open(&place.address, keys(place)).await;
    opened.err().unwrap().to_string()
}

async fn with(place: &Place, sql: &'static str) {
    sqlx::any::install_default_drivers();
    let pool = connect(&place.address, 1).await.unwrap();
    sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    pool.close().await;
}

fn file(place: &Place) -> &Path {
    place.address.file.as_deref().unwrap()
}

pub(super) async fn tables_of_another_program_are_named_and_left_alone(place: Place) {
    with(
        &place,
        "CREATE TABLE policy (a INTEGER); CREATE TABLE reference_value (b INTEGER);",
    )
    .await;
    let looked = probe(&place.address).await.unwrap_err().to_string();
    for said in [looked, refused(&place).await] {
        assert!(
            said.contains("another program (policy, reference_value)"),
            "{said}"
        );
    }
    with(&place, "DROP TABLE policy; DROP TABLE reference_value;").await;
    assert_eq!(probe(&place.address).await.unwrap(), Found::Empty);
    place.open().await.close().await;
    let found = probe(&place.address).await.unwrap();
    assert!(matches!(found, Found::Data { older: false, .. }));
}

pub(super) async fn an_unprintable_name_stops_the_upgrade_and_is_named(place: Place) {
    sqlx::any::install_default_drivers();
    let pool = connect(&place.address, 1).await.unwrap();
    let engine = place.address.engine;
    for text in &schema::STEPS[..2] {
        let text = sqlx::AssertSqlSafe(engine.dialect(text));
        sqlx::raw_sql(text).execute(&pool).await.unwrap();
    }
    pool.execute(
        "DROP TABLE old_resource; DROP TABLE old_policy; DROP TABLE old_reference_value;
         CREATE TABLE kbs_schema (version BIGINT NOT NULL);
         INSERT INTO kbs_schema (version) VALUES (2);
         INSERT INTO reference_value (tenant, id, value, updated) VALUES
             ('default', 'svn', '[1]', 0), ('default', 'a\u{7}b\nc', '[1]', 0);",
    )
    .await
    .unwrap();
    let looked = probe(&place.address).await.unwrap_err().to_string();
    for said in [looked, refused(&place).await] {
        for word in [
            r#""a\u{7}b\nc""#,
            "control character",
            "nothing was changed",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    pool.execute("DELETE FROM reference_value WHERE id <> 'svn'")
        .await
        .unwrap();
    pool.close().await;
    let store = place.open().await;
    assert_eq!(store.references_after(0).await.unwrap().values.len(), 1);
}

#[tokio::test]
async fn a_file_of_the_first_version_is_no_empty_one() {
    let place = Place::sqlite();
    with(&place, schema::STEPS[0]).await;
    let said = probe(&place.address).await.unwrap_err().to_string();
    assert!(said.contains("another program"), "{said}");
    with(&place, "PRAGMA user_version = 1").await;
    let found = probe(&place.address).await.unwrap();
    assert!(matches!(found, Found::Data { older: true, .. }));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_with_its_fault() {
    let place = Place::sqlite();
    place.open().await.close().await;
    let good = fs::read(file(&place)).unwrap();
    let mut damaged = good.clone();
    // All pages but the first, which has the list of tables.
    damaged[4096..].fill(0xa5);
    for (content, word) in [
        (b"nothing at all ".repeat(100), "no database of SQLite"),
        (damaged, "damaged"),
    ] {
        fs::write(file(&place), content).unwrap();
        let said = refused(&place).await;
        let name = file(&place).display().to_string();
        assert!(said.contains(&name) && said.contains(word), "{said}");
    }
    fs::remove_file(file(&place)).unwrap();
    fs::create_dir(file(&place)).unwrap();
    let said = refused(&place).await;
    assert!(said.contains("it is a directory"), "{said}");
    let absent = place.dir.path().join("absent/kbs.sqlite");
    let place = Place::with(
        tempfile::tempdir().unwrap(),
        Address::file(&absent).unwrap(),
    );
    let said = refused(&place).await;
    assert!(said.contains("its directory does not exist"), "{said}");
    assert!(!absent.exists());
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_its_password() {
    let address = Address::server("postgres://kbs:hidden@127.0.0.1:9/kbs").unwrap();
    let place = Place::with(tempfile::tempdir().unwrap(), address);
    let looked = probe(&place.address).await.unwrap_err().to_string();
    for said in [looked, refused(&place).await] {
        for word in ["PostgreSQL at 127.0.0.1:9", "refused"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(!said.contains("hidden") && !said.contains("pool"), "{said}");
    }
}

#[tokio::test]
async fn only_its_owner_reads_a_new_file_and_what_is_beside_it() {
    let place = Place::sqlite();
    let store = place.open().await;
    store
        .set_resource(&path("a/b/c"), b"x", 1, &entry("a/b/c"))
        .await
        .unwrap();
    let name = file(&place).file_name().unwrap().to_str().unwrap();
    let mut seen = 0;
    for one in fs::read_dir(place.dir.path()).unwrap() {
        let one = one.unwrap();
        if one.file_name().to_str().unwrap().starts_with(name) {
            let mode = one.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", one.file_name());
            seen += 1;
        }
    }
    assert_eq!(seen, 3, "the file, its log and its index");
}
