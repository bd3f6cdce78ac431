//! Good archives against those who wrote them: what GNU tar packs we unpack to the same tree, and what umoci makes of
//! an image's layers we make of them.

use crate::blobs;
use crate::room::tool;
use crate::tarball;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use blobs::{Blob, image};
use image_rs::layout::Layout;
use image_rs::unpack::Limits;
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, utimensat};
use tarball::{Member, Stage, Tarball, is_root, options, snapshot};
use tool::{need_tool, run};

/// `cap_net_bind_service+ep`, as `setcap` writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with all that a file system has.
fn rich_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    let long = format!("usr/{}", format!("{}/", "long".repeat(20)).repeat(4));
    std::fs::create_dir_all(at("usr/bin")).unwrap();
    std::fs::create_dir_all(at("empty")).unwrap();
    std::fs::create_dir_all(at(&long)).unwrap();
    let file = |name: &str, content: &[u8], mode: u32| {
        std::fs::write(at(name), content).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    file("usr/bin/su", b"setuid", 0o4755);
    file("usr/bin/wall", b"setgid", 0o2711);
    file("usr/bin/closed", b"nobody reads this", 0o000);
    file("usr/bin/big", &vec![7; 700_001], 0o755);
    file("usr/empty", b"", 0o600);
    file(&format!("{long}{}", "n".repeat(200)), b"far away", 0o644);
    let latin = tarball::path(b"usr/caf\xe9 \"\\\n");
    std::fs::write(root.join(latin), "not UTF-8").unwrap();
    symlink("bin/su", at("usr/link")).unwrap();
    symlink("/nowhere", at("usr/dangling")).unwrap();
    symlink(format!("../{}", "t".repeat(220)), at("usr/long-link")).unwrap();
    std::fs::hard_link(at("usr/bin/big"), at("usr/hard")).unwrap();
    std::fs::hard_link(at("usr/link"), at("usr/hard-of-link")).unwrap();
    let fifo = Mode::from_raw_mode(0o640);
    mknodat(CWD, at("fifo"), FileType::Fifo, fifo, 0).unwrap();
    let sparse = std::fs::File::create(at("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    for (index, offset) in [0, 5 << 20, (39 << 20) + 17].into_iter().enumerate() {
        sparse
            .write_all_at(&vec![1 + u8::try_from(index).unwrap(); 5000], offset)
            .unwrap();
    }
    let holes = std::fs::File::create(at("only-a-hole")).unwrap();
    holes.set_len(1 << 20).unwrap();
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(at("usr/empty"), "user.note", b"a\0=\n", flags).unwrap();
    rustix::fs::setxattr(at("empty"), "user.of-directory", b"x", flags).unwrap();
    if is_root() {
        rustix::fs::setxattr(at("usr/bin/big"), "security.capability", &CAPABILITY, flags).unwrap();
        rustix::fs::lsetxattr(at("usr/dangling"), "trusted.of-link", b"l", flags).unwrap();
        rustix::fs::lsetxattr(at("fifo"), "trusted.of-fifo", b"f", flags).unwrap();
        let null = rustix::fs::makedev(1, 3);
        mknodat(
            CWD,
            at("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            null,
        )
        .unwrap();
        let disk = rustix::fs::makedev(259, 70_000);
        mknodat(
            CWD,
            at("disk"),
            FileType::BlockDevice,
            Mode::from_raw_mode(0o660),
            disk,
        )
        .unwrap();
        std::os::unix::fs::lchown(at("usr/empty"), Some(1000), Some(100)).unwrap();
        std::os::unix::fs::lchown(at("usr/dangling"), Some(3_000_000_000), Some(7)).unwrap();
        std::os::unix::fs::lchown(at("empty"), Some(33), Some(33)).unwrap();
    }
    for (name, mode) in [("empty", 0o3700), ("usr", 0o555), ("", 0o711)] {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    date(root);
}

/// Times that no writer gives by itself, directories after what is in them.
fn date(root: &Path) {
    for (index, path) in snapshot(root).into_keys().rev().enumerate() {
        let time = Timespec {
            tv_sec: 1_000_000_000 + 1000 * i64::try_from(index).unwrap(),
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        utimensat(CWD, root.join(path), &times, nofollow).unwrap();
    }
}

/// The same, without what a format does not have.
fn without(tree: BTreeMap<PathBuf, String>, parts: &[&str]) -> BTreeMap<PathBuf, String> {
    let strip = |text: String| {
        parts.iter().fold(text, |text, part| match *part {
            "nanoseconds" => text.replace(".123456789", ".000000000"),
            _ => {
                let (start, end) = (text.find('[').unwrap(), text.find(']').unwrap());
                format!("{}{}", &text[..start], &text[end + 1..])
            }
        })
    };
    tree.into_iter()
        .map(|(path, text)| (path, strip(text)))
        .collect()
}

#[test]
fn what_gnu_tar_packs_comes_out_the_same() {
    if !need_tool("tar") {
        return;
    }
    if !is_root() {
        eprintln!("skipped: owners and nodes need root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    rich_tree(&tree);
    let original = snapshot(&tree);
    assert!(original.len() > 20 && original.values().any(|text| text.contains("capability")));
    let formats: [(&[&str], &[&str]); 7] = [
        (&["--format=pax", "--xattrs", "--xattrs-include=*"], &[]),
        (
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "-S",
                "--sparse-version=0.0",
            ],
            &[],
        ),
        (
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "-S",
                "--sparse-version=0.1",
            ],
            &[],
        ),
        (
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "-S",
                "--sparse-version=1.0",
            ],
            &[],
        ),
        (&["--format=gnu"], &["nanoseconds", "attributes"]),
        (&["--format=gnu", "-S"], &["nanoseconds", "attributes"]),
        (&["--format=oldgnu", "-S"], &["nanoseconds", "attributes"]),
    ];
    let stage = Stage::new();
    for (arguments, missing) in formats {
        let archive = directory.path().join("archive.tar");
        let (from, to) = (tree.to_str().unwrap(), archive.to_str().unwrap());
        run("tar", &[arguments, &["-C", from, "-cf", to, "."]].concat());
        let bytes = std::fs::read(&archive).unwrap();
        if arguments.contains(&"-S") {
            assert!(bytes.len() < 8 << 20, "{arguments:?}: holes are no holes");
        }
        stage.unpack(&[bytes], &options(Limits::default())).unwrap();
        let expected = without(original.clone(), missing);
        same(
            &without(snapshot(&stage.root()), missing),
            &expected,
            &format!("{arguments:?}"),
        );
        assert!(
            blocks(&stage.root().join("sparse")) <= blocks(&tree.join("sparse")).max(100)
                || !arguments.contains(&"-S")
        );
        let bytes = std::fs::read(&archive).unwrap();
        stage
            .unpack_copies(&[bytes], &options(Limits::default()))
            .unwrap();
        let copied = without(snapshot(&stage.root()), missing);
        same(&copied, &expected, &format!("copy of {arguments:?}"));
        let hole = blocks(&stage.root().join("only-a-hole"));
        assert!(hole == 0 || !arguments.contains(&"-S"), "{arguments:?}");
        stage.assert_untouched("GNU tar");
    }
}

fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().blocks()
}

fn same(found: &BTreeMap<PathBuf, String>, expected: &BTreeMap<PathBuf, String>, what: &str) {
    for (path, text) in expected {
        assert_eq!(found.get(path), Some(text), "{what}: {path:?}");
    }
    let more: Vec<_> = found
        .keys()
        .filter(|path| !expected.contains_key(*path))
        .collect();
    assert!(more.is_empty(), "{what}: {more:?}");
}

/// Layers with all that a layer can do to those below it.
fn layers() -> Vec<Vec<u8>> {
    let base = Tarball::new()
        .dir("./")
        .add(
            &Member::new(b'5', "etc")
                .mode(0o750)
                .owner(1, 2)
                .mtime(1_100_000_000),
        )
        .file("etc/gone", "1")
        .file("etc/kept", "1")
        .file("etc/replaced", "1")
        .dir("opaque")
        .file("opaque/old", "1")
        .dir("opaque/sub")
        .file("opaque/sub/old", "1")
        .dir("real")
        .file("real/a", "1")
        .symlink("link", "real")
        .symlink("climbs", "../../real")
        .file("climbs/by-name", "1")
        .dir("to-file")
        .file("to-file/x", "1")
        .file("to-directory", "1")
        .dir("to-link")
        .file("to-link/x", "1")
        .file("both", "1")
        .hard_link("both-too", "both")
        .add(&Member::new(b'6', "fifo").mode(0o620))
        .add(&Member::new(b'3', "dev/null").device(1, 3).mode(0o666));
    let upper = Tarball::new()
        .add(
            &Member::new(b'5', "etc")
                .mode(0o2755)
                .owner(3, 4)
                .mtime(1_200_000_000),
        )
        .file("etc/.wh.gone", "")
        .file("etc/replaced", "2")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "2")
        .file("link/through", "2")
        .file("climbs/through-too", "2")
        .file("to-file", "2")
        .dir("to-directory")
        .file("to-directory/y", "2")
        .symlink("to-link", "real")
        .hard_link("late", "etc/kept")
        .hard_link("late-link", "link")
        .file("implied/deep/file", "2")
        .file("both", "2");
    let top = Tarball::new()
        .add(&Member::new(b'5', "real").mode(0o700).mtime(1_300_000_000))
        .add(
            &Member::new(b'0', "etc/set")
                .content("3")
                .mode(0o6755)
                .owner(5, 6),
        )
        .file(".wh.to-file", "")
        .pax(&[("SCHILY.xattr.security.capability", &CAPABILITY)])
        .file("etc/capable", "3");
    [base, upper, top].map(Tarball::end).into()
}

#[test]
fn what_umoci_makes_of_layers_is_what_we_make() {
    if !need_tool("umoci") {
        return;
    }
    if !is_root() {
        eprintln!("skipped: owners and nodes need root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layers = layers();
    let layout = directory.path().join("layout");
    let blobs = layers
        .iter()
        .map(|layer| Blob::plain(layer))
        .collect::<Vec<_>>();
    image(&Layout::new(layout.clone(), Some("t".to_owned())), &blobs);
    let bundle = directory.path().join("bundle");
    let image = format!("{}:t", layout.display());
    run(
        "umoci",
        &["unpack", "--image", &image, bundle.to_str().unwrap()],
    );
    let stage = Stage::new();
    stage.unpack(&layers, &options(Limits::default())).unwrap();
    let (ours, theirs) = (snapshot(&stage.root()), snapshot(&bundle.join("rootfs")));
    // To umoci a directory's time is that of its last change, not that of its entry.
    let untimed = |tree: &BTreeMap<PathBuf, String>| {
        let strip = |text: &String| match text.ends_with("directory") {
            true => {
                let words: Vec<_> = text.split(' ').collect();
                [&words[..2], &words[3..]].concat().join(" ")
            }
            false => text.clone(),
        };
        let stripped = tree.iter().map(|(path, text)| (path.clone(), strip(text)));
        stripped.collect::<BTreeMap<_, _>>()
    };
    same(&untimed(&ours), &untimed(&theirs), "umoci");
    stage
        .unpack_copies(&layers, &options(Limits::default()))
        .unwrap();
    let copies = untimed(&snapshot(&stage.root()));
    same(&copies, &untimed(&theirs), "copies");
    for (path, time) in [
        ("", 1_000_000_000),
        ("etc", 1_200_000_000),
        ("real", 1_300_000_000),
    ] {
        let text = &ours[Path::new(path)];
        assert!(text.contains(&format!(" {time}.")), "{path}: {text}");
    }
    stage.assert_untouched("umoci");
}
