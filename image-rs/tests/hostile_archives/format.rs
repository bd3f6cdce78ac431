//! Bytes that are no archive, or say what cannot be.

use super::tarball::{self, Member, Stage, octal, options};
use super::{case, kind_of, new, run, small};

#[test]
fn numbers_that_cannot_be_are_refused() {
    let header = |size: &[u8]| Member::new(b'0', "a").size(size);
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
    ]);
}

#[test]
fn headers_that_are_none_are_refused() {
    let broken = |at: usize| {
        let mut tar = new().file("a", "content");
        tar.0[at] ^= 0x55;
        tar
    };
    run(vec![
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
    ]);
}

/// Readers differ in what stands where these end, and so each could see another image.
#[test]
fn an_archive_that_readers_read_differently_is_refused() {
    let inner = new().file("smuggled", "x").0;
    let ended = |zeros: usize| {
        let mut tar = new().file("a", "x");
        tar.0.extend(vec![0; zeros * tarball::BLOCK]);
        tar.file("behind", "x")
    };
    let slash = |kind| new().add(&Member::new(kind, "innocent/").content(&inner));
    run(vec![
        case("file that is a directory", "Content", vec![slash(b'0')]),
        case("old file that is a directory", "Content", vec![slash(0)]),
        case(
            "its size in PAX",
            "Content",
            vec![new().pax(&[("size", b"512")]).add(&Member::new(b'0', "d/"))],
        ),
        case("lone block of zeros", "Archive", vec![ended(1)]),
    ]);
    let stage = Stage::new();
    let old = new().add(&Member::new(0, "d/")).file("d/x", "x");
    stage.unpack(&[old.end()], &options(small())).unwrap();
    assert!(stage.root().join("d/x").is_file());
    stage.unpack(&[ended(2).end()], &options(small())).unwrap();
    assert!(!stage.root().join("behind").exists());
    // Go takes this one, which some writers make.
    let mut one = new().file("a", "x").0;
    one.extend([0; tarball::BLOCK]);
    stage.unpack(&[one], &options(small())).unwrap();
}

#[test]
fn extended_headers_that_are_none_are_refused() {
    run(vec![
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
