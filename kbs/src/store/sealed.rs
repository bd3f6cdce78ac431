//! Resources on their way out: their size is known before anything of them is in the clear.

use std::{sync::Arc, time::Duration};

use kbs_protocol::ResourcePath;
use zeroize::Zeroizing;

use super::{
    Store, StoreError,
    reader::Stored,
    resource::{key_place, place, sealer},
};

/// Between two looks whether a master key has become known, and how many there are.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 20;

/// A resource as it is kept: its size is known, and nothing of it is in the clear.
pub(crate) struct Sealed {
    path: String,
    stored: Arc<Stored>,
}

impl Sealed {
    pub(crate) fn version(&self) -> i64 {
        self.stored.version
    }

    /// A little more than it has in the clear.
    pub(crate) fn bytes(&self) -> usize {
        self.stored.sealed.len()
    }
}

impl Store {
    /// The newest version, as it is kept.
    pub(crate) async fn sealed(&self, path: &ResourcePath) -> Result<Option<Sealed>, StoreError> {
        let path = path.to_string();
        let stored = self.stored(&path).await?;
        Ok(stored.map(|stored| Sealed { path, stored }))
    }

    /// It in the clear.
    pub(crate) async fn open_sealed(
        &self,
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let Sealed { path, stored } = sealed;
        let place_of_key = key_place(path, stored.version);
        let mut opened = self.keys.unwrap(&place_of_key, &stored.wrapped);
        let mut looks = 0;
        // Another broker may wrap already with a key that was added a moment ago, and whose file is read
        // again in a moment.
        while opened.is_err() && looks < LOOKS && !self.keys.knows(&stored.wrapped.master) {
            tokio::time::sleep(LOOK).await;
            opened = self.keys.unwrap(&place_of_key, &stored.wrapped);
            looks += 1;
        }
        let key = opened?;
        Ok(sealer(&key)?.open(&place(path, stored.version), &stored.sealed)?)
    }

    /// Both at once.
    #[cfg(test)]
    pub(crate) async fn resource(
        &self,
        path: &ResourcePath,
    ) -> Result<Option<(i64, Zeroizing<Vec<u8>>)>, StoreError> {
        let Some(sealed) = self.sealed(path).await? else {
            return Ok(None);
        };
        Ok(Some((sealed.version(), self.open_sealed(&sealed).await?)))
    }
}
