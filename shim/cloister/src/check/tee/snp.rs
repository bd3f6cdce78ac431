//! Whether the launch digest is the predicted one. The security processor compares it with the one in an ID
//! block and stops the launch where they differ (AMD 56860, 8.18, `BAD_MEASUREMENT`), so that a guest which
//! starts is the proof. The block is signed with a key that is made for it and forgotten.

use hypervisor::tee::IdBlock as Block;
use hypervisor::{CheckedSpec, Confidential};
use measure::snp::{
    CpuModel, Firmware, GuestFeatures, IdBlock, IdKey, KernelHashes, Launch, LaunchDigest,
};
use p384::elliptic_curve::Generate;
use p384::pkcs8::EncodePrivateKey;
use p384::pkcs8::LineEnding;

use super::launch::Guest;
use crate::measure::{INITRAMFS_BYTES, KERNEL_BYTES, read_file};

/// What kernels of hosts set: SNP alone, or with DebugSwap.
const FEATURES: [u64; 2] = [0x1, 0x21];

/// QEMU's word for the step at which the security processor compares.
const LAUNCH_FINISH: &str = "SNP_LAUNCH_FINISH";

/// Starts the guest with an ID block of the digest that is predicted for it.
pub(super) async fn predicted(guest: &Guest) -> Result<String, String> {
    let mut refusals = Vec::new();
    for bits in FEATURES {
        let digest = predict(guest, bits)?;
        match pinned(guest, digest)?.start().await {
            Ok(up) => {
                let digest = digest.hex();
                return Ok(format!("{digest} with guest features {bits:#x}; {up}"));
            }
            Err(refusal) => refusals.push(format!("{} ({bits:#x}): {refusal}", digest.hex())),
        }
    }
    Err(refusals.join("; "))
}

/// Starts it with an ID block of a digest that it cannot have; that must fail.
pub(super) async fn refused(guest: &Guest) -> Result<String, String> {
    match pinned(guest, LaunchDigest([0; 48]))?.start().await {
        Ok(up) => Err(format!("it starts all the same: {up}")),
        Err(failure) => refusal(failure),
    }
}

/// A start that fails for the digest fails when the launch ends, and nowhere else.
fn refusal(failure: String) -> Result<String, String> {
    match failure.contains(LAUNCH_FINISH) {
        true => Ok(failure),
        false => Err(format!(
            "it does not start, and QEMU does not say {LAUNCH_FINISH}, so that it is for something else: {failure}"
        )),
    }
}

fn predict(guest: &Guest, features: u64) -> Result<LaunchDigest, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let Some(Confidential::Snp(snp)) = &guest.confidential else {
        return Err("no SEV-SNP guest".to_owned());
    };
    let directory = tempfile::tempdir().map_err(|error| said(&error))?;
    let spec = guest.spec(directory.path());
    let read = |path, most| read_file(path, most).map_err(|error| format!("{error:#}"));
    let firmware = spec.firmware.as_deref().ok_or("no firmware")?;
    let firmware = read(firmware, measure::snp::FIRMWARE_BYTES)?;
    let firmware = Firmware::parse(&firmware).map_err(|error| said(&error))?;
    let kernel = read(&spec.kernel, KERNEL_BYTES)?;
    let initrd = spec.initrd.as_deref();
    let initrd = initrd.map(|path| read(path, INITRAMFS_BYTES));
    let initrd = initrd.transpose()?;
    let vcpus = spec.vcpus;
    let checked = CheckedSpec::try_from(spec).map_err(|error| said(&error))?;
    let line = hypervisor::qemu::measured_command_line(&checked);
    let hashes = KernelHashes::new(&kernel, initrd.as_deref(), &line);
    let hashes = hashes.map_err(|error| said(&error))?;
    let cpu: CpuModel = snp.cpu_model.parse().map_err(|error| said(&error))?;
    let launch = Launch {
        firmware: &firmware,
        kernel: Some(&hashes),
        cpu: &cpu,
        features: GuestFeatures::new(features).map_err(|error| said(&error))?,
    };
    launch.digest(vcpus).map_err(|error| said(&error))
}

/// The guest that starts with one digest only.
fn pinned(guest: &Guest, digest: LaunchDigest) -> Result<Guest, String> {
    let said = |error: &dyn std::fmt::Display| format!("ID block: {error}");
    let Some(Confidential::Snp(snp)) = &guest.confidential else {
        return Err("no SEV-SNP guest".to_owned());
    };
    let key = p384::SecretKey::try_generate().map_err(|error| said(&error))?;
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| said(&error))?;
    let key = IdKey::from_pem(&pem).map_err(|error| said(&error))?;
    let block = IdBlock::new(digest, snp.policy);
    let auth = block.sign(&key, None);
    let id = Block::new(&block.to_bytes(), auth.as_bytes()).map_err(|error| said(&error))?;
    let mut snp = snp.clone();
    snp.id_block = Some(id);
    let mut guest = guest.clone();
    guest.confidential = Some(Confidential::Snp(snp));
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_launch_is_a_refusal_of_the_digest() {
        let said = "the VM ended before it ran: QEMU ended by itself, QEMU's exit code is 1: \
                    qemu-system-x86_64: SNP_LAUNCH_FINISH ret=-5 fw_error=11 'Bad measurement'";
        assert_eq!(refusal(said.to_owned()), Ok(said.to_owned()));
        for other in [
            "start of qemu-system-x86_64: not found",
            "the agent does not say READY in time",
        ] {
            let error = refusal(other.to_owned()).unwrap_err();
            assert!(error.contains(other), "{error}");
        }
    }
}
