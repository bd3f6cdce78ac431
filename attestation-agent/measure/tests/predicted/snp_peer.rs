//! The same launches as the `sev` crate, which others measure with, computes them.

use crate::launch;
use crate::measured_boot::kept_firmware;

use std::fs;

use measure::snp::{Firmware, KernelHashes};
use support::firmware;
use support::sev::measurement::{
    snp::{SnpMeasurementArgs, snp_calc_launch_digest},
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType},
};

const KERNEL: &[u8] = b"MZ and so on";
const INITRAMFS: &[u8] = &[7; 5000];

#[test]
fn every_shape_has_the_digest_that_the_sev_crate_computes() {
    agrees(&firmware::direct_boot(4), &[1, 2, 8, 64]);
}

#[test]
fn so_has_every_shape_with_the_firmware_that_starts_real_guests() {
    let Some(image) = kept_firmware("OVMF.amdsev.fd") else {
        return;
    };
    assert!(Firmware::parse(&image).unwrap().takes_hashes());
    agrees(&image, &[1, 4]);
}

/// Compares both for this firmware and these numbers of vCPUs, with kernel hashes and without.
fn agrees(image: &[u8], vcpus: &[u32]) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let ovmf = Firmware::parse(image).unwrap();
    let (image, kernel, initramfs) = (
        file("ovmf", image),
        file("kernel", KERNEL),
        file("initramfs", INITRAMFS),
    );
    let models = [
        ("EPYC-v4", CpuType::EpycV4),
        ("EPYC-Rome", CpuType::EpycRome),
        ("EPYC-Milan-v2", CpuType::EpycMilanV2),
        ("EPYC-Genoa", CpuType::EpycGenoa),
        ("EPYC-Turin", CpuType::EpycTurin),
    ];
    let boots = [
        None,
        Some((false, "")),
        Some((true, "quiet")),
        Some((true, "")),
    ];
    for (at, (name, model)) in models.iter().enumerate() {
        for boot in boots {
            let features = 1 + 0x20 * (at as u64 & 1);
            let hashes = boot.map(|(initramfs, line)| {
                let initramfs = initramfs.then_some(INITRAMFS);
                KernelHashes::new(KERNEL, initramfs, line).unwrap()
            });
            for &vcpus in vcpus {
                let ours = launch::digest(&ovmf, hashes.as_ref(), name, features, vcpus);
                let theirs = snp_calc_launch_digest(SnpMeasurementArgs {
                    vcpus,
                    vcpu_type: *model,
                    ovmf_file: image.clone(),
                    guest_features: GuestFeatures(features),
                    kernel_file: boot.map(|_| kernel.clone()),
                    initrd_file: boot.filter(|boot| boot.0).map(|_| initramfs.clone()),
                    append: boot.map(|boot| boot.1).filter(|line| !line.is_empty()),
                    ovmf_hash_str: None,
                    vmm_type: Some(VMMType::QEMU),
                });
                let theirs = theirs.unwrap().get_hex_ld();
                assert_eq!(ours, theirs, "{name}, {vcpus} vCPUs, {boot:?}");
            }
        }
    }
}
