//! What is kept: renewed in time, replaced by nothing worse, waited for by its own guest only, and read
//! back from a disk on which anything may stand.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use evidence::snp::Generation;
use kbs::collateral::{Collateral, CollateralError, Config, Development};
use verifier::{
    Failure,
    snp::{Rules, SnpFailure},
};

use crate::{
    development::ROOTS,
    lab::{Lab, Machine, around, base64, later, list},
};

#[tokio::test]
async fn a_list_is_renewed_before_it_ends_and_what_it_revokes_is_known_without_a_wait() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let machine = Machine::new(Generation::Milan, 1);
    lab.knows(&machine);
    machine
        .verify(&machine.asks(&collateral).await.unwrap())
        .unwrap();
    // On the same day nobody is asked.
    collateral.look_after(SystemTime::now()).await;
    assert_eq!(lab.service.times(&machine.list_path()), 1);
    // The serial number of the ASK.
    let path = machine.list_path();
    lab.service.give(&path, list(around(1, 31), &[2]));
    collateral.look_after(later(2)).await;
    assert_eq!(lab.service.times(&path), 2);
    let set = machine.asks_at(&collateral, later(2)).await.unwrap();
    assert_eq!(lab.service.times(&path), 2);
    let failure = machine.verify(&set).unwrap_err();
    assert!(
        matches!(failure, Failure::Snp(SnpFailure::Revoked { .. })),
        "{failure}"
    );
}

#[tokio::test]
async fn no_answer_replaces_a_good_copy_but_a_newer_one_that_verifies() {
    let lab = Lab::new().await;
    let machine = Machine::new(Generation::Milan, 1);
    lab.knows(&machine);
    let first = lab.open();
    machine.asks(&first).await.unwrap();
    let file = lab.dir.path().join("cache/sim-snp.crl.Milan.json");
    let good = fs::read(&file).unwrap();
    let path = machine.list_path();
    let answers = [
        ("older", list(around(-1, 29), &[])),
        ("ended", list(around(1, 0), &[])),
        ("garbage", b"no list".to_vec()),
    ];
    for (name, answer) in answers {
        // Each time another process, which remembers no failure.
        let collateral = lab.open();
        lab.service.give(&path, answer);
        let asked = lab.service.times(&path);
        collateral.look_after(later(2)).await;
        assert_eq!(lab.service.times(&path), asked + 1, "{name}");
        assert_eq!(fs::read(&file).unwrap(), good, "{name}");
        let set = machine.asks_at(&collateral, later(2)).await.unwrap();
        assert_eq!(set.crls.len(), 1, "{name}");
    }
    lab.service.say(&path, 503, &[], "");
    let collateral = lab.open();
    machine.asks_at(&collateral, later(2)).await.unwrap();
    // When it ends at last, the failure is told.
    let error = machine.asks_at(&lab.open(), later(40)).await.unwrap_err();
    assert!(
        matches!(error, CollateralError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn one_fetch_answers_all_who_ask_at_once() {
    let lab = Lab::new().await;
    let collateral = Arc::new(lab.open());
    let machine = Arc::new(Machine::new(Generation::Turin, 1));
    lab.knows(&machine);
    let release = lab.service.hold(&machine.path());
    let guests: Vec<_> = (0..50)
        .map(|_| {
            let (collateral, machine) = (Arc::clone(&collateral), Arc::clone(&machine));
            tokio::spawn(async move { machine.asks(&collateral).await.map(drop) })
        })
        .collect();
    tokio::task::yield_now().await;
    release.send_replace(true);
    for guest in guests {
        guest.await.unwrap().unwrap();
    }
    assert_eq!(lab.service.times(&machine.path()), 1);
    assert_eq!(lab.service.times(&machine.list_path()), 1);
}

#[tokio::test]
async fn a_slow_answer_holds_up_its_own_guest_only_and_is_kept_when_it_comes() {
    let lab = Lab::new().await;
    let collateral = Arc::new(lab.open());
    let slow = Arc::new(Machine::new(Generation::Milan, 1));
    lab.knows(&slow);
    let release = lab.service.hold(&slow.path());
    let waiting = {
        let (collateral, slow) = (Arc::clone(&collateral), Arc::clone(&slow));
        tokio::spawn(async move { slow.asks(&collateral).await.map(drop) })
    };
    while lab.service.times(&slow.path()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for chip in 2..40 {
        let other = Machine::new(Generation::Milan, chip);
        lab.knows(&other);
        other.asks(&collateral).await.unwrap();
        assert!(!waiting.is_finished());
    }
    // Nobody answers the first guest, so it is told.
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, CollateralError::TooSlow { .. }), "{error}");
    assert!(error.retry_helps());
    release.send_replace(true);
    slow.asks(&collateral).await.unwrap();
    assert_eq!(lab.service.times(&slow.path()), 1);
}

#[tokio::test]
async fn many_chips_that_nobody_answers_for_hold_up_no_list() {
    let lab = Lab::new().await;
    let collateral = Arc::new(lab.open());
    let held: Vec<_> = (1..=40)
        .map(|chip| Arc::new(Machine::new(Generation::Milan, chip)))
        .map(|machine| {
            let release = lab.service.hold(&machine.path());
            let collateral = Arc::clone(&collateral);
            let waiting = tokio::spawn(async move { machine.asks(&collateral).await.map(drop) });
            (release, waiting)
        })
        .collect();
    // As many as may be asked for at once.
    while lab.service.asked().len() < 16 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = Machine::new(Generation::Genoa, 1);
    lab.knows(&other);
    let evidence = other.case.evidence();
    let (rules, now) = (Rules::default(), SystemTime::now());
    let set = collateral.snp(&ROOTS, &evidence, &rules, now).await;
    assert_eq!(set.unwrap().crls.len(), 1);
    assert!(held.iter().all(|(_, waiting)| !waiting.is_finished()));
    for (_, waiting) in &held {
        waiting.abort();
    }
}

#[tokio::test]
async fn after_a_restart_the_disk_answers_and_nobody_is_asked() {
    let lab = Lab::new().await;
    let machine = Machine::new(Generation::Genoa, 1);
    lab.knows(&machine);
    machine.asks(&lab.open()).await.unwrap();
    let asked = lab.service.asked().len();
    machine.asks(&lab.open()).await.unwrap();
    assert_eq!(lab.service.asked().len(), asked);

    let config = Config {
        fetch: false,
        ..lab.config()
    };
    let alone = Collateral::open(&config).unwrap();
    machine
        .verify(&machine.asks(&alone).await.unwrap())
        .unwrap();
    let error = Machine::new(Generation::Genoa, 2)
        .asks(&alone)
        .await
        .unwrap_err();
    assert!(matches!(error, CollateralError::Absent { .. }), "{error}");
    assert!(!error.retry_helps());
    let error = machine.asks_at(&alone, later(40)).await.unwrap_err();
    assert!(matches!(error, CollateralError::Expired { .. }), "{error}");
    assert_eq!(lab.service.asked().len(), asked);
}

/// Changes a file of the cache, of which it gets the good bytes.
type BreakIn = (&'static str, fn(&Path, &[u8]));

#[tokio::test]
async fn whatever_stands_in_the_cache_is_fetched_anew() {
    let lab = Lab::new().await;
    let machine = Machine::new(Generation::Milan, 1);
    lab.knows(&machine);
    machine.asks(&lab.open()).await.unwrap();
    let cache = lab.dir.path().join("cache");
    let names = lab.files();
    let good: Vec<_> = names
        .iter()
        .map(|name| fs::read(cache.join(name)).unwrap())
        .collect();
    let break_in: [BreakIn; 7] = [
        ("empty", |path, _| fs::write(path, "").unwrap()),
        ("garbage", |path, _| fs::write(path, [0xff; 999]).unwrap()),
        ("half", |path, good| {
            fs::write(path, &good[..good.len() / 2]).unwrap()
        }),
        ("huge", |path, _| {
            fs::write(path, vec![b' '; 8 << 20]).unwrap()
        }),
        ("altered", |path, good| {
            let mut text: serde_json::Value = serde_json::from_slice(good).unwrap();
            let body = text["body"].as_str().unwrap();
            let at = body.len() - 30;
            let other = if &body[at..=at] == "A" { "B" } else { "A" };
            text["body"] = format!("{}{other}{}", &body[..at], &body[at + 1..]).into();
            fs::write(path, text.to_string()).unwrap();
        }),
        ("another member", |path, good| {
            let mut text: serde_json::Value = serde_json::from_slice(good).unwrap();
            text["trusted"] = true.into();
            fs::write(path, text.to_string()).unwrap();
        }),
        ("a link", |path, good| {
            let target = path.with_extension("target");
            fs::write(&target, good).unwrap();
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        }),
    ];
    for (name, break_in) in break_in {
        for (file, good) in names.iter().zip(&good) {
            break_in(&cache.join(file), good);
        }
        let before = lab.service.asked().len();
        let set = machine.asks(&lab.open()).await.unwrap();
        machine.verify(&set).unwrap();
        assert_eq!(lab.service.asked().len(), before + 2, "{name}");
        machine.asks(&lab.open()).await.unwrap();
        assert_eq!(lab.service.asked().len(), before + 2, "{name}: kept");
    }
}

#[tokio::test]
async fn vendors_are_never_asked_about_simulated_kinds() {
    let lab = Lab::new().await;
    let machine = Machine::new(Generation::Milan, 1);
    lab.knows(&machine);
    let config = Config {
        amd_kds: lab.service.url.clone(),
        simulated: None,
        ..lab.config()
    };
    let collateral = Collateral::open(&config).unwrap();
    let error = machine.asks(&collateral).await.unwrap_err();
    assert!(matches!(error, CollateralError::Absent { .. }), "{error}");
    // What a development root signed is handed over.
    let text = serde_json::json!({ "crls": [base64(&list(around(0, 30), &[]))] }).to_string();
    let development = Development::parse(text.as_bytes()).unwrap();
    let collateral = Collateral::open(&config)
        .unwrap()
        .with_development(development);
    let (evidence, now) = (machine.case.evidence(), SystemTime::now());
    let set = collateral
        .snp(&ROOTS, &evidence, &Rules::default(), now)
        .await;
    assert_eq!(set.unwrap().crls.len(), 1);
    assert!(lab.service.asked().is_empty());
    assert!(Development::parse(br#"{"crl": []}"#).is_err());
}
