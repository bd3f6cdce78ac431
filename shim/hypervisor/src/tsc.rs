//! The frequency of the host's time-stamp counter. A guest under emulation reads this counter and
//! has no other clock on a microvm, so the frequency is put on its kernel command line.
#![expect(unsafe_code, reason = "reading the time-stamp counter is an intrinsic")]

use std::thread;
use std::time::{Duration, Instant};

/// How long to measure. The two clocks are read within some 100 ns of each other, so that 10 ms
/// give about 20 ppm, which is what NTP corrects without a step.
const SAMPLE: Duration = Duration::from_millis(10);

/// Frequencies outside of these are a broken measurement: 100 MHz to 10 GHz, in kHz.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=10_000_000;

/// Measures the counter. Blocks for about 10 ms. `None` where there is no plausible counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn measure_khz() -> Option<u32> {
    let (start, ticks_before) = read_both();
    thread::sleep(SAMPLE);
    let (end, ticks_after) = read_both();
    let nanoseconds = u64::try_from(end.duration_since(start).as_nanos()).ok()?;
    let ticks = ticks_after.checked_sub(ticks_before)?;
    let khz = ticks.checked_mul(1_000_000)?.checked_div(nanoseconds)?;
    if PLAUSIBLE_KHZ.contains(&khz) {
        u32::try_from(khz).ok()
    } else {
        None
    }
}

#[cfg(target_arch = "x86_64")]
fn read_both() -> (Instant, u64) {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it enabled in user mode.
    let ticks = unsafe { core::arch::x86_64::_rdtsc() };
    (Instant::now(), ticks)
}

/// Elsewhere there is no such counter.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn measure_khz() -> Option<u32> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_a_percent() {
        let (first, second) = (measure_khz().unwrap(), measure_khz().unwrap());
        assert!(
            first.abs_diff(second) < first / 100,
            "{first} and {second} kHz"
        );
    }
}
