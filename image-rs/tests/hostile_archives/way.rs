//! Ways out: names, links, whiteouts, nodes, and what takes another's place.

use image_rs::unpack::{Devices, Trusted};

use super::tarball::{self, Member, Stage, Tarball, options, snapshot};
use super::{case, kind_of, new, run, small};

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
    ]);
}

#[test]
fn a_way_is_made_of_directories_and_not_too_many() {
    run(vec![
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
