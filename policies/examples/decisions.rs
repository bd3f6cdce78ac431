//! Prints what a decision costs, in microseconds, and what a compiled policy holds, in KiB:
//! `cargo run --release -p policies --example decisions [APPRAISAL POLICY]`.
//!
//! Run it without `RUST_BACKTRACE`: regorus makes errors where it looks something up, and a backtrace
//! for each would cost more than the decision.

use std::{
    collections::BTreeMap, env, error::Error, fs, hint::black_box, sync::Arc, time::Instant,
};

use policies::{
    appraisal::{self, AppraisalPolicy, ReferenceValues},
    release::{self, Release, ReleasePolicy},
};
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

/// The best of many batches, since other programs take turns on the machine.
const BATCHES: u32 = 50;
const BATCH: u32 = 200;
/// Policies that are held at once to see what one costs.
const HELD: usize = 100;

fn main() -> Result<(), Failure> {
    let rego = match env::args().nth(1) {
        Some(path) => fs::read_to_string(path)?,
        None => appraisal::DEFAULT.to_owned(),
    };
    let policy = AppraisalPolicy::from_rego(&rego)?;
    let references = references();
    for (what, evidence) in [
        ("a sample", sample()),
        ("SNP", json!({"snp": snp()})),
        ("SNP, refused", json!({"snp": {}})),
    ] {
        policy.appraise(&evidence, &references)?;
        measure(&format!("appraisal of {what}"), || {
            policy
                .appraise(black_box(&evidence), &references)
                .map(|_| ())
                .map_err(Into::into)
        })?;
    }
    let policy = ReleasePolicy::from_rego(release::DEFAULT)?;
    let asked = Release {
        plugin: "resource",
        resource_path: &["default", "key", "1"],
        query: BTreeMap::new(),
        method: "GET",
    };
    for (status, kind) in [("affirming", "snp"), ("contraindicated", "sample")] {
        let token = json!({"submods": {"cpu0": {
            "ear.status": status, "ear.appraisal-policy-id": "default",
            "ear.veraison.annotated-evidence": {kind: snp()}}}});
        measure(&format!("release, {status}"), || {
            policy
                .decide(black_box(&token), &asked)
                .map(|_| ())
                .map_err(Into::into)
        })?;
    }
    measure("compiling the default release policy", || {
        drop(black_box(ReleasePolicy::from_rego(release::DEFAULT)?));
        Ok(())
    })?;
    hold("release", || {
        let policy = ReleasePolicy::from_rego(release::DEFAULT)?;
        Ok(policy)
    })?;
    hold("release, one engine at rest", || {
        let policy = ReleasePolicy::from_rego(release::DEFAULT)?;
        policy.decide(&json!({}), &asked)?;
        Ok(policy)
    })?;
    hold("appraisal", || Ok(AppraisalPolicy::from_rego(&rego)?))?;
    hold("appraisal, one engine at rest", || {
        let policy = AppraisalPolicy::from_rego(&rego)?;
        policy.appraise(&sample(), &references)?;
        Ok(policy)
    })
}

fn measure(what: &str, mut run: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let mut best = f64::MAX;
    for _ in 0..BATCHES {
        let start = Instant::now();
        for _ in 0..BATCH {
            run()?;
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH));
    }
    println!("{what}: {best:.1} us");
    Ok(())
}

/// What of the process is resident more with many than before.
fn hold<T>(what: &str, make: impl Fn() -> Result<T, Failure>) -> Result<(), Failure> {
    let before = resident()?;
    let all = (0..HELD).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
    let after = resident()?;
    println!(
        "one {what}: {} KiB",
        after.saturating_sub(before) / all.len()
    );
    // What was held stays so that the next measurement cannot use its room.
    std::mem::forget(all);
    Ok(())
}

fn resident() -> Result<usize, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS")?.parse()?)
}

fn references() -> ReferenceValues {
    Arc::new(BTreeMap::from([
        ("launch_digest".to_owned(), json!(["abcde"])),
        ("svn".to_owned(), json!(["1"])),
        ("major_version".to_owned(), json!(1)),
        ("minimum_minor_version".to_owned(), json!(4)),
        ("snp_launch_measurement".to_owned(), json!(["aa", "ab"])),
        ("snp_bootloader".to_owned(), json!([4])),
        ("snp_microcode".to_owned(), json!([72])),
        ("snp_snp_svn".to_owned(), json!([8])),
        ("snp_tee_svn".to_owned(), json!([0])),
    ]))
}

fn sample() -> Value {
    json!({
        "sample": {"svn": "1", "launch_digest": "abcde", "debug": false,
                   "platform_version": {"major": 1, "minor": 4}},
        "report_data": "00", "init_data": "00",
        "runtime_data_claims": {"nonce": "0", "tee-pubkey": {"kty": "EC", "crv": "P-256"}},
    })
}

fn snp() -> Value {
    json!({
        "measurement": "ab", "reported_tcb_bootloader": 4, "reported_tcb_microcode": 72,
        "reported_tcb_snp": 8, "reported_tcb_tee": 0, "policy_debug_allowed": false,
        "policy_migrate_ma": false, "platform_smt_enabled": true, "platform_tsme_enabled": false,
        "policy_abi_major": 0, "policy_abi_minor": 0, "policy_single_socket": false,
        "policy_smt_allowed": true,
    })
}
