//! Prints how long a decision takes, in microseconds, and what it is:
//! `cargo run --release -p policies --example decisions [APPRAISAL POLICY]`.

use std::{
    collections::BTreeMap, env, error::Error, fs, hint::black_box, sync::Arc, time::Instant,
};

use policies::{
    appraisal::{self, AppraisalPolicy},
    release::{self, Release, ReleasePolicy},
};
use serde_json::json;

const RUNS: u32 = 5_000;

fn main() -> Result<(), Box<dyn Error>> {
    let rego = match env::args().nth(1) {
        Some(path) => fs::read_to_string(path)?,
        None => appraisal::DEFAULT.to_owned(),
    };
    let policy = AppraisalPolicy::from_rego(&rego)?;
    let sample = json!({
        "sample": {"svn": "1", "launch_digest": "abcde", "debug": false,
                   "platform_version": {"major": 1, "minor": 4}},
        "report_data": "00", "init_data": "00",
        "runtime_data_claims": {"nonce": "0", "tee-pubkey": {"kty": "EC", "crv": "P-256"}},
    });
    let references = Arc::new(BTreeMap::from([
        ("launch_digest".to_owned(), json!(["abcde"])),
        ("svn".to_owned(), json!(["1"])),
        ("major_version".to_owned(), json!(1)),
        ("minimum_minor_version".to_owned(), json!(4)),
    ]));
    println!("{:?}", policy.appraise(&sample, &references)?);
    let start = Instant::now();
    for _ in 0..RUNS {
        black_box(policy.appraise(black_box(&sample), &references)?);
    }
    println!(
        "appraisal of a sample: {} us",
        start.elapsed().as_micros() / u128::from(RUNS)
    );

    let policy = ReleasePolicy::from_rego(release::DEFAULT)?;
    let asked = Release {
        plugin: "resource",
        resource_path: &["default", "key", "1"],
        query: BTreeMap::new(),
    };
    for (status, kind) in [("affirming", "snp"), ("contraindicated", "sample")] {
        let token = json!({"submods": {"cpu0": {
            "ear.status": status, "ear.veraison.annotated-evidence": {kind: {"svn": "1"}}}}});
        println!("{:?}", policy.decide(&token, &asked)?);
        let start = Instant::now();
        for _ in 0..RUNS {
            black_box(policy.decide(black_box(&token), &asked)?);
        }
        println!(
            "release, {status}: {} us",
            start.elapsed().as_micros() / u128::from(RUNS)
        );
    }
    Ok(())
}
