//! Collateral from services that behave and from those that do not, from the disk, and from bundles.
#![allow(clippy::unwrap_used)]

#[path = "../verifier/tests/development/mod.rs"]
#[allow(dead_code, reason = "the verifier's tests use the rest")]
mod development;
mod service;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use development::{Case, ROOT, ROOTS};
use evidence::{
    sim::snp::Validity,
    snp::{Generation, KeyInfo, Product, SnpEvidence},
};
use kbs::collateral::{Collateral, CollateralError, Config, Development, SnpSet};
use service::Service;
use tempfile::TempDir;
use verifier::{
    Failure,
    snp::{self, CrlRule, Rules, SnpFailure},
};

const DAY: i64 = 24 * 3600;

/// A broker's cache, and the service that it asks.
struct Lab {
    service: Service,
    dir: TempDir,
}

impl Lab {
    async fn new() -> Self {
        let service = Service::start().await;
        let dir = tempfile::tempdir().unwrap();
        Self { service, dir }
    }

    fn config(&self) -> Config {
        self.service.config(self.dir.path())
    }

    fn open(&self) -> Collateral {
        Collateral::open(&self.config())
            .unwrap()
            .with_snp_roots(&ROOTS)
    }

    /// The service knows the machine's chip, and gives a list that revokes nobody.
    fn knows(&self, machine: &Machine) {
        self.service
            .give(&machine.path(), machine.certificate.clone());
        let list = list(around(0, 30), &[]);
        self.service.give(&machine.list_path(), list);
    }

    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("cache")) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}

/// A simulated machine whose host brings no certificate.
struct Machine {
    case: Case,
    evidence: SnpEvidence,
    certificate: Vec<u8>,
}

impl Machine {
    fn new(generation: Generation, chip: u8) -> Self {
        let mut case = Case::new(3, generation);
        case.report.chip_id[..generation.chip_id_bytes()].fill(chip);
        case.chip.chip_id = case.report.chip_id;
        let key = ROOT.chip(&case.chip).unwrap();
        let mut report = case.report.clone();
        key.sign(&mut report).unwrap();
        Self {
            evidence: SnpEvidence::new(&report.to_bytes().unwrap(), Vec::new()).unwrap(),
            certificate: key.certificate().to_vec(),
            case,
        }
    }

    fn product(&self) -> Product {
        self.case.chip.generation.product()
    }

    fn path(&self) -> String {
        let generation = self.case.chip.generation;
        let chip = &self.case.report.chip_id[..generation.chip_id_bytes()];
        let fmc = if generation.has_fmc() {
            "fmcSPL=01&"
        } else {
            ""
        };
        format!(
            "/vcek/v1/{}/{}?{fmc}blSPL=09&teeSPL=02&snpSPL=23&ucodeSPL=213",
            self.product(),
            hex::encode(chip)
        )
    }

    fn list_path(&self) -> String {
        list_path(self.product())
    }

    async fn asks(&self, collateral: &Collateral) -> Result<SnpSet, CollateralError> {
        self.asks_at(collateral, SystemTime::now()).await
    }

    async fn asks_at(
        &self,
        collateral: &Collateral,
        now: SystemTime,
    ) -> Result<SnpSet, CollateralError> {
        let rules = Rules::default();
        collateral.snp(&ROOTS, &self.evidence, &rules, now).await
    }

    fn verify(&self, set: &SnpSet) -> Result<verifier::Claims, Failure> {
        let collateral = snp::Collateral {
            vek: Some(&set.vek),
            crls: &set.crls,
        };
        let (rules, bindings) = (Rules::default(), &self.case.bindings);
        let now = u64::try_from(now()).unwrap();
        snp::verify(&self.evidence, &ROOTS, collateral, &rules, bindings, now)
    }
}

fn list_path(product: Product) -> String {
    format!("/vcek/v1/{product}/crl")
}

fn now() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    i64::try_from(now).unwrap()
}

fn later(days: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(days * 24 * 3600)
}

/// From ten days before now and `shift` days until `days` after now.
fn around(shift: i64, days: i64) -> Validity {
    Validity {
        from: now() + (shift - 10) * DAY,
        until: now() + days * DAY,
    }
}

fn list(validity: Validity, serials: &[u64]) -> Vec<u8> {
    ROOT.crl(0, validity, serials).unwrap()
}

#[tokio::test]
async fn a_chips_certificate_and_its_list_are_fetched_once_and_verify() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    for generation in Generation::ALL {
        let machine = Machine::new(generation, 1 + generation as u8);
        lab.knows(&machine);
        for _ in 0..3 {
            let set = machine.asks(&collateral).await.unwrap();
            let claims = machine.verify(&set).unwrap();
            assert_eq!(claims.evidence["crl"], "checked");
        }
        assert_eq!(lab.service.times(&machine.path()), 1, "{generation}");
        assert_eq!(lab.service.times(&machine.list_path()), 1, "{generation}");
    }
    // Four chips of three products.
    assert_eq!(lab.service.asked().len(), 7);
    assert_eq!(lab.files().len(), 7);
}

#[tokio::test]
async fn a_certificate_that_the_guest_brings_is_checked_once_and_not_asked_for() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let machine = Machine::new(Generation::Milan, 1);
    lab.knows(&machine);
    let evidence = machine.case.evidence();
    let rules = Rules::default();
    let now = SystemTime::now();
    let first = collateral
        .snp(&ROOTS, &evidence, &rules, now)
        .await
        .unwrap();
    let second = collateral
        .snp(&ROOTS, &evidence, &rules, now)
        .await
        .unwrap();
    assert!(Arc::ptr_eq(&first.vek, &second.vek));
    assert!(Arc::ptr_eq(&first.crls, &second.crls));
    assert_eq!(lab.service.asked(), [machine.list_path()]);
    // By AMD's roots, the same bytes are nothing.
    let amd = snp::Roots::amd().unwrap();
    let refused = collateral.snp(&amd, &evidence, &LENIENT, now).await;
    assert!(
        matches!(
            refused,
            Err(CollateralError::Evidence(Failure::Snp(
                SnpFailure::Chain { .. }
            )))
        ),
        "{refused:?}"
    );
}

const LENIENT: Rules = Rules {
    crl: CrlRule::MayBeAbsent,
    version_2: Some(Generation::Milan),
};

#[tokio::test]
async fn evidence_that_leads_to_no_document_is_refused_and_nobody_is_asked() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    lab.service
        .give(&list_path(Product::Milan), list(around(0, 30), &[]));
    let ask = async |change: fn(&mut Case)| {
        let mut case = Case::new(3, Generation::Milan);
        change(&mut case);
        let bytes = case.report.to_bytes().unwrap();
        let evidence = SnpEvidence::new(&bytes, Vec::new()).unwrap();
        let rules = Rules::default();
        let answer = collateral
            .snp(&ROOTS, &evidence, &rules, SystemTime::now())
            .await;
        match answer.unwrap_err() {
            CollateralError::Evidence(Failure::Snp(failure)) => failure,
            other => panic!("{other}"),
        }
    };
    let masked = ask(|case| case.report.chip_id = [0; 64]).await;
    assert_eq!(masked, SnpFailure::ChipMasked);
    let unsigned = ask(|case| case.report.key_info = KeyInfo(2)).await;
    assert_eq!(unsigned, SnpFailure::Unsigned);
    let loaded = ask(|case| case.report.key_info = KeyInfo(1 << 2)).await;
    assert_eq!(loaded, SnpFailure::NoKey);
    let asked = lab.service.asked();
    assert!(asked.iter().all(|path| path.ends_with("/crl")), "{asked:?}");
}

#[tokio::test]
async fn a_service_that_limits_its_rate_is_left_alone_and_cached_copies_are_served() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let known = Machine::new(Generation::Milan, 1);
    lab.knows(&known);
    known.asks(&collateral).await.unwrap();
    let [first, second] = [2, 3].map(|chip| Machine::new(Generation::Milan, chip));
    let told = [("retry-after", "600")];
    lab.service.say(&first.path(), 429, &told, "");
    let error = first.asks(&collateral).await.unwrap_err();
    let CollateralError::RateLimited { until, host, .. } = &error else {
        panic!("{error}");
    };
    assert!(error.retry_helps() && lab.service.url.ends_with(host));
    let wait = until.duration_since(SystemTime::now()).unwrap();
    assert!(wait <= Duration::from_secs(600) && wait > Duration::from_secs(500));
    // It would give the other one, but it asked to be left alone.
    lab.knows(&second);
    let error = second.asks(&collateral).await.unwrap_err();
    assert!(
        matches!(error, CollateralError::RateLimited { .. }),
        "{error}"
    );
    assert_eq!(lab.service.times(&first.path()), 1);
    assert_eq!(lab.service.times(&second.path()), 0);
    known.asks(&collateral).await.unwrap();
    assert!(error.explain().fix.contains("prefetch"));
}

#[tokio::test]
async fn a_service_that_fails_is_asked_again_and_then_not_for_a_while() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let machine = Machine::new(Generation::Genoa, 1);
    lab.knows(&machine);
    lab.service.say(&machine.path(), 500, &[], "");
    for _ in 0..5 {
        let error = machine.asks(&collateral).await.unwrap_err();
        assert!(
            matches!(&error, CollateralError::Unreachable { cause, .. } if cause.contains("500"))
        );
        assert!(error.retry_helps());
    }
    assert_eq!(lab.service.times(&machine.path()), 3);
    // A chip that AMD does not know is the report's fault.
    let unknown = Machine::new(Generation::Genoa, 2);
    let error = unknown.asks(&collateral).await.unwrap_err();
    assert!(
        matches!(error, CollateralError::Unknown { status: 404, .. }),
        "{error}"
    );
    assert!(!error.retry_helps());
    assert_eq!(error.explain().claim, "vek");
    unknown.asks(&collateral).await.unwrap_err();
    assert_eq!(lab.service.times(&unknown.path()), 1);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Service::start().await.config(dir.path());
    let simulated = config.simulated.as_mut().unwrap();
    // Nothing listens on this port.
    simulated.amd_kds = "http://127.0.0.1:9".to_owned();
    let collateral = Collateral::open(&config).unwrap();
    let error = Machine::new(Generation::Milan, 1).asks(&collateral).await;
    let error = error.unwrap_err();
    assert!(error.retry_helps());
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[tokio::test]
async fn certificates_that_are_not_the_chips_are_refused_and_not_kept() {
    let machine = Machine::new(Generation::Milan, 1);
    let mut newer = Machine::new(Generation::Milan, 1);
    newer.case.chip.tcb.microcode += 1;
    let newer = ROOT.chip(&newer.case.chip).unwrap().certificate().to_vec();
    let mut ended = Machine::new(Generation::Milan, 1);
    ended.case.chip.validity.until = now() - DAY;
    let ended = ROOT.chip(&ended.case.chip).unwrap().certificate().to_vec();
    let mut forged = machine.certificate.clone();
    *forged.last_mut().unwrap() ^= 1;
    let answers = [
        ("garbage", b"<html>Sign in</html>".to_vec(), "DER"),
        ("nothing", Vec::new(), "DER"),
        ("too long", vec![b'a'; 64 * 1024], "bytes"),
        (
            "truncated",
            machine.certificate[..machine.certificate.len() / 2].to_vec(),
            "DER",
        ),
        ("forged", forged, "not signed by the ASK"),
        ("firmware", newer, "firmware"),
        ("ended", ended, "and it is"),
        (
            "chip",
            Machine::new(Generation::Milan, 2).certificate,
            "another chip",
        ),
        (
            "product",
            Machine::new(Generation::Turin, 1).certificate,
            "another chip",
        ),
        ("a list", list(around(0, 30), &[]), "DER"),
    ];
    for (name, answer, word) in answers {
        let lab = Lab::new().await;
        let collateral = lab.open();
        lab.knows(&machine);
        lab.service.give(&machine.path(), answer);
        let error = machine.asks(&collateral).await.unwrap_err();
        let CollateralError::Refused { cause, .. } = &error else {
            panic!("{name}: {error}");
        };
        assert!(cause.contains(word), "{name}: {cause}");
        assert_eq!(lab.files(), ["sim-snp.crl.Milan.json"], "{name}");
        machine.asks(&collateral).await.unwrap_err();
        assert_eq!(lab.service.times(&machine.path()), 1, "{name}");
    }
}

#[tokio::test]
async fn lists_that_do_not_hold_are_refused_and_not_kept() {
    let machine = Machine::new(Generation::Milan, 1);
    let mut forged = list(around(0, 30), &[]);
    *forged.last_mut().unwrap() ^= 1;
    let answers = [
        ("garbage", b"no list".to_vec(), "DER"),
        ("truncated", list(around(0, 30), &[])[..200].to_vec(), "DER"),
        ("forged", forged, "not signed"),
        ("ended", list(around(0, -1), &[]), "and it is"),
        ("early", list(around(11, 30), &[]), "and it is"),
        (
            "another authority's",
            ROOT.crl(1, around(0, 30), &[]).unwrap(),
            "list of the ASK",
        ),
    ];
    for (name, answer, word) in answers {
        let lab = Lab::new().await;
        let collateral = lab.open();
        lab.knows(&machine);
        lab.service.give(&machine.list_path(), answer);
        let error = machine.asks(&collateral).await.unwrap_err();
        let CollateralError::Refused { cause, .. } = &error else {
            panic!("{name}: {error}");
        };
        assert!(cause.contains(word), "{name}: {cause}");
        assert_eq!(lab.files().len(), 1, "{name}");
        // Where the operator does not insist on a list, the attestation goes on without.
        let now = SystemTime::now();
        let set = collateral
            .snp(&ROOTS, &machine.evidence, &LENIENT, now)
            .await;
        assert!(set.unwrap().crls.is_empty(), "{name}");
    }
}

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
    let break_in: [(&str, fn(&Path, &[u8])); 7] = [
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

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(bytes)
}
