//! `cloister keyprovider`: one question on stdin, one answer on stdout.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use ocicrypt::Key;
use ocicrypt::keyprovider::{DOCUMENT_BYTES_MAX, Provider};
use zeroize::Zeroizing;

use super::key::{KeyId, read_kek};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The broker's name for the key, where the encryption key does not say keyid=.
    #[arg(long)]
    key_id: Option<KeyId>,
    /// The key, 32 raw bytes, where the encryption key does not say keypath=.
    #[arg(long)]
    key_file: Option<PathBuf>,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut question = Zeroizing::new(Vec::with_capacity(64 * 1024));
        let cap = DOCUMENT_BYTES_MAX as u64 + 1;
        std::io::stdin()
            .lock()
            .take(cap)
            .read_to_end(&mut question)
            .context("read the question")?;
        let provider = Provider {
            kid: self.key_id.map(|kid| kid.to_string()),
            kek: self.key_file.as_deref().map(read_kek).transpose()?,
            read_key: &read_key,
        };
        let answer = provider.answer(&question)?;
        std::io::stdout()
            .lock()
            .write_all(&answer)
            .context("write the answer")
    }
}

fn read_key(path: &Path) -> Result<Key, String> {
    read_kek(path).map_err(|error| format!("{error:#}"))
}
