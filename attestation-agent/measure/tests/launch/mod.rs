//! The digest of a launch, with what a test does not say as it mostly is, and its links by another hand.

use measure::snp::{CpuModel, Firmware, GuestFeatures, KernelHashes, Launch};
use sha2::{Digest, Sha384};

pub(crate) fn digest(
    firmware: &Firmware,
    kernel: Option<&KernelHashes>,
    model: &str,
    features: u64,
    vcpus: u32,
) -> String {
    let launch = Launch {
        firmware,
        kernel,
        cpu: &model.parse::<CpuModel>().unwrap(),
        features: GuestFeatures::new(features).unwrap(),
    };
    launch.digest(vcpus).unwrap().hex()
}

/// A link of the chain, by another hand: what is before, the content's digest, the kind, the address.
pub(crate) fn link(before: [u8; 48], content: [u8; 48], kind: u8, address: u64) -> [u8; 48] {
    let mut info = Sha384::new().chain_update(before).chain_update(content);
    info.update([0x70, 0, kind, 0, 0, 0, 0, 0]);
    info.update(address.to_le_bytes());
    info.finalize().into()
}

pub(crate) fn hash(page: &[u8]) -> [u8; 48] {
    Sha384::digest(page).into()
}
