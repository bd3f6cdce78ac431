//! The record's entries: all there, in their order, and found.

use std::time::Instant;

use policies::release::Reason;

use super::*;
use crate::{
    config,
    record::from_millis,
    retention::{self, Calendar},
};

pub(super) async fn entries_are_kept_in_order_and_found(place: Place) {
    let store = place.open().await;
    let reason = Reason {
        claim: "c\0".to_owned(),
        expected: "e".to_owned(),
        found: "f".to_owned(),
        fix: "x".to_owned(),
    };
    let subject = |number: i32| format!("key {number:02}\0");
    let made = |number| {
        Entry::new(
            Kind::Release,
            Outcome::Allowed,
            subject(number),
            "a/b/c".into(),
        )
    };
    let all = (0..40).map(|number| {
        let entry = made(number);
        let denied = number % 4 == 0;
        store.record([if denied {
            entry.denied().judging([reason.clone()])
        } else {
            entry
        }])
    });
    let tasks = all.collect::<Vec<_>>();
    for task in tasks {
        task.await.unwrap();
    }
    let denied = Search {
        result: Some(Outcome::Denied),
        ..Search::default()
    };
    let found = store.search(&denied).await.unwrap();
    assert_eq!(found.len(), 10);
    assert!(found.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(found[0].claims, vec![reason.into()]);
    let explained = store.ticket(&found[3].ticket).await.unwrap().unwrap();
    assert_eq!(explained, found[3]);
    assert_eq!(store.ticket("").await.unwrap(), None);
    let mut page = Search {
        limit: Some(7),
        subject: Some("key".to_owned()),
        resource: Some("a/b".to_owned()),
        kind: Some(Kind::Release),
        since: Some(found[0].time.clone()),
        ..Search::default()
    };
    let mut count = 0;
    loop {
        let entries = store.search(&page).await.unwrap();
        assert!(entries.len() <= 7);
        let Some(last) = entries.last() else { break };
        page.after = Some(last.id);
        count += entries.len();
    }
    assert_eq!(count, 40);
    for nothing in [
        Search {
            until: Some("2001-01-01T00:00:00Z".to_owned()),
            ..Search::default()
        },
        Search {
            kind: Some(Kind::Policy),
            ..Search::default()
        },
        Search {
            subject: Some("role".to_owned()),
            ..Search::default()
        },
    ] {
        assert_eq!(store.search(&nothing).await.unwrap(), vec![]);
    }
    let wrong = Search {
        since: Some("yesterday".to_owned()),
        ..Search::default()
    };
    assert!(matches!(store.search(&wrong).await, Err(StoreError::Time)));
}

pub(super) async fn a_search_holds_up_nobody_and_ends(place: Place) {
    let store = place.open().await;
    let name = path("a/b/c");
    store
        .set_resource(&name, b"kept", 1, &entry("first"))
        .await
        .unwrap();
    // Numbers as after a long retention, more than one part of a search, and times of two clocks.
    sqlx::raw_sql(
        "INSERT INTO record (id, tenant, time, kind, subject, resource, result, ticket, evidence,
             versions, claims)
         SELECT 50000 + n, tenant, 1000000000000 + n, kind, subject, 'old', result, ticket,
             evidence, versions, claims
         FROM record, (SELECT 1 AS n UNION ALL SELECT 30000 UNION ALL SELECT 60000) AS many",
    )
    .execute(&store.writer.pool)
    .await
    .unwrap();
    let find = async |about: &str, since: Option<&str>| {
        let search = Search {
            resource: Some(about.to_owned()),
            since: since.map(ToOwned::to_owned),
            ..Search::default()
        };
        let found = store.search(&search).await.unwrap();
        found.iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert_eq!(find("", None).await, [1, 50_001, 80_000, 110_000]);
    assert_eq!(find("old", None).await, [50_001, 80_000, 110_000]);
    assert_eq!(find("", Some("2010-01-01T00:00:00Z")).await, [1]);
    assert_eq!(
        find("old", Some("2001-09-09T01:46:50Z")).await,
        [80_000, 110_000]
    );
    // As long as others look through the record, nobody else waits.
    let busy = store.search.acquire().await.unwrap();
    let soon = tokio::time::Instant::now() + Duration::from_millis(200);
    let slow = store.search_until(&Search::default(), soon).await;
    assert!(matches!(slow, Err(StoreError::Slow)), "{slow:?}");
    assert!(store.resource(&name).await.unwrap().is_some());
    store.answers().await.unwrap();
    store.changes(&Mark::BEGINNING).await.unwrap();
    drop(busy);
    assert_eq!(find("first", None).await, [1]);
}

pub(super) async fn a_probe_of_a_store_that_failed_is_written_and_over(place: Place) {
    let store = place.open().await;
    assert!(store.is_writable().await);
    for _ in 0..2 {
        store.failed();
        assert!(store.is_writable().await);
        let row = sqlx::query("SELECT id, octet_length(filling) FROM kbs_probe")
            .fetch_all(&store.read)
            .await
            .unwrap();
        assert_eq!(row.len(), 1);
        // As much as a batch.
        assert!(row[0].try_get::<i64, _>(1).unwrap() >= 1 << 20);
        tokio::time::sleep(Duration::from_millis(2100)).await;
    }
}

pub(super) async fn entries_of_one_change_are_all_there_and_no_more(place: Place) {
    let store = place.open().await;
    let mut after = None;
    for count in [0, 1, 3, 16, 17, 64, 65, 150] {
        let made: Vec<Entry> = (0..count)
            .map(|number| entry(&format!("a/b/{number}")))
            .collect();
        let mut change = store.begin().await.unwrap();
        let all: Vec<&Entry> = made.iter().collect();
        record::insert(&mut change, &all).await.unwrap();
        change.commit().await.unwrap();
        let page = Search {
            after,
            ..Search::default()
        };
        let found = store.search(&page).await.unwrap();
        after = found.last().map(|last| last.id).or(after);
        let about =
            |all: &[Entry]| -> Vec<String> { all.iter().map(|one| one.resource.clone()).collect() };
        assert_eq!(about(&found), about(&made), "{count}");
    }
}

pub(super) async fn retention_takes_the_oldest(place: Place) {
    let store = place.open().await;
    assert_eq!(store.last_recorded().await.unwrap(), None);
    let mut old = entry("old");
    old.time = "2001-01-01T00:00:00Z".to_owned();
    store.record([old]).await.unwrap();
    store.record([entry("kept")]).await.unwrap();
    for number in 0..10 {
        let mut minor = entry("refused");
        if number % 2 == 0 {
            minor = minor.denied();
        } else {
            minor.affirms_nothing = true;
        }
        store.record([minor]).await.unwrap();
    }
    let forget = async |before, minor| {
        let forget = Forget { before, minor };
        store.forget(forget).await.unwrap()
    };
    let year = Some(1_000_000_000_000);
    assert!(store.last_recorded().await.unwrap() > year);
    assert_eq!(forget(None, 100).await, 0);
    assert_eq!(forget(year, 100).await, 1);
    assert_eq!(forget(year, 100).await, 0);
    assert_eq!(forget(Some(0), 4).await, 6);
    let left = store.search(&Search::default()).await.unwrap();
    // However many refusals guests bring about, what was administered stays.
    assert_eq!(
        left.iter().map(|one| one.id).collect::<Vec<_>>(),
        [2, 9, 10, 11, 12]
    );
}

/// The newest entry is then one of the wrong clock's own.
pub(super) async fn a_clock_that_leapt_is_not_believed_for_a_restart(place: Place) {
    const DAY: i64 = 24 * 3600 * 1000;
    const NOW: i64 = 1_900_000_000_000;
    let store = place.open().await;
    let at = |millis| {
        let mut one = entry("one");
        one.time = from_millis(millis).unwrap();
        one
    };
    let kept = config::Record::default();
    let round = async |calendar: &mut Calendar, now, passed| {
        let clock = (now, Instant::now() + Duration::from_secs(passed));
        retention::round(&store, &kept, calendar, clock)
            .await
            .unwrap()
    };
    store.record([at(NOW)]).await.unwrap();
    assert_eq!(round(&mut Calendar::default(), NOW, 0).await, 0);
    let wrong = NOW + 400 * DAY;
    for _ in 0..3 {
        let mut started = Calendar::default();
        assert_eq!(round(&mut started, wrong, 0).await, 0);
        store.record([at(wrong)]).await.unwrap();
        assert_eq!(round(&mut started, wrong + 60_000, 60).await, 0);
    }
    // Nobody set it right for a day.
    let mut started = Calendar::default();
    assert_eq!(round(&mut started, wrong, 0).await, 0);
    assert_eq!(round(&mut started, wrong + DAY, 24 * 3600 + 60).await, 1);
    assert_eq!(store.last_believed().await.unwrap(), Some(wrong + DAY));
}

/// More than one batch waits at once, and each of them is told.
pub(super) async fn a_crowd_is_recorded_whole(place: Place) {
    let store = place.open().await;
    let crowd = (0..700).map(|number| {
        let store = store.clone();
        tokio::spawn(async move { store.record([entry(&format!("a/b/{number}"))]).await })
    });
    for one in crowd.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    let found = store.search(&Search::default()).await.unwrap();
    assert_eq!(found.len(), 700);
}
