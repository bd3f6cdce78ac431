//! Archives that try to get out, or to use the machine up: each has its error, and nothing outside changes.
//!
//! Here layers are unpacked and merged without a registry. `hostile.rs` sends some of them through a pull.

#![allow(clippy::unwrap_used)]

mod tarball;

use std::io::Read;

use image_rs::unpack::{Devices, Limits, Trusted, UnpackError};
use tarball::{Member, Stage, Tarball, octal, options, record, snapshot};

/// Layers, and which error they must have: the name of a variant, with the setting of a limit behind it.
struct Case {
    name: &'static str,
    layers: Vec<Vec<u8>>,
    expected: &'static str,
}

fn case(name: &'static str, expected: &'static str, layers: Vec<Tarball>) -> Case {
    Case {
        name,
        layers: layers.into_iter().map(Tarball::end).collect(),
        expected,
    }
}

fn kind_of(error: &UnpackError) -> String {
    match error {
        UnpackError::Limit { setting, .. } => format!("Limit {setting}"),
        other => {
            let text = format!("{other:?}");
            let end = text.find(|c: char| !c.is_alphanumeric());
            text[..end.unwrap_or(text.len())].to_owned()
        }
    }
}

fn new() -> Tarball {
    Tarball::new()
}

fn run(cases: Vec<Case>) {
    let stage = Stage::new();
    for case in cases {
        let error = stage
            .unpack(&case.layers, &options(small()))
            .expect_err(case.name);
        assert_eq!(kind_of(&error), case.expected, "{}: {error}", case.name);
        assert!(error.to_string().len() < 1000, "{}", case.name);
        stage.assert_untouched(case.name);
    }
}

fn small() -> Limits {
    Limits {
        entries: 1000,
        file_bytes: 1 << 30,
        unpacked_bytes: 1 << 30,
        ..Limits::default()
    }
}

/// `first/e/e/…`, of so many components.
fn deep(first: &str, components: usize) -> Tarball {
    let last = first.rsplit('/').next().unwrap();
    let more = components - first.split('/').count();
    new()
        .long(b'L', format!("{first}/{}", format!("{last}/").repeat(more)))
        .dir("")
}

#[test]
fn names_do_not_lead_out() {
    let outside = Stage::new().outside();
    let absolute = outside.join("x").into_os_string().into_encoded_bytes();
    run(vec![
        case("parent", "Parent", vec![new().file("../outside/x", "x")]),
        case(
            "deep parent",
            "Parent",
            vec![new().dir("a").file("a/../../outside/x", "x")],
        ),
        case("parent at the end", "Parent", vec![new().dir("a/..")]),
        case("only parent", "Parent", vec![new().dir("..")]),
        case("absolute", "Absolute", vec![new().file(absolute, "x")]),
        case("root as a file", "Name", vec![new().file(".", "")]),
        case("empty", "Name", vec![new().file("", "x")]),
        case(
            "long component",
            "Name",
            vec![new().long(b'L', [b'a'; 300]).file("a", "x")],
        ),
        case(
            "PAX name with NUL",
            "Name",
            vec![new().pax(&[("path", b"a\0b")]).file("a", "x")],
        ),
        case(
            "PAX parent",
            "Parent",
            vec![new().pax(&[("path", b"../outside/x")]).file("a", "x")],
        ),
        case(
            "GNU parent",
            "Parent",
            vec![new().long(b'L', "../outside/x").file("a", "x")],
        ),
        case(
            "sparse parent",
            "Parent",
            vec![
                new()
                    .pax(&[
                        ("GNU.sparse.map", b"0,1"),
                        ("GNU.sparse.size", b"1"),
                        ("GNU.sparse.name", b"../outside/x"),
                    ])
                    .file("a", "x"),
            ],
        ),
        case("no target", "Name", vec![new().symlink("a", "")]),
        case(
            "target with NUL",
            "Name",
            vec![new().pax(&[("linkpath", b"a\0b")]).symlink("a", "b")],
        ),
    ]);
}

#[test]
fn symbolic_links_do_not_lead_out() {
    let chain = (0..60).fold(new().dir("end"), |tar, index| {
        let next = if index == 0 {
            "end".to_owned()
        } else {
            format!("l{}", index - 1)
        };
        tar.symlink(format!("l{index}"), next)
    });
    run(vec![
        case(
            "up",
            "Escape",
            vec![new().symlink("a", "../..").file("a/outside/x", "x")],
        ),
        case(
            "chain",
            "Escape",
            vec![
                new()
                    .symlink("a", ".")
                    .symlink("b", "a/..")
                    .file("b/x", "x"),
            ],
        ),
        case(
            "by way of a directory",
            "Escape",
            vec![
                new()
                    .dir("d")
                    .symlink("d/up", "../..")
                    .file("d/up/outside/x", "x"),
            ],
        ),
        case(
            "directory",
            "Escape",
            vec![new().symlink("a", "..").dir("a/outside/new")],
        ),
        case(
            "node",
            "Escape",
            vec![
                new()
                    .symlink("a", "..")
                    .add(&Member::new(b'6', "a/outside/fifo")),
            ],
        ),
        case(
            "hard link",
            "Escape",
            vec![
                new()
                    .symlink("a", "../..")
                    .hard_link("b", "a/outside/secret"),
            ],
        ),
        case(
            "loop",
            "Loop",
            vec![new().symlink("a", "b").symlink("b", "a").file("a/x", "x")],
        ),
        case(
            "itself",
            "Loop",
            vec![new().symlink("a", "a").file("a/x", "x")],
        ),
        case("long chain", "Loop", vec![chain.file("l59/x", "x")]),
        case(
            "lower layer",
            "Escape",
            vec![new().symlink("a", "../../outside"), new().file("a/x", "x")],
        ),
        case(
            "lower layer, whiteout",
            "Escape",
            vec![
                new().symlink("a", "../../outside"),
                new().file("a/.wh.secret", ""),
            ],
        ),
        case(
            "lower layer, opaque",
            "Escape",
            vec![
                new().symlink("a", "../../outside"),
                new().file("a/d/.wh..wh..opq", ""),
            ],
        ),
        case(
            "lower layer, hard link",
            "Escape",
            vec![
                new().symlink("a", "../../outside"),
                new().hard_link("b", "a/secret"),
            ],
        ),
        case(
            "through a file",
            "NotDirectory",
            vec![new().file("a", "x").file("a/b", "x")],
        ),
        case(
            "through a link to a file",
            "NotDirectory",
            vec![new().file("a", "x").symlink("l", "a").file("l/b", "x")],
        ),
        case(
            "deeper by links",
            "Limit path_depth",
            vec![
                deep("d", 100).long(b'K', "d/".repeat(90)).symlink("l", ""),
                deep("l/e", 60),
            ],
        ),
        case(
            "deeper by links, in one layer",
            "Limit path_depth",
            vec![
                deep("d", 100)
                    .long(b'K', "d/".repeat(90))
                    .symlink("l", "")
                    .file(format!("l/{}x", "e/".repeat(45)), "x"),
            ],
        ),
        case(
            "deeper by links, moved in one piece",
            "Limit path_depth",
            vec![
                deep("d", 100).long(b'K', "d/".repeat(100)).symlink("l", ""),
                deep("l/e/e", 60),
            ],
        ),
    ]);
}

#[test]
fn hard_links_stay_inside() {
    let outside = Stage::new().outside().join("secret");
    run(vec![
        case(
            "parent",
            "Parent",
            vec![new().hard_link("a", "../outside/secret")],
        ),
        case(
            "absolute",
            "Absolute",
            vec![new().hard_link("a", outside.as_os_str().as_encoded_bytes())],
        ),
        case(
            "missing",
            "LinkTarget",
            vec![new().hard_link("a", "etc/passwd")],
        ),
        case(
            "missing, beside",
            "LinkTarget",
            vec![new().hard_link("a", "b")],
        ),
        case(
            "itself, and no file",
            "LinkTarget",
            vec![new().hard_link("a", "a")],
        ),
        case(
            "a circle",
            "LinkTarget",
            vec![new().hard_link("a", "b").hard_link("b", "a")],
        ),
        case(
            "directory",
            "LinkDirectory",
            vec![new().dir("d").hard_link("a", "d")],
        ),
        case("root", "LinkDirectory", vec![new().hard_link("a", "./")]),
        case(
            "directory of a lower layer",
            "LinkDirectory",
            vec![new().dir("d"), new().hard_link("a", "d")],
        ),
        case(
            "into what it replaces",
            "LinkTarget",
            vec![new().file("d/f", "x").hard_link("d", "d/f")],
        ),
    ]);
}

#[test]
fn whiteouts_are_whiteouts_only() {
    run(vec![
        case("of nothing", "Whiteout", vec![new().file(".wh.", "")]),
        case(
            "of the directory",
            "Whiteout",
            vec![new().file("a/.wh..", "")],
        ),
        case(
            "of the parent",
            "Whiteout",
            vec![new().file("a/.wh...", "")],
        ),
        case(
            "with something below",
            "Whiteout",
            vec![new().file(".wh.a/b", "")],
        ),
    ]);
    let stage = Stage::new();
    let layers = [
        new()
            .symlink("l", "d")
            .file("d/kept", "1")
            .file("d/gone", "1"),
        // The first goes through the link; the second is about a directory that takes the link's place.
        new().file("l/.wh.gone", ""),
        new().dir("l").file("l/.wh..wh..opq", "").file("l/new", "3"),
        new()
            .file(".wh..wh.plnk/1.2", "aufs")
            .file(".wh..wh.aufs", "aufs"),
    ];
    let layers: Vec<_> = layers.into_iter().map(Tarball::end).collect();
    stage.unpack(&layers, &options(small())).unwrap();
    let names: Vec<_> = snapshot(&stage.root()).into_keys().collect();
    let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
    assert_eq!(names, ["", "d", "d/kept", "l", "l/new"]);
}

#[test]
fn what_is_no_archive_is_told_as_what_is_wrong_with_it() {
    let header = |size: &[u8]| Member::new(b'0', "a").size(size);
    let broken = |at: usize| {
        let mut tar = new().file("a", "content");
        tar.0[at] ^= 0x55;
        tar
    };
    run(vec![
        case(
            "negative size",
            "Number",
            vec![new().add(&header(&[0xff; 12]))],
        ),
        case(
            "minus in a size",
            "Number",
            vec![new().add(&header(b"-0000000001\0"))],
        ),
        case(
            "decimal size",
            "Number",
            vec![new().add(&header(b"00000000089\0"))],
        ),
        case(
            "size beyond 64 bits",
            "Number",
            vec![new().add(&header(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"))],
        ),
        case(
            "size of an exabyte",
            "Limit file_bytes",
            vec![new().add(&header(b"\x80\0\0\0\x10\0\0\0\0\0\0\0"))],
        ),
        case(
            "PAX size of an exabyte",
            "Limit file_bytes",
            vec![
                new()
                    .pax(&[("size", b"1152921504606846976")])
                    .file("a", "x"),
            ],
        ),
        case(
            "negative PAX size",
            "Number",
            vec![new().pax(&[("size", b"-1")]).file("a", "x")],
        ),
        case(
            "owner beyond 32 bits",
            "Number",
            vec![new().pax(&[("uid", b"4294967296")]).file("a", "x")],
        ),
        case(
            "owner with a sign",
            "Number",
            vec![new().pax(&[("gid", b"-1")]).file("a", "x")],
        ),
        case("name altered", "Checksum", vec![broken(0)]),
        case("kind altered", "Checksum", vec![broken(156)]),
        case("sum altered", "Checksum", vec![broken(149)]),
        case(
            "size too small",
            "Checksum",
            vec![
                new().add(
                    &Member::new(b'0', "a")
                        .content("x".repeat(600))
                        .size(&octal(10, 11)),
                ),
            ],
        ),
        case(
            "unknown kind",
            "Kind",
            vec![new().add(&Member::new(b'Z', "a"))],
        ),
        case(
            "volume header",
            "Kind",
            vec![new().add(&Member::new(b'V', "a"))],
        ),
        case(
            "record without end",
            "Archive",
            vec![
                new()
                    .add(&Member::new(b'x', "pax").content("30 path=a"))
                    .file("a", "x"),
            ],
        ),
        case(
            "record without length",
            "Archive",
            vec![
                new()
                    .add(&Member::new(b'x', "pax").content("path=a\n"))
                    .file("a", "x"),
            ],
        ),
        case(
            "record of length zero",
            "Archive",
            vec![
                new()
                    .add(&Member::new(b'x', "pax").content("0 path=a\n"))
                    .file("a", "x"),
            ],
        ),
        case(
            "attribute without a name",
            "Archive",
            vec![new().pax(&[("SCHILY.xattr.", b"1")]).file("a", "x")],
        ),
        case(
            "header for nothing",
            "Truncated",
            vec![new().pax(&[("path", b"a")])],
        ),
    ]);
}

#[test]
fn sparse_maps_are_checked() {
    let sparse = |map: &[u8], size: &[u8]| {
        new()
            .pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)])
            .file("a", "12345678")
    };
    let old = |offset: u64, length: u64, real: u64| {
        let mut block = Member::new(b'S', "a").content("12345678").header();
        block[386..398].copy_from_slice(&octal(offset, 11));
        block[398..410].copy_from_slice(&octal(length, 11));
        block[483..495].copy_from_slice(&octal(real, 11));
        let mut tar = new();
        tar.0.extend(tarball::with_sum(block));
        tar.raw(b"12345678")
    };
    let one = |map: &str| {
        let mut block = map.as_bytes().to_vec();
        block.resize(tarball::BLOCK, 0);
        new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"100"),
            ])
            .file("a", block)
    };
    run(vec![
        case("outside", "Sparse", vec![sparse(b"93,8", b"100")]),
        case("overlap", "Sparse", vec![sparse(b"10,4,12,4", b"100")]),
        case("backwards", "Sparse", vec![sparse(b"50,4,10,4", b"100")]),
        case("too little", "Sparse", vec![sparse(b"10,4", b"100")]),
        case("too much", "Sparse", vec![sparse(b"10,4,20,40", b"100")]),
        case(
            "wraps",
            "Sparse",
            vec![sparse(b"18446744073709551615,8", b"100")],
        ),
        case("negative", "Number", vec![sparse(b"-1,8", b"100")]),
        case("half a pair", "Archive", vec![sparse(b"10,4,20", b"100")]),
        case(
            "huge",
            "Limit file_bytes",
            vec![sparse(b"0,8", b"1099511627776")],
        ),
        case("old, outside", "Sparse", vec![old(93, 8, 100)]),
        case("old, wrong sum", "Sparse", vec![old(0, 7, 100)]),
        case("old, huge", "Limit file_bytes", vec![old(0, 8, 1 << 32)]),
        case("1.0, too many", "Truncated", vec![one("1000000\n0\n1\n")]),
        case("1.0, no count", "Number", vec![one("\n0\n1\n")]),
        case("1.0, negative", "Number", vec![one("1\n-1\n1\n")]),
        case(
            "version 2",
            "Kind",
            vec![new().pax(&[("GNU.sparse.major", b"2")]).file("a", "x")],
        ),
        case(
            "unknown key",
            "Kind",
            vec![new().pax(&[("GNU.sparse.colour", b"2")]).file("a", "x")],
        ),
    ]);
}

#[test]
fn every_cap_has_its_name() {
    let many = (0..1001).fold(new(), |tar, index| tar.file(format!("f{index}"), ""));
    let long = format!("{}/", "a".repeat(200)).repeat(21);
    let big = vec![b'x'; 2 << 20];
    let attributes = vec![("SCHILY.xattr.user.big", &big[..200 << 10])];
    run(vec![
        case("entries", "Limit entries", vec![many]),
        case(
            "depth",
            "Limit path_depth",
            vec![new().long(b'L', "d/".repeat(129)).dir("d")],
        ),
        case(
            "length",
            "Limit path_bytes",
            vec![new().long(b'L', long).dir("d")],
        ),
        case(
            "target",
            "Limit path_bytes",
            vec![new().long(b'K', "a/".repeat(2100)).symlink("a", "b")],
        ),
        case(
            "PAX header",
            "Limit header_bytes",
            vec![new().pax(&[("comment", &big)]).dir("d")],
        ),
        case(
            "long name",
            "Limit header_bytes",
            vec![new().long(b'L', &big).dir("d")],
        ),
        case(
            "global header",
            "Limit header_bytes",
            vec![
                new()
                    .add(&Member::new(b'g', "pax").content(record("comment", &big)))
                    .dir("d"),
            ],
        ),
        case(
            "attributes",
            "Limit xattr_bytes",
            vec![new().pax(&attributes).dir("d")],
        ),
        case(
            "headers without end",
            "Limit header_bytes",
            vec![(0..2100).fold(new(), |tar, _| tar.add(&Member::new(b'g', "g")))],
        ),
    ]);
    let stage = Stage::new();
    let limits = Limits {
        unpacked_bytes: 1000,
        journal_bytes: 500,
        file_bytes: 800,
        ..Limits::default()
    };
    let options = options(limits);
    let fails = |tar: Tarball| kind_of(&stage.unpack(&[tar.end()], &options).unwrap_err());
    let half = [b'x'; 600];
    assert_eq!(
        fails(new().file("a", half).file("b", half)),
        "Limit unpacked_bytes"
    );
    assert_eq!(fails(new().file("a", [b'x'; 900])), "Limit file_bytes");
    assert_eq!(
        fails(
            new()
                .dir("a".repeat(90))
                .dir("b".repeat(90))
                .dir("c".repeat(90))
                .dir("d".repeat(90))
        ),
        "Limit journal_bytes"
    );
    let whiteouts = (0..9).fold(new(), |tar, index| tar.file(format!(".wh.{index}"), ""));
    assert_eq!(fails(whiteouts), "Limit journal_bytes");
    let links = (0..9).fold(new(), |tar, index| tar.hard_link(format!("{index}"), "x"));
    assert_eq!(fails(links), "Limit journal_bytes");
}

#[test]
fn what_policy_forbids_is_refused() {
    let stage = Stage::new();
    let mut options = options(small());
    options.devices = Devices::Refuse;
    options.trusted = Trusted::Refuse;
    for kind in [b'3', b'4'] {
        let tar = new().add(&Member::new(kind, "dev/x").device(1, 3)).end();
        let error = stage.unpack(&[tar], &options).unwrap_err();
        assert_eq!(kind_of(&error), "Device", "{error}");
    }
    // A fifo is no device.
    let fifo = new().add(&Member::new(b'6', "run/fifo")).end();
    stage.unpack(&[fifo], &options).unwrap();
    if tarball::is_root() {
        let tar = new()
            .pax(&[("SCHILY.xattr.trusted.x", b"1")])
            .file("a", "x");
        let error = stage.unpack(&[tar.end()], &options).unwrap_err();
        assert_eq!(kind_of(&error), "Trusted", "{error}");
    }
}

#[test]
fn an_archive_that_is_cut_off_is_refused_wherever_that_is() {
    let long = "n".repeat(120);
    let tar = new()
        .dir("d")
        .long(b'L', format!("d/{long}"))
        .file("x", "c".repeat(1500))
        .pax(&[("GNU.sparse.map", b"4,8"), ("GNU.sparse.size", b"100")])
        .file("s", "12345678")
        .symlink("l", "d");
    let whole = tar.clone().end();
    let stage = Stage::new();
    let mut accepted = Vec::new();
    for length in (0..whole.len())
        .step_by(37)
        .chain([511, 512, 513, 1024, 2048])
    {
        match stage.unpack(&[whole[..length].to_vec()], &options(small())) {
            Ok(()) => accepted.push(length),
            Err(error) => {
                let kind = kind_of(&error);
                assert_eq!(kind, "Truncated", "{length}: {error}");
            }
        }
        stage.assert_untouched("cut off");
    }
    // Where only zeros are missing, or whole members, the archive is one; that it was longer, its digest tells.
    let ends = |length: &usize| {
        let padding_only = whole[*length..].iter().all(|byte| *byte == 0);
        let rest = length % 512;
        padding_only
            || rest == 0
            || whole[*length..length.next_multiple_of(512)]
                .iter()
                .all(|b| *b == 0)
    };
    assert!(accepted.iter().all(ends), "{accepted:?}");
}

#[test]
fn the_last_of_duplicates_counts() {
    let stage = Stage::new();
    let tar = new()
        .file("a", "first")
        .file("a", "second")
        .dir("b")
        .file("b/x", "gone")
        .file("b", "a file now")
        .file("c", "a file")
        .dir("c")
        .file("c/x", "kept")
        .dir("c")
        .symlink("d", "c")
        .file("d", "no link")
        .file("e", "kept")
        .hard_link("e", "e")
        // Names that differ in case are different names.
        .symlink("Up", "/")
        .dir("up")
        .file("up/x", "inside")
        .file("FILE", "1")
        .file("file", "2");
    stage.unpack(&[tar.end()], &options(small())).unwrap();
    let read = |name: &str| std::fs::read_to_string(stage.root().join(name)).unwrap();
    assert_eq!(
        (read("a"), read("b")),
        ("second".into(), "a file now".into())
    );
    assert_eq!((read("c/x"), read("d")), ("kept".into(), "no link".into()));
    assert_eq!((read("e"), read("up/x")), ("kept".into(), "inside".into()));
    assert_eq!((read("FILE"), read("file")), ("1".into(), "2".into()));
    stage.assert_untouched("duplicates");
}

/// Ten million members, made while they are read.
struct Endless {
    name: fn(u64) -> String,
    kind: u8,
    member: u64,
    block: [u8; tarball::BLOCK],
    position: usize,
}

impl Endless {
    fn new(kind: u8, name: fn(u64) -> String) -> Self {
        Self {
            name,
            kind,
            member: 0,
            block: [0; tarball::BLOCK],
            position: tarball::BLOCK,
        }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.position == self.block.len() {
            if self.member == 10_000_000 {
                return Ok(0);
            }
            self.block = Member::new(self.kind, (self.name)(self.member))
                .link("x")
                .header();
            (self.member, self.position) = (self.member + 1, 0);
        }
        let count = buffer.len().min(self.block.len() - self.position);
        buffer[..count].copy_from_slice(&self.block[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

/// Runs in a process of its own, because the highest mark of memory is the process's.
#[test]
fn ten_million_entries_do_not_fill_the_memory() {
    const CHILD: &str = "CLOISTER_TEN_MILLION";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "ten_million_entries_do_not_fill_the_memory",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&child.stderr)
        );
        let peak = text
            .split("peak ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let peak: u64 = peak.unwrap().parse().unwrap();
        assert!(peak < 96 * 1024, "{peak} KiB");
        return;
    }
    let few = Limits {
        entries: 5_000,
        ..Limits::default()
    };
    let many = Limits {
        entries: 300_000,
        ..Limits::default()
    };
    let streams: [(u8, fn(u64) -> String, Limits, &str); 7] = [
        (b'0', |n| format!("f{n}"), few.clone(), "Limit entries"),
        (b'0', |_| "same".to_owned(), few.clone(), "Limit entries"),
        (
            b'5',
            |n| format!("d{}/e{n}", n / 100),
            few.clone(),
            "Limit entries",
        ),
        (b'2', |n| format!("l{n}"), few, "Limit entries"),
        // These leave nothing on the disk; so it is the memory that is in danger.
        (
            b'0',
            |n| format!(".wh.{n}"),
            Limits::default(),
            "Limit journal_bytes",
        ),
        (b'0', |n| format!(".wh..wh.{n}"), many, "Limit entries"),
        (
            b'1',
            |n| format!("h{n}"),
            Limits::default(),
            "Limit journal_bytes",
        ),
    ];
    for (kind, name, limits, expected) in streams {
        let stage = Stage::new();
        let error = stage
            .unpack_stream(Endless::new(kind, name), &options(limits))
            .unwrap_err();
        assert_eq!(kind_of(&error), expected, "{error}");
        stage.assert_untouched(&name(0));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("peak {} KiB", peak.unwrap().trim().trim_end_matches(" kB"));
}

/// As many as fit into the default limits, each with what once made a whole list be walked.
#[test]
fn no_entry_costs_what_all_before_it_cost() {
    let stage = Stage::new();
    let count = 2_000;
    let mut tar = new();
    for index in 0..count {
        tar = tar.hard_link(format!("l{index}"), "target");
    }
    let lower = (0..count).fold(new().file("target", "x"), |tar, index| {
        tar.dir(format!("d{index}"))
    });
    let hide = (0..count).fold(new(), |tar, index| tar.file(format!(".wh.d{index}"), ""));
    let layers = [lower.end(), tar.end(), hide.end()];
    let limits = Limits {
        entries: 10_000,
        ..Limits::default()
    };
    stage.unpack(&layers, &options(limits)).unwrap();
    assert_eq!(std::fs::read_dir(stage.root()).unwrap().count(), count + 1);
}
