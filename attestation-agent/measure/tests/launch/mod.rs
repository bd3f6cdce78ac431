//! The digest of a launch, with what a test does not say as it mostly is.

use measure::snp::{CpuModel, Firmware, GuestFeatures, KernelHashes, Launch};

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
