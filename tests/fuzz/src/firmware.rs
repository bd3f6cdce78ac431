//! What an owner measures: a firmware or an IGVM file that somebody else built.

use measure::snp::{Firmware, Igvm, Vmm};
use support::{firmware, igvm};

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "measure_firmware",
        run: read,
        seeds: ends,
    },
    Target {
        name: "measure_igvm",
        run: read_igvm,
        seeds: igvm_files,
    },
];

const PAGE: usize = 4096;

/// All that is read is at the end of an image, which has whole pages.
fn read(data: &[u8]) {
    let mut image = vec![0; PAGE.saturating_sub(data.len())];
    image.extend(&data[data.len().saturating_sub(PAGE)..]);
    if let Ok(firmware) = Firmware::parse(&image) {
        let bytes: u64 = firmware
            .sections()
            .iter()
            .map(|section| section.bytes)
            .sum();
        assert!(bytes < 1 << 32, "sections of {bytes} bytes below 4 GiB");
    }
}

fn ends() -> Vec<Vec<u8>> {
    let end = |image: Vec<u8>| image[image.len() - 0x420..].to_vec();
    vec![
        end(firmware::direct_boot(1)),
        end(firmware::image(1, &[], &firmware::entries())),
        end(firmware::image(1, &firmware::SECTIONS, &[])),
    ]
}

/// The checksum is no obstacle: who wrote the file has made it.
fn read_igvm(data: &[u8]) {
    let mut file = data.to_vec();
    if file.len() > 24 {
        igvm::seal(&mut file);
    }
    for vmm in [Vmm::Qemu, Vmm::CloudHypervisor] {
        if let Ok(read) = Igvm::parse(&file, vmm) {
            assert!((1..=1 << 16).contains(&read.least_vcpus()));
        }
    }
}

fn igvm_files() -> Vec<Vec<u8>> {
    let mut file = igvm::Builder::snp(0x3_0000);
    file.pages(0xffff_f000, &firmware::direct_boot(1));
    file.page(0x80_d000, 1, 0, None).page(0x80_e000, 2, 0, None);
    file.area(0, 4096).insert(0, 0x81_0000);
    file.vcpu(0, igvm::REGISTERS, &igvm::reset(0x80_0f12));
    vec![
        file.file(),
        igvm::Builder::snp(0).page(0, 0, 0, None).file(),
    ]
}
