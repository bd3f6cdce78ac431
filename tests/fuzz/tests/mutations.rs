//! Each decoder over its seeds and a bounded number of mutations of them, the same in every run.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use fuzz::mutate::{Random, mutate};
use fuzz::{Target, targets};

/// Inputs of each target; `CLOISTER_FUZZ` asks for more.
const COUNT: usize = 4_000;
/// What a target gets: those that touch files are slower, and run fewer.
const SHARE: Duration = Duration::from_millis(1_500);
/// No single input may take longer than this, in a debug build on a busy machine.
const SLOW: Duration = Duration::from_secs(5);

#[test]
fn no_input_makes_a_decoder_panic_or_stall() {
    let asked = std::env::var("CLOISTER_FUZZ")
        .ok()
        .map(|text| text.parse().unwrap());
    let mut faults = Vec::new();
    for target in targets() {
        faults.extend(drive(&target, asked));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn drive(target: &Target, asked: Option<usize>) -> Option<String> {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    let mut random = Random::new(0x0c10_1572);
    let since = Instant::now();
    let mut count = 0;
    for round in 0..asked.unwrap_or(COUNT) {
        if asked.is_none() && since.elapsed() > SHARE {
            break;
        }
        let mut input = seeds[round % seeds.len()].clone();
        if round >= seeds.len() {
            mutate(&mut input, &mut random);
        }
        let begin = Instant::now();
        if catch_unwind(|| (target.run)(&input)).is_err() || begin.elapsed() > SLOW {
            return Some(format!("{} on {}", target.name, input.escape_ascii()));
        }
        count += 1;
    }
    println!("{:24} {count} inputs", target.name);
    None
}

#[test]
fn every_target_has_a_name_of_its_own() {
    let mut names: Vec<_> = targets().iter().map(|target| target.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
