//! Mutations that are the same on every machine and in every run.

/// Bytes that decoders care about: quotes, braces, separators, borders of numbers.
const SPECIAL: &[u8] = b"\0\n\r \"'\\/{}[]():;,.=%~-+09AZaz\x7f\x80\xff";
/// No mutation makes an input longer than this.
const MAX: usize = 64 * 1024;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`, or 0 when that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let wide = z ^ (z >> 31);
        usize::try_from(wide % u64::try_from(end.max(1)).unwrap_or(1)).unwrap_or(0)
    }
}

/// Changes `data` in one to four places.
pub fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        once(data, random);
    }
    data.truncate(MAX);
}

fn once(data: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(data.len());
    let special = SPECIAL[random.below(SPECIAL.len())];
    if data.is_empty() {
        data.push(special);
        return;
    }
    match random.below(7) {
        0 => data[at] ^= 1 << random.below(8),
        1 => data[at] = special,
        2 => data.insert(at, special),
        3 => drop(data.remove(at)),
        4 => data.truncate(at),
        // A part again: lists that grow, keys that are doubled.
        5 => {
            let end = (at + 1 + random.below(64)).min(data.len());
            let part = data[at..end].to_vec();
            data.splice(at..at, part);
        }
        // A run of one byte: nesting and long numbers.
        _ => {
            let run = vec![special; 1 + random.below(300)];
            data.splice(at..at, run);
        }
    }
}
