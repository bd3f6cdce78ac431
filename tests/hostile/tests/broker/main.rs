//! Mutated evidence and requests against the real broker, by seed and in slices: none is accepted
//! that says anything else than an honest one, none makes the broker fail, none draws out what
//! belongs to another guest or to the owner, and the broker's memory stays where it was.
//!
//! `CLOISTER_HOSTILE=1000000` asks for so many instead; `CLOISTER_HOSTILE_SLICE=7` runs one slice.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod change;
mod guest;
mod http;
mod judge;
mod mutate;
mod served;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use change::Random;
use guest::{Guest, KINDS};
use http::Connection;
use mutate::{Class, Source};
use served::{SECRET, Served};
use support::State;

/// Requests in all, in CI.
const COUNT: usize = 20_000;
/// Requests of one slice, which has its own challenges.
const SLICE: usize = 250;
/// Slices at once: the broker writes its record for several at a time.
const WORKERS: usize = 16;
/// Slices before memory is measured for the first time.
const WARM_UP: usize = 32;
/// MiB that the broker may have grown by after that, however many requests follow.
const GROWTH_MIB: u64 = 32;
/// Characters of a request that are shown when it was wrong.
const SHOWN: usize = 6_000;
/// Faults that are shown of all that there are.
const SHOWN_FAULTS: usize = 6;

/// How often each answer was given.
type Tally = Mutex<BTreeMap<(Class, u16), usize>>;

#[test]
fn no_mutation_is_accepted_or_fails_the_broker() {
    let state = State::new().unwrap();
    let served = Served::start(&state);
    let tally = Tally::default();
    let since = Instant::now();
    if let Some(number) = variable("CLOISTER_HOSTILE_SLICE") {
        run(&served, number, &tally).unwrap();
        println!("slice {number}: {:?}", tally.lock().unwrap());
        return;
    }
    let slices = variable("CLOISTER_HOSTILE")
        .unwrap_or(COUNT)
        .div_ceil(SLICE);
    let warm = WARM_UP.min(slices / 2);
    let mut faults = all(&served, 0..warm, &tally);
    let before = served.own_mib();
    faults.extend(all(&served, warm..slices, &tally));
    let after = served.own_mib();
    println!(
        "{} requests in {:.0} s; the broker has {after} MiB after {before} MiB: {:?}",
        slices * SLICE,
        since.elapsed().as_secs_f64(),
        tally.lock().unwrap(),
    );
    assert!(
        faults.is_empty(),
        "{} slices with a fault, such as\n{}",
        faults.len(),
        faults[..faults.len().min(SHOWN_FAULTS)].join("\n"),
    );
    assert!(after <= before + GROWTH_MIB, "{before} MiB grew to {after}");
    let log = served.log();
    for text in ["panicked", SECRET, &served.admin] {
        assert!(!log.contains(text), "the log has {text:?}");
    }
    for kind in KINDS {
        let mut connection = Connection::new(served.address);
        Guest::attested(&mut connection, kind, 1).is_served(&mut connection);
    }
}

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs these slices, and gives what was wrong.
fn all(served: &Served, slices: std::ops::Range<usize>, tally: &Tally) -> Vec<String> {
    let next = AtomicUsize::new(slices.start);
    let faults = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= slices.end {
                        return;
                    }
                    if let Err(fault) = run(served, number, tally) {
                        faults.lock().unwrap().push(fault);
                    }
                }
            });
        }
    });
    faults.into_inner().unwrap()
}

/// One slice: its number is its seed.
fn run(served: &Served, number: usize, tally: &Tally) -> Result<(), String> {
    let mut connection = Connection::new(served.address);
    let kind = KINDS[number % KINDS.len()];
    let good = Guest::attested(&mut connection, kind, 1);
    let other = Guest::attested(&mut connection, kind, 2);
    let source = Source {
        good: &good,
        other: &other,
        admin: &served.admin,
        stranger: &served.stranger,
    };
    let mut random = Random::new(u64::try_from(number).unwrap() + 1);
    let mut counts = BTreeMap::new();
    for at in 0..SLICE {
        let (class, request) = mutate::next(&source, &mut random);
        let judged = connection.ask(&request).and_then(|answer| {
            *counts.entry((class, answer.status)).or_insert(0) += 1;
            judge::judge(&source, (class, &request), &answer)
                .map_err(|fault| format!("{fault}, {}", answer.status))
        });
        if let Err(fault) = judged {
            let shown = request.bytes().escape_ascii().to_string();
            let shown: String = shown.chars().take(SHOWN).collect();
            return Err(format!(
                "CLOISTER_HOSTILE_SLICE={number} ({kind:?}), request {at}, {class:?}: {fault}\n{shown}"
            ));
        }
    }
    good.is_served(&mut connection);
    let mut tally = tally.lock().unwrap();
    for (what, count) in counts {
        *tally.entry(what).or_insert(0) += count;
    }
    Ok(())
}
