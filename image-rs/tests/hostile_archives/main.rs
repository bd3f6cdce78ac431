//! Archives that try to get out, or to use the machine up: each has its error, and nothing outside changes.
//!
//! Layers are unpacked and merged as they are, and then pulled from a layout; `hostile.rs` has some in a registry.

#![allow(clippy::unwrap_used)]

#[path = "../blobs/mod.rs"]
mod blobs;
mod cap;
mod climb;
mod format;
#[path = "../room/mod.rs"]
mod room;
#[path = "../tarball/mod.rs"]
mod tarball;
mod way;

use std::sync::Arc;

use blobs::{Blob, image};
use image_rs::layout::Layout;
use image_rs::manifest::Platform;
use image_rs::unpack::{Limits, UnpackError};
use image_rs::{LayerError, Place, Policy, PullConfig, PullError, Puller};
use room::NoKeys;
use tarball::{Stage, Tarball, options};

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

/// Each case by itself, and then as an image that is pulled, of which nothing may be left.
fn run(cases: Vec<Case>) {
    let stage = Stage::new();
    let limits = small();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for case in cases {
        let error = stage
            .unpack(&case.layers, &options(limits.clone()))
            .expect_err(case.name);
        assert_eq!(kind_of(&error), case.expected, "{}: {error}", case.name);
        assert!(error.to_string().len() < 1000, "{}", case.name);
        stage.assert_untouched(case.name);
        let error = runtime.block_on(pull(&case, limits.clone()));
        assert_eq!(kind_of(&error), case.expected, "{}: {error}", case.name);
    }
}

async fn pull(case: &Case, limits: Limits) -> UnpackError {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().join("layout"), Some("t".to_owned()));
    let layers: Vec<_> = case.layers.iter().map(|layer| Blob::plain(layer)).collect();
    image(&layout, &layers);
    let config = PullConfig {
        limits,
        platform: Platform::new("linux", "amd64", None),
        ownership: options(Limits::default()).ownership,
        ..PullConfig::new(Policy::accept_anything())
    };
    let puller = Puller::new(config, room::registry(), Arc::new(NoKeys));
    let place = directory.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let (image, target) = (Place::Layout(layout), place.join("root"));
    let pulled = puller.pull_from(&image, &target).await;
    let error = pulled.expect_err(case.name);
    let left = std::fs::read_dir(&place).unwrap().count();
    assert_eq!(left, 0, "{}", case.name);
    match error {
        PullError::Merge { source, .. } => source,
        other => match room::layer_error(other) {
            LayerError::Unpack(error) => error,
            other => panic!("{}: {other}", case.name),
        },
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
