//! Archives made by hand, with every field as a hostile writer may have it, and the place where they are unpacked:
//! a stage beside a tree that must stay as it is.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses a part of it"
)]

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use image_rs::unpack::{
    Archive, Devices, Limits, Options, Ownership, Root, Tree, Trusted, UnpackError, Usage,
    copy_layer, unpack,
};
use tempfile::TempDir;

pub const BLOCK: usize = 512;

/// One member: a header field by field, and what stands behind it.
#[derive(Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub kind: u8,
    pub link: Vec<u8>,
    pub mode: Vec<u8>,
    pub uid: Vec<u8>,
    pub gid: Vec<u8>,
    pub size: Vec<u8>,
    pub mtime: Vec<u8>,
    pub device: (u32, u32),
    pub content: Vec<u8>,
}

impl Member {
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            mode: if kind == b'5' {
                octal(0o755, 7)
            } else {
                octal(0o644, 7)
            },
            uid: octal(0, 7),
            gid: octal(0, 7),
            size: octal(0, 11),
            mtime: octal(1_000_000_000, 11),
            device: (0, 0),
            content: Vec::new(),
        }
    }

    pub fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.content = content.as_ref().to_vec();
        self.size = octal(self.content.len() as u64, 11);
        self
    }

    pub fn link(mut self, link: impl AsRef<[u8]>) -> Self {
        self.link = link.as_ref().to_vec();
        self
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = octal(mode.into(), 7);
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (octal(uid.into(), 7), octal(gid.into(), 7));
        self
    }

    pub fn size(mut self, field: &[u8]) -> Self {
        self.size = field.to_vec();
        self
    }

    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = octal(mtime, 11);
        self
    }

    pub fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, room: usize, bytes: &[u8]| {
            let length = bytes.len().min(room);
            block[at..at + length].copy_from_slice(&bytes[..length]);
        };
        put(0, 100, &self.name);
        put(100, 8, &self.mode);
        put(108, 8, &self.uid);
        put(116, 8, &self.gid);
        put(124, 12, &self.size);
        put(136, 12, &self.mtime);
        put(148, 8, b"        ");
        put(156, 1, &[self.kind]);
        put(157, 100, &self.link);
        put(257, 8, b"ustar  \0");
        put(329, 8, &octal(self.device.0.into(), 7));
        put(337, 8, &octal(self.device.1.into(), 7));
        with_sum(block)
    }
}

pub fn with_sum(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub fn octal(number: u64, width: usize) -> Vec<u8> {
    format!("{number:0width$o}\0").into_bytes()
}

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Tarball(pub Vec<u8>);

impl Tarball {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(mut self, member: &Member) -> Self {
        self.0.extend(member.header());
        self.raw(&member.content)
    }

    /// Bytes, padded to a block.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.add(&Member::new(b'0', name).content(content))
    }

    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.add(&Member::new(b'5', name))
    }

    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(&Member::new(b'2', name).link(target))
    }

    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(&Member::new(b'1', name).link(target))
    }

    /// An extended header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            text.extend(record(key, value));
        }
        self.add(&Member::new(b'x', "pax").content(text))
    }

    /// GNU's long name (`L`) or long link (`K`) for the next member.
    pub fn long(self, kind: u8, name: impl AsRef<[u8]>) -> Self {
        let text = [name.as_ref(), b"\0"].concat();
        self.add(&Member::new(kind, "././@LongLink").content(text))
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 2 * BLOCK]);
        self.0
    }
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ".as_slice(), key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &body].concat()
}

pub fn options(limits: Limits) -> Options {
    Options {
        limits,
        devices: Devices::Create,
        ownership: if is_root() {
            Ownership::Keep
        } else {
            Ownership::Caller
        },
        trusted: Trusted::Keep,
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where layers are unpacked, with something to harm beside it.
pub struct Stage {
    directory: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Stage {
    pub fn new() -> Self {
        // In memory where there is such a place: these tests make and remove very many files.
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => TempDir::new_in(memory),
            false => TempDir::new(),
        };
        let directory = directory.unwrap();
        let outside = directory.path().join("outside");
        std::fs::create_dir_all(outside.join("d/e")).unwrap();
        std::fs::write(outside.join("secret"), "untouched").unwrap();
        std::fs::write(outside.join("d/passwd"), "untouched").unwrap();
        std::os::unix::fs::symlink("secret", outside.join("link")).unwrap();
        let before = snapshot(&outside);
        Self { directory, before }
    }

    pub fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("stage/root")
    }

    /// Unpacks and merges layers as a pull does.
    pub fn unpack(&self, layers: &[Vec<u8>], options: &Options) -> Result<(), UnpackError> {
        self.unpack_by(layers, options, false)
    }

    /// The same, with a copy of each layer in its place.
    pub fn unpack_copies(&self, layers: &[Vec<u8>], options: &Options) -> Result<(), UnpackError> {
        self.unpack_by(layers, options, true)
    }

    fn unpack_by(
        &self,
        layers: &[Vec<u8>],
        options: &Options,
        copied: bool,
    ) -> Result<(), UnpackError> {
        let stage = self.directory.path().join("stage");
        let _ = std::fs::remove_dir_all(&stage);
        std::fs::create_dir_all(stage.join("root")).unwrap();
        let usage = Usage::default();
        let mut journals = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let path = stage.join(format!("layer-{index}"));
            std::fs::create_dir(&path).unwrap();
            let root = Root::open(&path)?;
            let mut archive = Archive::new(layer.as_slice());
            let journal = unpack(&mut archive, &root, options, &usage)?;
            if !copied {
                journals.push((journal, root));
                continue;
            }
            let path = stage.join(format!("copy-{index}"));
            std::fs::create_dir(&path).unwrap();
            let copy = Root::open(&path)?;
            copy_layer(&root, &copy, options, &usage)?;
            journals.push((journal.clone(), copy));
        }
        let root = Root::open(&stage.join("root"))?;
        let mut tree = Tree::new(&root, options);
        for (journal, layer) in journals {
            tree.merge(&layer, journal)?;
        }
        tree.finish()
    }

    /// Unpacks one layer as it comes.
    pub fn unpack_stream(
        &self,
        stream: impl std::io::Read,
        options: &Options,
    ) -> Result<(), UnpackError> {
        let path = self.directory.path().join("stage");
        std::fs::create_dir_all(&path).unwrap();
        let root = Root::open(&path)?;
        let stream = std::io::BufReader::new(stream);
        unpack(&mut Archive::new(stream), &root, options, &Usage::default()).map(|_| ())
    }

    /// Nothing outside has been made, changed, linked to, or removed.
    pub fn assert_untouched(&self, what: &str) {
        assert_eq!(snapshot(&self.outside()), self.before, "{what}");
        let mut names: Vec<_> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names.retain(|name| name != "stage");
        assert_eq!(names, ["outside"], "{what}");
    }
}

/// A tree as text: each path with all that a stat says of it but its inode, its content, and its attributes.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    look(root, Path::new(""), &mut found);
    found
}

fn look(root: &Path, path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let whole = root.join(path);
    let meta = whole.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("-> {:?}", std::fs::read_link(&whole).unwrap())
    } else if kind.is_file() {
        let bytes = std::fs::read(&whole).unwrap();
        format!("{} bytes {}", bytes.len(), image_rs::Digest::of(&bytes))
    } else if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        let (major, minor) = (
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        );
        format!(
            "{} {major}:{minor}",
            if kind.is_char_device() { 'c' } else { 'b' }
        )
    };
    // A directory's count of links tells its subdirectories, which are here anyway.
    let links = if kind.is_dir() { 0 } else { meta.nlink() };
    let text = format!(
        "{:o} {}:{} {}.{:09} x{links} {} {content}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
        xattrs(&whole),
    );
    found.insert(path.to_owned(), text);
    if kind.is_dir() {
        for entry in std::fs::read_dir(&whole).unwrap() {
            look(root, &path.join(entry.unwrap().file_name()), found);
        }
    }
}

/// The attributes of a path, a link not followed.
pub fn xattrs(path: &Path) -> String {
    let mut list = vec![0_u8; 64 * 1024];
    let length = rustix::fs::llistxattr(path, list.as_mut_slice()).unwrap_or(0);
    let mut all = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0_u8; 64 * 1024];
        let size = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        all.push(format!(
            "{}={}",
            name.escape_ascii(),
            value[..size].escape_ascii()
        ));
    }
    all.sort();
    format!("{all:?}")
}

/// A path from bytes.
pub fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}
