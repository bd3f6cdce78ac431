//! A container's OCI specification: read from the bundle, grouped into a pod, sized, and made into
//! what the guest gets.

pub mod amend;
pub mod cri;
pub mod group;
pub mod oci;
pub mod pod;
pub mod pod_name;
pub mod proto;
pub mod refuse;
pub mod seccomp;
pub mod size;
pub mod users;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use oci::Spec;

/// The largest `config.json` that is read. containerd's own have some 10 KiB.
pub(crate) const MAX_SPEC: u64 = 16 * 1024 * 1024;

/// Reads the specification of a bundle.
///
/// # Errors
/// As the file cannot be read, is too large, or is not the JSON of a specification.
pub fn read(bundle: &Path) -> io::Result<Spec> {
    let path = bundle.join("config.json");
    let explain = |cause: &dyn std::fmt::Display, kind| {
        io::Error::new(kind, format!("{}: {cause}", path.display()))
    };
    let mut text = Vec::new();
    let file = File::open(&path).map_err(|error| explain(&error, error.kind()))?;
    file.take(MAX_SPEC + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_SPEC) {
        return Err(explain(
            &format!("has more than {MAX_SPEC} bytes"),
            io::ErrorKind::InvalidData,
        ));
    }
    serde_json::from_slice(&text).map_err(|error| explain(&error, io::ErrorKind::InvalidData))
}
