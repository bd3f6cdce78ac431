//! Writing an archive: a layout is gathered beside the file, and packed at the end into one that takes the name in one
//! step. So an archive which stood there stays until the new one is whole.

use std::io::{self, BufWriter};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use super::{INDEX, LayoutError, MARKER, failed, publish};

/// The directory in which the files of an archive are gathered.
pub(super) fn stage(archive: &Path) -> Result<TempDir, LayoutError> {
    let parent = parent_of(archive);
    let made = tempfile::Builder::new()
        .prefix(".archive-")
        .tempdir_in(parent);
    made.map_err(|source| failed("make a directory in", parent, source))
}

/// Packs what was gathered.
pub(super) fn pack(stage: &Path, archive: &Path) -> Result<(), LayoutError> {
    let pack = || -> io::Result<()> {
        let file = NamedTempFile::new_in(parent_of(archive))?;
        let mut tar = tar::Builder::new(BufWriter::new(file));
        tar.mode(tar::HeaderMode::Deterministic);
        for name in [MARKER, INDEX] {
            tar.append_path_with_name(stage.join(name), name)?;
        }
        tar.append_dir_all("blobs", stage.join("blobs"))?;
        let file = tar.into_inner()?.into_inner();
        let file = file.map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        publish(file, archive)
    };
    pack().map_err(|source| failed("write", archive, source))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
