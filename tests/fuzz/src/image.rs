//! What comes from a registry: names, manifests, policy files, layers.

use std::path::Path;

use image_rs::layout::Layout;
use image_rs::manifest::{Document, Platform, read_config};
use image_rs::unpack::{
    Archive, Devices, Limits, Options, Ownership, Root, Tree, Trusted, Usage, unpack,
};
use image_rs::{Digest, Policy, Reference};

use crate::{Target, text, texts};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "image_reference",
        run: reference,
        seeds: references,
    },
    Target {
        name: "image_digest",
        run: digest,
        seeds: digests,
    },
    Target {
        name: "image_manifest",
        run: manifest,
        seeds: manifests,
    },
    Target {
        name: "image_policy",
        run: policy,
        seeds: policies,
    },
    Target {
        name: "image_auth_file",
        run: auth_file,
        seeds: auth_files,
    },
    Target {
        name: "image_registries",
        run: registries,
        seeds: registry_confs,
    },
    Target {
        name: "image_layer",
        run: layer,
        seeds: layers,
    },
    Target {
        name: "image_layout_archive",
        run: layout_archive,
        seeds: layouts,
    },
];

/// Layers of an image; a manifest with more is refused.
const LAYERS: usize = 128;

fn reference(data: &[u8]) {
    if let Some(reference) = text(data).and_then(|text| text.parse::<Reference>().ok()) {
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
}

fn digest(data: &[u8]) {
    if let Some(digest) = text(data).and_then(|text| text.parse::<Digest>().ok()) {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}

fn manifest(data: &[u8]) {
    if let Ok(Document::Image(manifest)) = Document::read(data, None, LAYERS) {
        assert!(manifest.layers.len() <= LAYERS);
        let _ = read_config(data, &manifest, &Platform::host());
    }
}

fn policy(data: &[u8]) {
    if let (Ok(policy), Ok(image)) = (Policy::from_json(data), "registry.example/a/b:c".parse()) {
        let _ = policy.demand(&image);
    }
}

fn auth_file(data: &[u8]) {
    let _ = image_rs::registry::AuthFile::from_json(data);
}

fn registries(data: &[u8]) {
    if let Some(text) = text(data) {
        let _ = image_rs::registry::Rules::from_toml(text);
    }
}

/// Unpacks into a directory whose only neighbour must stay as it is.
fn layer(data: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    let made = std::fs::create_dir(&inside).and_then(|()| std::fs::create_dir(&outside));
    if made.is_err() || std::fs::write(outside.join("file"), "untouched").is_err() {
        return;
    }
    let Ok(root) = Root::open(&inside) else {
        return;
    };
    let limits = Limits {
        entries: 1000,
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let options = Options {
        limits,
        devices: Devices::Refuse,
        ownership: Ownership::Caller,
        trusted: Trusted::Keep,
    };
    let merged = dir.path().join("merged");
    if let Ok(journal) = unpack(&mut Archive::new(data), &root, &options, &Usage::default())
        && std::fs::create_dir(&merged).is_ok()
        && let Ok(top) = Root::open(&merged)
    {
        let mut tree = Tree::new(&top, &options);
        if tree.merge(&root, journal).is_ok() {
            let _ = tree.finish();
        }
        drop(std::fs::remove_dir_all(&merged));
    }
    assert_eq!(names(dir.path()), ["inside", "outside"], "a layer got out");
    assert_eq!(names(&outside), ["file"], "a layer got out");
    let read = std::fs::read_to_string(outside.join("file"));
    assert_eq!(read.ok().as_deref(), Some("untouched"));
}

fn layout_archive(data: &[u8]) {
    let Ok(file) = tempfile::NamedTempFile::new() else {
        return;
    };
    if std::fs::write(file.path(), data).is_ok() {
        let archive = Layout::parse_archive(&file.path().to_string_lossy());
        let _ = archive.and_then(|archive| archive.manifest());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn references() -> Vec<Vec<u8>> {
    let digest = "5e".repeat(32);
    texts(&[
        "busybox",
        "registry.example:5000/a/b:c",
        "[fd00::1]:5000/a@sha256:00",
        &format!("localhost/a/b:t@sha256:{digest}"),
    ])
}

fn digests() -> Vec<Vec<u8>> {
    texts(&[
        &format!("sha256:{}", "5e".repeat(32)),
        &format!("sha512:{}", "5e".repeat(64)),
    ])
}

fn manifests() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "5e".repeat(32));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "digest": digest, "size": 3,
            "annotations": {"org.opencontainers.image.enc.pubopts": "e30="},
        }],
    });
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 4,
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    });
    texts(&[&manifest.to_string(), &index.to_string()])
}

fn policies() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"registry.example/a":[{"type":"insecureAcceptAnything"}]}}}"#,
    ])
}

fn auth_files() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"auths":{"registry.example":{"auth":"dXNlcjpwYXNz"},"a/b":{"username":"u","password":"p"}}}"#,
    ])
}

fn registry_confs() -> Vec<Vec<u8>> {
    texts(&[
        "[[registry]]\nprefix = \"*.a.example\"\nlocation = \"b.example:5000/c\"\nblocked = false\n\
         [[registry.mirror]]\nlocation = \"localhost/d\"\ninsecure = true\npull-from-mirror = \"digest-only\"\n",
    ])
}

/// A file, a directory, a link that leads out, and a file behind it.
fn layers() -> Vec<Vec<u8>> {
    let mut archive = Vec::new();
    for (name, kind, link, content) in [
        ("etc/", b'5', "", ""),
        ("etc/passwd", b'0', "", "root:x:0:0::/:/bin/sh\n"),
        ("out", b'2', "../outside", ""),
        ("out/file", b'0', "", "changed"),
        ("hard", b'1', "etc/passwd", ""),
        (".wh.etc", b'0', "", ""),
        ("../outside/file", b'0', "", "changed"),
    ] {
        archive.extend(member(name, kind, link, content));
    }
    archive.extend([0; 1024]);
    let mut odd = Vec::new();
    for (name, kind, link, content) in [
        ("pax", b'x', "", "11 path=a/b\n25 SCHILY.xattr.user.x=1\n"),
        ("b", b'0', "", "content"),
        (
            "pax",
            b'x',
            "",
            "22 GNU.sparse.map=4,7\n23 GNU.sparse.size=100\n",
        ),
        ("s", b'0', "", "content"),
        ("././@LongLink", b'L', "", "a/long/name\0"),
        ("c", b'0', "", "content"),
        ("late", b'1', "lower", ""),
        ("a/.wh..wh..opq", b'0', "", ""),
        ("fifo", b'6', "", ""),
    ] {
        odd.extend(member(name, kind, link, content));
    }
    vec![archive, odd]
}

fn layouts() -> Vec<Vec<u8>> {
    let digest = "5e".repeat(32);
    let index = serde_json::json!({
        "schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": format!("sha256:{digest}"), "size": 2}],
    });
    let files = [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
        ("./index.json", index.to_string()),
        (&format!("blobs/sha256/{digest}"), "{}".to_owned()),
    ];
    vec![
        files
            .iter()
            .flat_map(|(name, text)| member(name, b'0', "", text))
            .collect(),
    ]
}

fn member(name: &str, kind: u8, link: &str, content: &str) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content.as_bytes());
    block.resize(block.len().next_multiple_of(512), 0);
    block
}
