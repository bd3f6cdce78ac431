//! One layer's way from place to place, and what it has become there.

use ocicrypt::cipher::CipherError;
use ocicrypt::media_type::{self, Compression};

use super::{Progress, RecryptError, Report};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::Descriptor;
use crate::place::{BlobWriter, Place};
use crate::shown::shown;

/// One layer on its way.
pub(super) struct Way<'a> {
    pub(super) from: &'a Place,
    pub(super) to: &'a Place,
    pub(super) index: usize,
    pub(super) layer: &'a Descriptor,
    pub(super) report: &'a Report,
    /// Whether what comes out is to be compared with a digest of the longer hash.
    pub(super) needs_sha512: bool,
}

/// What a layer has become.
pub(super) struct Written {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) annotations: Vec<(String, String)>,
    /// Whether its bytes are others than they were.
    pub(super) is_changed: bool,
}

impl Way<'_> {
    /// Streams the layer through `change`, and gives the digests of what came out and the writer, not ended yet.
    pub(super) async fn stream(
        &self,
        mut change: impl FnMut(&mut [u8]) -> Result<(), CipherError>,
    ) -> Result<(BlobWriter, Digests), RecryptError> {
        let layer = self.index;
        (self.report)(Progress::Start {
            layer,
            size: self.layer.size,
        });
        let mut source = self.from.blob(&self.layer.digest, self.layer.size)?;
        let mut writer = self.to.start_blob().await?;
        let mut before = self.layer.digest.hasher();
        let mut sha256 = Hasher::new(Algorithm::Sha256);
        let mut sha512 = Hasher::new(Algorithm::Sha512);
        let mut size = 0;
        while let Some(piece) = source.next().await? {
            before.update(&piece);
            let mut piece: Vec<u8> = piece.into();
            change(&mut piece)?;
            sha256.update(&piece);
            if self.needs_sha512 {
                sha512.update(&piece);
            }
            writer.write(&piece).await?;
            size += piece.len() as u64;
            (self.report)(Progress::Advance {
                layer,
                bytes: piece.len() as u64,
            });
        }
        let found = before.finish();
        if found != self.layer.digest {
            return Err(RecryptError::Digest {
                expected: self.layer.digest.clone(),
                found,
            });
        }
        let sha512 = self.needs_sha512.then(|| sha512.finish());
        let sha256 = sha256.finish();
        Ok((
            writer,
            Digests {
                sha256,
                sha512,
                size,
            },
        ))
    }

    pub(super) fn done(&self) {
        (self.report)(Progress::Done { layer: self.index });
    }

    pub(super) fn plain_type(&self) -> Result<String, RecryptError> {
        media_type::oci(&self.layer.media_type).ok_or_else(|| RecryptError::LayerType {
            digest: self.layer.digest.clone(),
            media_type: self.layer.media_type.clone(),
        })
    }
    /// Compares a layer that is not compressed with what the configuration says of it.
    pub(super) fn check_content(
        &self,
        media_type: &str,
        digests: &Digests,
        diff_ids: &[String],
    ) -> Result<(), RecryptError> {
        let is_tar = media_type::parse(media_type)
            .is_some_and(|layer| layer.compression == Compression::None);
        match diff_ids.get(self.index) {
            Some(expected) if is_tar && !digests.have(expected) => Err(RecryptError::DiffId {
                layer: self.layer.digest.clone(),
                expected: shown(expected),
                found: digests.sha256.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// The digests of what came out.
pub(super) struct Digests {
    pub(super) sha256: Digest,
    sha512: Option<Digest>,
    size: u64,
}

impl Digests {
    /// Whether `text` is one of them.
    pub(super) fn have(&self, text: &str) -> bool {
        let expected = text.parse::<Digest>().ok();
        expected.is_some_and(|expected| {
            expected == self.sha256 || Some(&expected) == self.sha512.as_ref()
        })
    }

    pub(super) fn written(
        self,
        media_type: String,
        annotations: Vec<(String, String)>,
        is_changed: bool,
    ) -> Written {
        Written {
            media_type,
            digest: self.sha256,
            size: self.size,
            annotations,
            is_changed,
        }
    }
}
