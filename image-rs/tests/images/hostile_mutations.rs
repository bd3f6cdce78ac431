//! Good layers with some bytes changed, the same ones in every run: nothing gets out, panics or hangs, whatever is said.
//!
//! Most changed headers get a right checksum again, else nothing behind the checksum would ever be tried.
//! `CLOISTER_FUZZ` asks for more rounds.

use crate::tarball;

use image_rs::unpack::{Limits, UnpackError};
use tarball::{BLOCK, Member, Stage, Tarball, options, with_sum};

const ROUNDS: usize = 3_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

/// Two layers, each with every kind of member, and with links in both directions.
fn seeds() -> Vec<Vec<u8>> {
    let lower = Tarball::new()
        .dir("d")
        .file("d/f", "content")
        .symlink("l", "d")
        .symlink("up", "..")
        .symlink("abs", "/d")
        .hard_link("h", "d/f")
        .add(&Member::new(b'6', "p"))
        .add(&Member::new(b'3', "c").device(1, 3))
        .long(b'L', format!("d/{}", "n".repeat(120)))
        .file("x", "c".repeat(700))
        .pax(&[
            ("path", b"d/pax"),
            ("SCHILY.xattr.user.a", b"1"),
            ("mtime", b"1.5"),
        ])
        .file("y", "content")
        .pax(&[("GNU.sparse.map", b"4,8,90,0"), ("GNU.sparse.size", b"100")])
        .file("s", "12345678");
    let upper = Tarball::new()
        .file("d/.wh.f", "")
        .file("l/through", "2")
        .file("d/.wh..wh..opq", "")
        .hard_link("late", "h")
        .hard_link("again", "late")
        .dir("l")
        .file("l/new", "2")
        .long(b'K', "../outside/secret")
        .symlink("out", "")
        .file("h", "2");
    [lower, upper].map(Tarball::end).into()
}

/// What hostile writers put into fields.
const WORDS: [&[u8]; 14] = [
    b"../outside/secret\0",
    b"/\0",
    b"..\0",
    b"l/..\0",
    b"up/outside/new\0",
    b".wh..\0",
    b".wh..wh..opq\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"77777777777\0",
    b"-1\0",
    b"d\0",
    b"l\0",
    b"h\0",
];
/// Where fields begin: name, mode, owner, size, time, kind, link, map of a sparse file.
const FIELDS: [usize; 9] = [0, 100, 108, 124, 136, 156, 157, 386, 483];

fn mutate(layer: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let block = random.below(layer.len() / BLOCK) * BLOCK;
        match random.below(8) {
            0 => layer[block + random.below(BLOCK)] ^= 1 << random.below(8),
            1 => layer[block + 156] = b"0123456789xgLKSVZ"[random.below(17)],
            2 => {
                let field = block + FIELDS[random.below(FIELDS.len())];
                let word = WORDS[random.below(WORDS.len())];
                layer[field..field + word.len()].copy_from_slice(word);
            }
            3 => {
                let at = random.below(layer.len());
                layer[at] = b"\0\n 0179=./"[random.below(10)];
            }
            // A member twice, or elsewhere.
            4 => {
                let from = random.below(layer.len() / BLOCK) * BLOCK;
                let part = layer[from..(from + 2 * BLOCK).min(layer.len())].to_vec();
                layer.splice(block..block, part);
            }
            5 => drop(layer.drain(block..block + BLOCK)),
            6 => layer.truncate(block.max(BLOCK)),
            _ => {
                layer[block + random.below(BLOCK)] = b'0' + u8::try_from(random.below(10)).unwrap()
            }
        }
        if layer.len() < BLOCK {
            layer.resize(BLOCK, 0);
        }
    }
    if random.below(8) > 0 {
        mend(layer);
    }
}

/// Gives every block that looks like a header its sum.
fn mend(layer: &mut [u8]) {
    for block in layer.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            let whole: [u8; BLOCK] = (&*block).try_into().unwrap();
            block.copy_from_slice(&with_sum(whole));
        }
    }
}

#[test]
fn no_change_of_a_layer_gets_out() {
    let asked = std::env::var("CLOISTER_FUZZ").ok();
    let rounds = asked.map_or(ROUNDS, |text| text.parse().unwrap());
    let seeds = seeds();
    let stage = Stage::new();
    let options = options(Limits {
        entries: 300,
        unpacked_bytes: 1 << 20,
        file_bytes: 1 << 40,
        path_depth: 20,
        ..Limits::default()
    });
    stage.unpack(&seeds, &options).unwrap();
    let mut random = Random(0x0c10_1572);
    let (mut good, mut bad) = (0, 0);
    for round in 0..rounds {
        let mut layers = seeds.clone();
        let at = random.below(layers.len());
        mutate(&mut layers[at], &mut random);
        match stage.unpack(&layers, &options) {
            Ok(()) => good += 1,
            // The system has its say about odd names and attributes, and about nothing else.
            Err(UnpackError::System {
                step,
                entry,
                source,
            }) => {
                let odd = matches!(source.raw_os_error(), Some(22 | 36 | 95 | 1 | 27));
                assert!(odd, "{round}: {step} {entry}: {source}");
                bad += 1;
            }
            Err(_) => bad += 1,
        }
        stage.assert_untouched(&format!("round {round}"));
    }
    println!("{good} unpacked, {bad} refused");
    assert!(good > rounds / 20 && bad > rounds / 20, "{good}, {bad}");
}
