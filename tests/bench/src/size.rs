//! What a guest image weighs, and what measuring it would take on a TEE's machine: a model, for there is none here.
//!
//! Firmware measures a confidential guest's kernel and initramfs before they run: it copies them and hashes them, for
//! SEV-SNP by SHA-256 (to compare with the measured table of hashes), for TDX by SHA-384 (into RTMR1 and RTMR2). So
//! each byte of an image has its price at every start.
//!
//! The firmware itself is measured before it runs: for SEV-SNP by the security processor, to which each page is handed
//! by LAUNCH_UPDATE, for TDX by the module, which hashes 256 bytes at each MR.EXTEND.

use std::path::Path;

use anyhow::{Context, Result};
use guest_image::image::{INITRAMFS, VMLINUX, VMLINUZ};
use guest_image::{Manifest, lz4};
use measure::{snp, tdx};
use support::product;

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
const PAGE: u64 = 4096;
/// Milliseconds for a page by LAUNCH_UPDATE. Published in "SEVeriFast: Minimizing the root of trust for fast startup of
/// SEV microVMs" (ASPLOS 2024, doi 10.1145/3620665.3640424), in its figure of pre-encryption under SEV-SNP, which is
/// linear: 256.65 ms for OVMF of 1 MiB.
const SNP_PAGE_MS: f64 = 256.65 / 256.0;
/// Bytes that TDX hashes with each 256: a block with their address before them (Intel 348549, TDH.MR.EXTEND).
const EXTENDED: u64 = 128 + 256;
/// Bytes that it hashes for a page that is added (TDH.MEM.PAGE.ADD).
const ADDED: u64 = 128;
/// Where `.ci/setup` leaves firmware for both.
const FIRMWARE: &str = ".cache/qemu/testing/root/usr/share/ovmf";

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
    let mut figures = vec![
        mib("guest.image_mib", measured).at_most(MAX_IMAGE),
        mib("guest.initramfs_mib", size(INITRAMFS)?),
        mib("guest.unpacked_mib", plain.len() as u64),
        mib("guest.vmlinux_mib", size(VMLINUX)?),
        model("measure.snp_model_ms", SNP_CYCLES),
        model("measure.tdx_model_ms", TDX_CYCLES),
    ];
    let kept = product::top().join(FIRMWARE);
    if kept.is_dir() {
        figures.push(snp_firmware(&kept.join("OVMF.amdsev.fd"))?);
        figures.push(tdx_firmware(&kept.join("OVMF.inteltdx.ms.fd"))?);
    } else {
        eprintln!("no {FIRMWARE}: measuring firmware is left out (`.ci/setup` fetches it)");
    }
    Ok(figures)
}

/// The model for firmware of SEV-SNP: its image, and what its metadata asks for.
fn snp_firmware(path: &Path) -> Result<Figure> {
    let image = read(path)?;
    let firmware = snp::Firmware::parse(&image).with_context(|| path.display().to_string())?;
    let sections: u64 = firmware.sections().iter().map(|it| it.bytes).sum();
    let pages = (image.len() as u64 + sections) / PAGE;
    let ms = count(pages) * SNP_PAGE_MS;
    Ok(Figure::new("measure.snp_firmware_model_ms", ms, "ms"))
}

/// The model for firmware of TDX: the hashing alone, without the way into the module for each call.
fn tdx_firmware(path: &Path) -> Result<Figure> {
    let image = read(path)?;
    let firmware =
        tdx::Firmware::parse(&image, tdx::Vmm::Qemu).with_context(|| path.display().to_string())?;
    let hashed = firmware.sections().iter().map(|section| {
        let extended = if section.measured { section.bytes } else { 0 };
        section.bytes / PAGE * ADDED + extended / 256 * EXTENDED
    });
    let ms = float(hashed.sum()) * TDX_CYCLES / CYCLES_IN_MS;
    Ok(Figure::new("measure.tdx_firmware_model_ms", ms, "ms"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Exact: no firmware has 2³² pages.
fn count(pages: u64) -> f64 {
    f64::from(u32::try_from(pages).unwrap_or(u32::MAX))
}

/// To the KiB; no image has 4 TiB.
fn float(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)) * 1024.0
}
