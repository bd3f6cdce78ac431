//! What an entry is besides its name and bytes is kept, or it is an error.

use crate::tarball;

use std::os::unix::fs::MetadataExt;

use image_rs::unpack::{Limits, UnpackError};
use tarball::{Member, Stage, Tarball, is_root, options};

#[test]
fn attributes_that_the_file_system_cannot_keep_are_an_error() {
    let stage = Stage::new();
    for member in [b'0', b'5', b'6'] {
        let tar = Tarball::new()
            .pax(&[("SCHILY.xattr.nonsense.x", b"1")])
            .add(&Member::new(member, "a"));
        let result = stage.unpack(&[tar.end()], &options(Limits::default()));
        if is_root() {
            assert!(
                matches!(result, Err(UnpackError::Xattr { ref name, .. }) if name == "nonsense.x"),
                "{result:?}"
            );
        }
    }
    // A label and the marks of an overlay are the builder's own.
    let tar = Tarball::new()
        .pax(&[
            (
                "SCHILY.xattr.security.selinux",
                b"system_u:object_r:bin_t:s0",
            ),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .dir("a");
    stage
        .unpack(&[tar.end()], &options(Limits::default()))
        .unwrap();
    assert_eq!(tarball::xattrs(&stage.root().join("a")), "[]");
}

#[test]
fn attributes_that_would_be_lost_are_refused_by_name() {
    let stage = Stage::new();
    let refused = |tar: Tarball| {
        let error = stage.unpack(&[tar.end()], &options(Limits::default()));
        error.unwrap_err()
    };
    let list = [("SCHILY.acl.access", b"user::rw-".as_slice())];
    let error = refused(Tarball::new().pax(&list).file("a", "x"));
    assert!(matches!(error, UnpackError::AccessList(_)), "{error}");
    // The kernel lets no file system keep these.
    for kind in [b'2', b'6'] {
        let user = [("SCHILY.xattr.user.x", b"1".as_slice())];
        let error = refused(
            Tarball::new()
                .pax(&user)
                .add(&Member::new(kind, "a").link("b")),
        );
        assert!(matches!(error, UnpackError::UserXattr { .. }), "{error}");
    }
    let other = [("LIBARCHIVE.xattr.user%2ex", b"MQ".as_slice())];
    let tar = Tarball::new().pax(&other).file("a", "x");
    stage
        .unpack(&[tar.end()], &options(Limits::default()))
        .unwrap();
    assert!(tarball::xattrs(&stage.root().join("a")).contains("user.x"));
}

#[test]
fn a_file_larger_than_octal_has_digits_is_read() {
    // 8 GiB and a bit, all of it a hole: base-256 in the old header, text in PAX.
    let size: u64 = (8 << 30) + 5;
    let mut field = [0; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&size.to_be_bytes());
    let mut block = Member::new(b'S', "old").header();
    block[386..398].copy_from_slice(&field);
    block[398..410].copy_from_slice(b"00000000000\0");
    block[483..495].copy_from_slice(&field);
    let mut tar = Tarball::new();
    tar.0.extend(tarball::with_sum(block));
    let size_text = size.to_string();
    let tar = tar
        .pax(&[
            ("GNU.sparse.map", b""),
            ("GNU.sparse.size", size_text.as_bytes()),
        ])
        .file("pax", "");
    let stage = Stage::new();
    stage
        .unpack(&[tar.end()], &options(Limits::default()))
        .unwrap();
    for name in ["old", "pax"] {
        assert_eq!(stage.root().join(name).metadata().unwrap().len(), size);
    }
}

/// Work inside changes a directory's time, and a closed directory would not let the work be done.
#[test]
fn directories_are_as_described_when_all_is_done() {
    let closed = |name: &str| Member::new(b'5', name).mode(0o1500).mtime(1_200_000_000);
    let lower = Tarball::new()
        .add(&Member::new(b'5', "./").mode(0o700).mtime(1_100_000_000))
        .add(&closed("d"))
        .file("d/a", "1")
        .add(&closed("d/e"))
        .file("d/e/b", "1")
        .symlink("l", "d");
    // By another way, and without a word about the directory itself.
    let upper = Tarball::new()
        .file("l/e/c", "2")
        .file("d/.wh.a", "")
        .add(&closed("l/e/new"));
    let stage = Stage::new();
    let layers = [lower.end(), upper.end()];
    stage.unpack(&layers, &options(Limits::default())).unwrap();
    let look = |name: &str| {
        let meta = stage.root().join(name).metadata().unwrap();
        (meta.mode() & 0o7777, meta.mtime())
    };
    assert_eq!(look(""), (0o700, 1_100_000_000));
    for name in ["d", "d/e", "d/e/new"] {
        assert_eq!(look(name), (0o1500, 1_200_000_000), "{name}");
    }
    assert_eq!(look("d/e/c"), (0o644, 1_000_000_000));
}

/// A higher layer's word on a directory counts, also where a link led the lower layer there.
#[test]
fn the_highest_description_of_a_directory_counts_whatever_it_is_called() {
    let named = |name: &str, mode| Member::new(b'5', name).mode(mode);
    let layers = [
        Tarball::new().dir("a/x").symlink("z", "a").end(),
        Tarball::new().add(&named("z/x", 0o711)).end(),
        Tarball::new().add(&named("a/x", 0o750)).end(),
        Tarball::new().add(&named("z/x", 0o701)).end(),
    ];
    let stage = Stage::new();
    for (count, mode) in [(1, 0o755), (2, 0o711), (3, 0o750), (4, 0o701)] {
        stage
            .unpack(&layers[..count], &options(Limits::default()))
            .unwrap();
        let meta = stage.root().join("a/x").metadata().unwrap();
        assert_eq!(meta.mode() & 0o7777, mode, "{count} layers");
    }
}

/// An access list that a directory gives to what is made in it must not reach what the archive puts there.
#[test]
fn a_default_access_list_is_the_directorys_alone() {
    if !is_root() {
        eprintln!("skipped: access lists need root");
        return;
    }
    // user::rwx, user:5:rwx, group::r-x, mask::rwx, other::r-x
    let entry = |tag: u16, permissions: u16, id: u32| {
        [
            &tag.to_le_bytes()[..],
            &permissions.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let none = u32::MAX;
    let list = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 7, none),
        entry(2, 7, 5),
        entry(4, 5, none),
        entry(16, 7, none),
        entry(32, 5, none),
    ]
    .concat();
    let tar = Tarball::new()
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &list)])
        .dir("d")
        .file("d/f", "x")
        .dir("d/e");
    let stage = Stage::new();
    match stage.unpack(&[tar.end()], &options(Limits::default())) {
        Ok(()) => {}
        // A file system without access lists says so.
        Err(UnpackError::Xattr { .. }) => return,
        Err(other) => panic!("{other}"),
    }
    let xattrs = |name: &str| tarball::xattrs(&stage.root().join(name));
    assert!(xattrs("d").contains("posix_acl_default"));
    assert_eq!((xattrs("d/f"), xattrs("d/e")), ("[]".into(), "[]".into()));
}
