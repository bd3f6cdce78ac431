//! What an owner measures: a firmware that somebody else built.

use measure::snp::Firmware;
use support::firmware;

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[Target {
    name: "measure_firmware",
    run: read,
    seeds: ends,
}];

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
