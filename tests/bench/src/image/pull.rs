//! Our pull, in a process that does nothing else.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use image_rs::pull::Shared;
use image_rs::registry::{NodeMirror, Registry, RegistryConfig, Share};
use image_rs::{Policy, PullConfig, Puller, Reference};
use ocicrypt::Key;
use transport::{ClientConfig, PlainHttp, Roots, TcpDial};

use super::Cost;
use super::floor::OneKey;
use super::node::{self, NodeDial};

/// Pulls `image` into `target`, by way of a node's mirror where one is named, and says what it took.
///
/// # Errors
/// When it is not pulled.
pub async fn once(
    image: &str,
    target: &Path,
    key: Option<Vec<u8>>,
    layers: Option<NonZeroUsize>,
    node: Option<PathBuf>,
    start: Instant,
) -> Result<Cost> {
    let image: Reference = image.parse()?;
    let mut config = PullConfig::new(Policy::accept_anything());
    config.concurrency = layers.unwrap_or(config.concurrency);
    let mut registry = registry()?;
    if let Some(node) = &node {
        let mirror = NodeMirror::new(Arc::new(NodeDial(node.clone())), Share::All)?;
        registry = registry.with_node_mirror(mirror);
    }
    // As in a guest, which keeps layers for the images that come later.
    let home = target.parent().context("a target in a directory")?;
    let shared = Shared::new(config.concurrency).keeping(home.to_owned());
    let keys = Arc::new(OneKey(key.map(Key::new)));
    let puller = Puller::new(config, registry, keys).sharing(&shared);
    let pulled = puller.pull(&image, target).await?;
    eprintln!("{:?}", pulled.timings);
    let cost = Cost::of_this_process(start.elapsed().as_secs_f64())?;
    // A guest lives on after its pull, so what it offered arrives.
    if let Some(node) = &node {
        node::settled(node).await?;
    }
    Ok(cost)
}

fn registry() -> Result<Registry> {
    let local: BTreeSet<String> = ["127.0.0.1".to_owned()].into();
    let mut config = ClientConfig::new(Roots::web());
    config.plain_http = PlainHttp::Hosts(local.clone());
    let client = transport::Client::new(Arc::new(TcpDial), config)?;
    let config = RegistryConfig {
        insecure: local,
        ..RegistryConfig::default()
    };
    Ok(Registry::new(client, config))
}
