//! What a guest image weighs, and what measuring it would take on a TEE's machine: a model, for there is none here.
//!
//! Firmware measures a confidential guest's kernel and initramfs before they run: it copies them and hashes them, for
//! SEV-SNP by SHA-256 (to compare with the measured table of hashes), for TDX by SHA-384 (into RTMR1 and RTMR2). So
//! each byte of an image has its price at every start.

use std::path::Path;

use anyhow::{Context, Result};
use guest_image::image::{INITRAMFS, VMLINUX, VMLINUZ};
use guest_image::{Manifest, lz4};

use crate::figure::Figure;

/// The most MiB of kernel, agent and modules as they are installed, read by a VMM and measured.
const MAX_IMAGE: f64 = 25.0;
/// Bytes of an initramfs, unpacked.
const INITRAMFS_MAX: u64 = 1 << 30;
/// Cycles for a byte of SHA-256 and of SHA-384 by common instructions alone; those made for hashing would be faster.
/// Published in OpenSSL's `crypto/sha/asm/sha512-x86_64.pl`: the columns SHA256 and SHA512, whose rounds SHA-384 has,
/// of the rows "Ryzen" and "Skylake".
const SNP_CYCLES: f64 = 11.0;
const TDX_CYCLES: f64 = 7.25;
/// Cycles in a millisecond: a server's 3 GHz.
const CYCLES_IN_MS: f64 = 3e6;

/// The image's sizes, and the model.
///
/// # Errors
/// When the initramfs cannot be read.
pub fn measure(image: &Path, manifest: &Manifest) -> Result<Vec<Figure>> {
    let size = |name: &str| {
        let listed = manifest.outputs.iter().find(|file| file.name == name);
        listed
            .map(|file| file.size)
            .with_context(|| format!("the image has no {name}"))
    };
    let packed = std::fs::read(image.join(INITRAMFS)).context(INITRAMFS)?;
    let plain = lz4::unpack(&packed, INITRAMFS_MAX).context(INITRAMFS)?;
    let measured = size(VMLINUZ)?.saturating_add(size(INITRAMFS)?);
    let mib = |name: &str, bytes| Figure::new(name, float(bytes) / f64::from(1 << 20), "MiB");
    let model =
        |name: &str, cycles| Figure::new(name, float(measured) * cycles / CYCLES_IN_MS, "ms");
    Ok(vec![
        mib("guest.image_mib", measured).at_most(MAX_IMAGE),
        mib("guest.initramfs_mib", size(INITRAMFS)?),
        mib("guest.unpacked_mib", plain.len() as u64),
        mib("guest.vmlinux_mib", size(VMLINUX)?),
        model("measure.snp_model_ms", SNP_CYCLES),
        model("measure.tdx_model_ms", TDX_CYCLES),
    ])
}

/// To the KiB; no image has 4 TiB.
fn float(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)) * 1024.0
}
