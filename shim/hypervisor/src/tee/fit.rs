//! What of a VM does not go together with being a confidential guest.

use super::{Confidential, MAX_MODEL, Unfit, check_policy};
use crate::spec::{Accel, Machine, VmSpec, Vsock};

pub(crate) fn check(spec: &VmSpec) -> Result<(), Unfit> {
    check_igvm(spec)?;
    let Some(confidential) = &spec.confidential else {
        return Ok(());
    };
    let wrong = [
        (
            spec.machine != Machine::Q35,
            "has a q35 machine: set machine_type to \"q35\"",
        ),
        (
            spec.accel == Accel::Tcg,
            "needs KVM: set accel to \"auto\" or \"kvm\"",
        ),
        (
            spec.growth.is_some(),
            "keeps the size that was measured: it does not grow",
        ),
        (
            spec.reclaims,
            "gives no memory back: turn reclaim_guest_freed_memory off",
        ),
        (
            spec.hot_nics,
            "takes no network card later: leave hot cards out",
        ),
        (
            spec.shared_fs.is_some(),
            "shares no directory of the host: set shared_fs to \"none\"",
        ),
        (
            spec.vsock == Vsock::Kernel,
            "has the vsock device of this process: the kernel's ports may change its command line",
        ),
        (
            spec.firmware.is_none() && spec.igvm.is_none(),
            "starts with firmware that was built for it: set firmware to OVMF for SEV-SNP or TDX",
        ),
        (
            spec.kernel_params.iter().any(|param| is_eager(param)),
            "accepts its memory as it comes to use it: take accept_memory=eager out of kernel_params",
        ),
    ];
    if let Some((_, reason)) = wrong.iter().find(|(is_wrong, _)| *is_wrong) {
        return Err(Unfit::Shape { reason });
    }
    let Confidential::Snp(snp) = confidential else {
        return Ok(());
    };
    check_policy(snp.policy)?;
    if !crate::spec::is_plain_word(&snp.cpu_model, MAX_MODEL) {
        return Err(Unfit::Model {
            model: snp.cpu_model.clone(),
        });
    }
    match &snp.id_block {
        Some(id) if id.policy() != snp.policy => Err(Unfit::Policy {
            policy: snp.policy,
            reason: "is not the one that was signed in the ID block: the firmware would refuse the launch",
        }),
        _ => Ok(()),
    }
}

/// Whether the guest's kernel would accept all memory before it starts a program. To the kernel `-` and `_` are
/// one in a parameter's name, and quotes none of its letters.
fn is_eager(param: &str) -> bool {
    param.replace('"', "").replace('-', "_") == "accept_memory=eager"
}

/// What QEMU would refuse of a guest with an IGVM file, or do in another way than was asked for.
fn check_igvm(spec: &VmSpec) -> Result<(), Unfit> {
    let reason = match &spec.confidential {
        _ if spec.igvm.is_none() => return Ok(()),
        None => "is for SEV-SNP guests: set tee to \"snp\", or take igvm out",
        Some(Confidential::Tdx(_)) => {
            "starts SEV-SNP guests: QEMU loads none into a TD, so name firmware in place of igvm"
        }
        Some(Confidential::Snp(_)) if spec.firmware.is_some() => {
            "holds the firmware, and QEMU takes no second one: take firmware or igvm out"
        }
        Some(Confidential::Snp(snp)) if snp.id_block.is_some() => {
            "brings its ID block along, and QEMU drops any other: take snp_id_block out"
        }
        Some(Confidential::Snp(_)) => return Ok(()),
    };
    Err(Unfit::Igvm { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_accepted_eagerly_where_the_kernel_reads_it_so() {
        for eager in ["accept_memory=eager", "accept-memory=\"eager\""] {
            assert!(is_eager(eager), "{eager}");
        }
        for lazy in ["accept_memory=lazy", "accept_memory=", "eager"] {
            assert!(!is_eager(lazy), "{lazy}");
        }
    }
}
