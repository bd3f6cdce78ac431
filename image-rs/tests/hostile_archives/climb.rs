//! Links that lead up, and links that lead elsewhere than they did: all that goes through them stays inside.

use super::tarball::{self, Member, Stage, Tarball, options, snapshot};
use super::{new, small};

/// As for the kernel in a container, for runc and for umoci: above the root is the root.
#[test]
fn symbolic_links_that_climb_stay_at_the_root() {
    let up = || new().symlink("a", "../../..");
    let fifo = Member::new(b'6', "a/outside/fifo");
    let cases = [
        ("file", vec![up().file("a/outside/x", "x")], "outside/x"),
        (
            "chain",
            vec![
                new()
                    .symlink("a", ".")
                    .symlink("b", "a/..")
                    .file("b/x", "x"),
            ],
            "x",
        ),
        (
            "by way of a directory",
            vec![
                new()
                    .dir("d")
                    .symlink("d/up", "../..")
                    .file("d/up/outside/x", "x"),
            ],
            "outside/x",
        ),
        ("directory", vec![up().dir("a/outside/new")], "outside/new"),
        ("node", vec![up().add(&fifo)], "outside/fifo"),
        (
            "hard link",
            vec![up().file("f", "x").hard_link("b", "a/f")],
            "b",
        ),
        (
            "as images have it",
            vec![
                new()
                    .dir("run")
                    .symlink("var/run", "../../run")
                    .file("var/run/x", "x"),
            ],
            "run/x",
        ),
        (
            "lower layer",
            vec![new().symlink("a", "../../outside"), new().file("a/x", "x")],
            "outside/x",
        ),
        (
            "lower layer, hard link",
            vec![up().file("f", "x"), new().hard_link("b", "a/f")],
            "b",
        ),
    ];
    let stage = Stage::new();
    for (name, layers, expected) in cases {
        let layers: Vec<_> = layers.into_iter().map(Tarball::end).collect();
        stage.unpack(&layers, &options(small())).unwrap();
        let names = snapshot(&stage.root());
        assert!(
            names.contains_key(&tarball::path(expected.as_bytes())),
            "{name}: {names:?}"
        );
        stage.assert_untouched(name);
    }
    // A whiteout takes away what is inside.
    for whiteout in ["a/.wh.secret", "a/d/.wh..wh..opq"] {
        let lower = new()
            .symlink("a", "../../outside")
            .file("outside/secret", "x")
            .file("outside/d/secret", "x");
        let layers = [lower, new().file(whiteout, "")].map(Tarball::end);
        stage.unpack(&layers, &options(small())).unwrap();
        let count = snapshot(&stage.root())
            .into_keys()
            .filter(|path| path.ends_with("secret"))
            .count();
        assert_eq!(count, 1, "{whiteout}");
        stage.assert_untouched(whiteout);
    }
}

/// Entries that go through the same links follow each other, until one takes a link's place.
#[test]
fn a_directory_behind_links_is_the_one_that_the_links_lead_to_now() {
    let stage = Stage::new();
    let tar = new()
        .dir("d")
        .dir("e")
        .symlink("d/k", "../e")
        .symlink("a", "d/k")
        .file("a/1", "e")
        .dir("a/sub")
        .file("a/sub/2", "e")
        .file("a/3", "e")
        // What `a` leads to is another from here on.
        .symlink("l", "d")
        .file("l/4", "d")
        .symlink("l/k", "../f")
        .dir("f")
        .file("a/5", "f")
        .dir("a")
        .file("a/6", "a");
    stage.unpack(&[tar.end()], &options(small())).unwrap();
    let read = |name: &str| std::fs::read_to_string(stage.root().join(name)).unwrap();
    for (name, content) in [
        ("e/1", "e"),
        ("e/sub/2", "e"),
        ("e/3", "e"),
        ("d/4", "d"),
        ("f/5", "f"),
        ("a/6", "a"),
    ] {
        assert_eq!(read(name), content, "{name}");
    }
    stage.assert_untouched("changed links");
}
