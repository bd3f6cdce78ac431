//! An overlay of layers shows exactly what their merge makes, whatever is in them; what no overlay can show is told.
//!
//! `CLOISTER_FUZZ` asks for more rounds.

use crate::overlay;
use crate::tarball;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image_rs::unpack::{
    Archive, Limits, Root, StackLayer, Tree, UnpackError, Usage, copy_layer, make_lower, stack,
    unmake_lower, unpack,
};
use overlay::{Overlay, can_mount};
use tarball::{Member, Tarball, options, snapshot};
use tempfile::TempDir;

const ROUNDS: usize = 150;

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

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

type Shown = BTreeMap<PathBuf, String>;

/// What the layers make: merged, and stacked where that can be; both, or the same error.
fn both(layers: &[Vec<u8>]) -> Result<(Shown, Option<Shown>), UnpackError> {
    let directory = TempDir::new().unwrap();
    let new = |name: String| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        (path, root)
    };
    let (options, usage) = (options(Limits::default()), Usage::default());
    let mut unpacked = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let (path, root) = new(format!("layer-{index}"));
        let journal = unpack(&mut Archive::new(layer.as_slice()), &root, &options, &usage)?;
        unpacked.push((path, root, journal));
    }
    let (merged, root) = new("merged".to_owned());
    let mut tree = Tree::new(&root, &options);
    for (index, (_, root, journal)) in unpacked.iter().enumerate() {
        let (_, copy) = new(format!("copy-{index}"));
        copy_layer(root, &copy, &options, &usage)?;
        tree.merge(&copy, journal.clone())?;
    }
    tree.finish()?;
    let merged = look(&merged);

    let lowers: Result<Vec<_>, _> = unpacked
        .iter()
        .map(|(_, root, journal)| make_lower(root, journal, &options))
        .collect();
    let lowers = lowers?;
    let parts: Vec<_> = unpacked
        .iter()
        .zip(&lowers)
        .map(|((_, root, journal), lower)| StackLayer {
            root,
            journal,
            lower,
        })
        .collect();
    let (top, root) = new("top".to_owned());
    let Some(places) = stack(&parts, &root, &options)? else {
        // Then they are merged from copies, marked as they are by now.
        let (again, root) = new("again".to_owned());
        let mut tree = Tree::new(&root, &options);
        for (index, ((_, root, journal), lower)) in unpacked.iter().zip(&lowers).enumerate() {
            let (_, copy) = new(format!("copy-again-{index}"));
            copy_layer(root, &copy, &options, &usage)?;
            unmake_lower(&copy, lower)?;
            tree.merge(&copy, journal.clone())?;
        }
        tree.finish()?;
        let overlay = Overlay::mount([again.as_path()]);
        assert_eq!(look(overlay.path()), merged, "merged from marked layers");
        return Ok((merged, None));
    };
    let below = places
        .iter()
        .rev()
        .map(|place| unpacked[*place].0.as_path());
    let overlay = Overlay::mount([top.as_path()].into_iter().chain(below));
    Ok((merged, Some(look(overlay.path()))))
}

/// What no layer describes has the time at which it was made.
fn look(root: &Path) -> Shown {
    let mut shown = snapshot(root);
    for text in shown.values_mut() {
        if let Some(time) = text.split(' ').nth(2).map(str::to_owned)
            && !time.starts_with("1000000")
        {
            *text = text.replacen(&time, "now", 1);
        }
    }
    shown
}

fn assert_same(what: &str, layers: &[Vec<u8>]) -> bool {
    match both(layers) {
        Ok((merged, Some(stacked))) => {
            assert_eq!(stacked, merged, "{what}");
            true
        }
        Ok((_, None)) | Err(_) => false,
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn any_path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let parts: Vec<_> = (0..depth).map(|_| random.one_of(&NAMES)).collect();
    parts.join("/")
}

fn any_layer(random: &mut Random, plain: bool) -> Vec<u8> {
    let mut tar = Tarball::new();
    let time = |random: &mut Random| 1_000_000_000 + random.below(9) as u64;
    for _ in 0..random.below(8) {
        let path = any_path(random);
        if plain {
            // As the usual tools write them: whoever is in a directory brings its description.
            let mut parents: Vec<_> = Path::new(&path).ancestors().skip(1).collect();
            parents.pop();
            for parent in parents.into_iter().rev() {
                let member = Member::new(b'5', parent.to_str().unwrap()).mtime(time(random));
                tar = tar.add(&member.mode(0o700 + 8 * 5));
            }
        }
        let member = match random.below(12) {
            0..=3 => Member::new(b'0', &path).content(random.one_of(&["1", "2", "three"])),
            4..=6 => Member::new(b'5', &path)
                .mode(u32::try_from(0o700 + random.below(0o77)).unwrap())
                .owner(u32::try_from(random.below(3)).unwrap(), 7),
            7 => Member::new(b'2', &path).link(any_path(random)),
            8 if !plain => Member::new(b'1', &path).link(any_path(random)),
            9 => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
                Member::new(
                    b'0',
                    Path::new(parent)
                        .join(format!(".wh.{name}"))
                        .to_str()
                        .unwrap(),
                )
            }
            10 => Member::new(b'0', format!("{path}/.wh..wh..opq")),
            _ => Member::new(b'5', "").mode(0o711).mtime(time(random)),
        };
        if member.name.is_empty() {
            let root = Member::new(b'5', "./").mode(0o711).mtime(time(random));
            tar = tar.add(&root);
            continue;
        }
        tar = tar.add(&member.mtime(time(random)));
    }
    tar.end()
}

#[test]
fn an_overlay_shows_what_the_merge_makes_of_any_layers() {
    if !can_mount() {
        return;
    }
    let mut random = Random(7);
    let (mut stacked, mut of_usual_tools) = (0, 0);
    let asked = std::env::var("CLOISTER_FUZZ").ok();
    let rounds = asked.map_or(ROUNDS, |text| text.parse().unwrap());
    for round in 0..rounds {
        let plain = round % 2 == 0;
        let count = 1 + random.below(4);
        let layers: Vec<_> = (0..count).map(|_| any_layer(&mut random, plain)).collect();
        let same = assert_same(&format!("round {round}"), &layers);
        stacked += usize::from(same);
        of_usual_tools += usize::from(same && plain);
    }
    println!("{stacked} of {rounds} stacked, {of_usual_tools} as the usual tools write them");
    assert!(stacked > rounds / 5, "{stacked}");
}

fn file(name: &str) -> Member {
    Member::new(b'0', name).content("x")
}

fn dir(name: &str) -> Member {
    Member::new(b'5', name).mode(0o750).owner(3, 4)
}

fn tar(members: &[Member]) -> Vec<u8> {
    let all = Tarball::new();
    members.iter().fold(all, Tarball::add).end()
}

#[test]
fn what_the_usual_tools_write_is_stacked() {
    if !can_mount() {
        return;
    }
    let base = tar(&[
        dir("etc"),
        file("etc/a"),
        file("etc/b"),
        dir("var"),
        file("var/x"),
    ]);
    for (what, upper) in [
        ("a file more", tar(&[dir("etc"), file("etc/c")])),
        ("without its directory", tar(&[file("etc/c")])),
        (
            "a whiteout",
            tar(&[dir("etc"), Member::new(b'0', "etc/.wh.a")]),
        ),
        ("only a whiteout", tar(&[Member::new(b'0', "etc/.wh.a")])),
        (
            "a whiteout of a directory",
            tar(&[Member::new(b'0', ".wh.etc")]),
        ),
        (
            "a directory anew",
            tar(&[Member::new(b'0', ".wh.etc"), dir("etc"), file("etc/z")]),
        ),
        (
            "opaque",
            tar(&[dir("etc"), file("etc/.wh..wh..opq"), file("etc/z")]),
        ),
        ("a file for a directory", tar(&[file("etc")])),
        ("a root of its own", tar(&[dir("./"), file("new")])),
        ("nothing", tar(&[])),
    ] {
        assert!(
            assert_same(what, &[base.clone(), upper]),
            "{what} is merged"
        );
    }
}

#[test]
fn what_no_overlay_can_say_is_merged() {
    if !can_mount() {
        return;
    }
    let link = Member::new(b'2', "lib").link("usr/lib");
    let base = tar(&[dir("usr"), dir("usr/lib"), file("usr/lib/a"), link]);
    for (what, upper) in [
        ("through a link", tar(&[file("lib/b")])),
        (
            "a whiteout through a link",
            tar(&[Member::new(b'0', "lib/.wh.a")]),
        ),
        (
            "a link to a lower file",
            tar(&[Member::new(b'1', "hard").link("usr/lib/a")]),
        ),
        (
            "a whiteout of nothing",
            tar(&[Member::new(b'0', "opt/x/.wh.y")]),
        ),
        (
            "opaque without its directory",
            tar(&[file("usr/.wh..wh..opq")]),
        ),
    ] {
        let (_, stacked) = both(&[base.clone(), upper]).unwrap();
        assert!(stacked.is_none(), "{what} is stacked");
    }
}
