//! `store` in `[image]` of `cdh.toml`: where the guest keeps images. Cloister's own key.

use serde::Deserialize;

/// Where images are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// In the guest's memory.
    Memory,
    /// On the host's scratch disk, which the guest encrypts under a key that it makes.
    Scratch,
}
