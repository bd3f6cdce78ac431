//! 100,000 seeded mutations of valid evidence, as JSON and as bytes: none panics, and none is
//! accepted unless it says the same.

use crate::development;
use crate::random::Random;

use development::{Case, ROOTS, platforms};
use evidence::snp::SnpEvidence;
use verifier::snp::{self, Vek};

const EACH: usize = 25_000;

fn json(seed: u64, mutate: fn(&mut Random, &mut Vec<u8>)) {
    let mut random = Random(seed);
    let cases: Vec<_> = platforms().map(|(v, g)| Case::new(v, g)).collect();
    let texts: Vec<_> = cases
        .iter()
        .map(|case| serde_json::to_vec(&case.evidence()).unwrap())
        .collect();
    for _ in 0..EACH {
        let at = random.below(cases.len());
        let (case, mut text) = (&cases[at], texts[at].clone());
        mutate(&mut random, &mut text);
        let Ok(sent) = serde_json::from_slice::<serde_json::Value>(&text) else {
            continue;
        };
        let verdict = snp::parse(&ROOTS, &sent).and_then(|evidence| case.judge(&evidence, None));
        if let Ok(claims) = verdict {
            assert_eq!(claims, case.verify().unwrap());
        }
    }
}

#[test]
fn bytes_of_the_json() {
    json(1, |random, text| {
        for _ in 0..=random.below(3) {
            let at = random.below(text.len());
            match random.below(3) {
                0 => text[at] = random.byte(),
                1 => drop(text.remove(at)),
                _ => text.insert(at, random.byte()),
            }
        }
    });
}

#[test]
fn numbers_of_the_json() {
    json(2, |random, text| {
        let start = random.below(text.len());
        let Some(first) = text[start..].iter().position(u8::is_ascii_digit) else {
            return;
        };
        let first = start + first;
        let digits = text[first..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        let number = random.below(256).to_string();
        text.splice(first..first + digits, number.into_bytes());
    });
}

fn raw(seed: u64) {
    let mut random = Random(seed);
    let cases: Vec<_> = platforms().map(|(v, g)| Case::new(v, g)).collect();
    let sent: Vec<_> = cases.iter().map(Case::evidence).collect();
    for _ in 0..EACH {
        let at = random.below(cases.len());
        let (case, evidence) = (&cases[at], &sent[at]);
        let mut bytes = evidence.bytes().to_vec();
        let mut certificates = evidence.certificates().to_vec();
        if random.below(4) == 0 {
            let at = random.below(certificates[0].data.len());
            certificates[0].data[at] ^= 1 << random.below(8);
        } else {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        if random.below(50) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        let Ok(changed) = SnpEvidence::new(&bytes, certificates) else {
            continue;
        };
        if let Ok(claims) = case.judge(&changed, None) {
            let before = evidence.certificates()[0].data.iter();
            let after = changed.certificates()[0].data.iter();
            let at = before
                .zip(after)
                .position(|(before, after)| before != after);
            panic!("accepted with byte {at:?} of the certificate changed: {claims:?}");
        }
        let product = case.chip.generation.product();
        let vek = Vek::from_evidence(&ROOTS, product, evidence).unwrap();
        let verdict = case.judge(&changed, Some(&vek));
        assert!(verdict.is_err() || bytes == evidence.bytes());
    }
}

#[test]
fn bytes_of_the_report() {
    raw(3);
}

#[test]
fn bytes_of_the_report_again() {
    raw(4);
}
