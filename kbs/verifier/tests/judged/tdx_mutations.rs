//! 100,000 seeded mutations of valid evidence, as JSON and as bytes: none panics, and none is
//! accepted unless it says the same.

use crate::random::Random;
use crate::tdx_development;

use evidence::tdx::TdxEvidence;
use serde_json::Value;
use tdx_development::{Case, ROOTS};
use verifier::{
    Claims,
    tdx::{self, Collateral},
};

const EACH: usize = 25_000;

struct Sound {
    case: Case,
    evidence: TdxEvidence,
    collateral: Collateral,
    claims: Claims,
}

impl Sound {
    /// That only texts changed which no digest answers for, or that RTMR3 is said not to be replayed.
    /// Of an event, nothing signs its type.
    fn says_no_more(&self, claims: &Claims) {
        let (mut said, mut sound) = (claims.clone(), self.claims.clone());
        let mut events = Vec::new();
        for claims in [&mut said, &mut sound] {
            let all = claims.evidence["uefi_event_logs"].take();
            let believed = all.as_array().into_iter().flatten().filter(|event| {
                event["digest_matches_event"] == true && event["type_name"] != "EV_NO_ACTION"
            });
            let bound = |event: &Value| ["index", "digests", "event"].map(|of| event[of].clone());
            events.push(believed.map(bound).collect::<Vec<_>>());
        }
        assert!(events[0].iter().all(|event| events[1].contains(event)));
        if said.evidence["rtmr_3_replayed"] == false {
            sound.evidence["rtmr_3_replayed"] = false.into();
            assert!(events[0].iter().all(|event| event[0] != 4));
        }
        assert_eq!(said, sound);
    }
}

fn sound() -> Sound {
    let mut case = Case::new();
    case.header.version = 5;
    let evidence = case.evidence();
    let collateral = case.collateral().unwrap();
    let claims = case.judge(&evidence, &collateral).unwrap();
    Sound {
        case,
        evidence,
        collateral,
        claims,
    }
}

#[test]
fn bytes_of_the_json() {
    let (sound, mut random) = (sound(), Random(1));
    let text = serde_json::to_vec(&sound.evidence).unwrap();
    for _ in 0..EACH {
        let mut text = text.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len());
            match random.below(3) {
                0 => text[at] = random.byte(),
                1 => drop(text.remove(at)),
                _ => text.insert(at, random.byte()),
            }
        }
        let Ok(sent) = serde_json::from_slice::<Value>(&text) else {
            continue;
        };
        let verdict = tdx::parse(&ROOTS, &sent)
            .and_then(|evidence| sound.case.judge(&evidence, &sound.collateral));
        if let Ok(claims) = verdict {
            sound.says_no_more(&claims);
        }
    }
}

/// Where the quote ends and its chain of certificates, whose line ends nobody signs, begins.
fn before_chain(sound: &Sound) -> usize {
    sound.evidence.bytes().len() - sound.evidence.quote().certificates.len()
}

#[test]
fn bits_of_the_quote() {
    let (sound, mut random) = (sound(), Random(2));
    let end = before_chain(&sound);
    for _ in 0..EACH {
        let mut bytes = sound.evidence.bytes().to_vec();
        let at = random.below(end);
        bytes[at] ^= 1 << random.below(8);
        if random.below(50) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        if let Ok(changed) = TdxEvidence::new(&bytes, None) {
            let verdict = sound.case.judge(&changed, &sound.collateral);
            assert!(verdict.is_err(), "byte {at}");
        }
    }
}

#[test]
fn bytes_of_the_chain() {
    let (sound, mut random) = (sound(), Random(3));
    let start = before_chain(&sound);
    let log = sound.evidence.event_log().map(<[u8]>::to_vec);
    for _ in 0..EACH {
        let mut bytes = sound.evidence.bytes().to_vec();
        for _ in 0..=random.below(2) {
            let at = start + random.below(bytes.len() - start);
            bytes[at] = random.byte();
        }
        if let Ok(changed) = TdxEvidence::new(&bytes, log.clone())
            && let Ok(claims) = sound.case.judge(&changed, &sound.collateral)
        {
            assert_eq!(claims, sound.claims);
        }
    }
}

#[test]
fn bytes_of_the_log() {
    let (sound, mut random) = (sound(), Random(4));
    let log = sound.evidence.event_log().unwrap();
    for _ in 0..EACH {
        let mut changed = log.to_vec();
        for _ in 0..=random.below(2) {
            let at = random.below(changed.len());
            match random.below(3) {
                0 => changed[at] = random.byte(),
                1 => drop(changed.remove(at)),
                _ => changed.insert(at, random.byte()),
            }
        }
        let evidence = TdxEvidence::new(sound.evidence.bytes(), Some(changed)).unwrap();
        let Ok(claims) = sound.case.judge(&evidence, &sound.collateral) else {
            continue;
        };
        sound.says_no_more(&claims);
    }
}
