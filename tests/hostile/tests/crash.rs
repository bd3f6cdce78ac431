//! SIGKILL to the VMM, the shim or containerd at moments that chance picks: after the next delete
//! nothing is left, and the next pod runs.
//!
//! The seed is printed; `CLOISTER_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::containerd::Containerd;
use support::image::{BUSYBOX, Recipe};
use support::pod::{Pod, Settings};
use support::stage::{START, Stage};
use support::{host, need};

const ROUNDS: u64 = 10;
/// A start takes about this long, so that moments fall before, into and after it.
const SPAN_MS: u64 = 6_000;

#[derive(Debug, Clone, Copy)]
enum Victim {
    Vmm,
    Shim,
    Containerd,
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_behind() {
    if !need(&[
        "containerd",
        "ctr",
        "qemu-system-x86_64",
        "virtiofsd",
        BUSYBOX,
    ]) {
        return;
    }
    let mut random = Random::seeded();
    let mut stage = Stage::plain().unwrap();
    let config = Settings::plain().write(&stage.state, "c.toml").unwrap();
    let root = stage.state.dir("rootfs").unwrap();
    Recipe::busybox("alive").unwrap().unpack(&root).unwrap();
    let before = stage.containerd.leftovers();

    for round in 0..ROUNDS {
        let victim =
            [Victim::Vmm, Victim::Shim, Victim::Containerd][usize::try_from(round % 3).unwrap()];
        let moment = Duration::from_millis(random.below(SPAN_MS));
        println!("round {round}: {victim:?} after {moment:?}");
        let id = format!("r{round}");
        let words = Pod::new(&id, &config, &root, &["/bin/sleep", "2"])
            .ctr()
            .unwrap();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let run = stage.containerd.ctr_running(&words).unwrap();
        std::thread::sleep(moment);
        strike(&mut stage, victim);
        // Whatever `ctr` says now, it must say it: a client that hangs is a failure of its own.
        run.finish(START).unwrap();
        stage.containerd.remove(&id);
        stage
            .settled(&before)
            .unwrap_or_else(|error| panic!("round {round}, {victim:?}: {error}"));
    }

    let alive = Pod::new("alive", &config, &root, &["/bin/cat", "/marker"]).flag(&["--rm"]);
    let run = stage.run(&alive).unwrap();
    assert_eq!(
        run.stdout,
        "alive\n",
        "{}\n{}",
        run.report(),
        stage.log_tail()
    );
}

fn strike(stage: &mut Stage, victim: Victim) {
    let word = match victim {
        Victim::Vmm => "qemu-system",
        Victim::Shim => "containerd-shim-cloister",
        Victim::Containerd => return crash_and_revive(&mut stage.containerd),
    };
    for process in host::processes_of(stage.state.path()) {
        // By the program's own name: `ctr` and others have the word among their arguments.
        if process
            .command
            .split(' ')
            .next()
            .is_some_and(|program| program.contains(word))
        {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

fn crash_and_revive(containerd: &mut Containerd) {
    containerd.crash().unwrap();
    containerd.revive().unwrap();
}

/// SplitMix64: enough to pick moments, and the same from the same seed.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let seed = std::env::var("CLOISTER_SEED").map_or(now, |text| text.parse().unwrap());
        println!("CLOISTER_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
