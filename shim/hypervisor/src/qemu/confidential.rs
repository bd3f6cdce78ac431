//! What makes QEMU's machine a confidential guest: the object, the machine's words for it, and the
//! processor.
//!
//! The object is written as JSON, in which a socket's address and base64 need no escaping. Properties that
//! would say what is the default anyway are left out, so that a QEMU which has never heard of them is no
//! obstacle. Names are those of QEMU's `qapi/qom.json` (`SevSnpGuestProperties`, `TdxGuestProperties`).

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::tee::host::MemoryEncryption;
use crate::tee::{Confidential, QuoteService, Snp, TDX_ID_BYTES, Tdx};

/// Further words of `-machine`. The interrupt controller for devices is QEMU's: KVM's reads the guest.
pub(crate) const MACHINE: &str = ",kernel-irqchip=split,confidential-guest-support=tee";

/// The object that reads an IGVM file.
pub(crate) const IGVM: &str = "igvm-cfg";
/// The word of `-machine` for it.
pub(crate) const IGVM_MACHINE: &str = ",igvm-cfg=igvm";

/// What a guest is told of the bits by which its addresses are shorter: the C-bit is all that it loses. CPUID of
/// the host says how many the host loses (QEMU's `qemu-options.hx`; docs/decisions.md, 63).
const REDUCED_PHYS_BITS: u32 = 1;

/// Intel's service reached from the host itself (`VMADDR_CID_HOST`).
const HOST_CID: &str = "2";

/// The value of `-cpu`. Without the counters of performance, which the host would see and set.
pub(crate) fn cpu(wanted: &Confidential) -> String {
    match wanted {
        Confidential::Snp(snp) => format!("{},pmu=off", snp.cpu_model),
        // The module decides what a TD sees of the processor.
        Confidential::Tdx(_) => "host,pmu=off".to_owned(),
    }
}

/// The value of `-object`.
pub(crate) fn object(
    wanted: &Confidential,
    encryption: Option<MemoryEncryption>,
    has_igvm: bool,
) -> Value {
    let (kind, mut members) = match wanted {
        Confidential::Snp(snp) => ("sev-snp-guest", self::snp(snp, has_igvm)),
        Confidential::Tdx(tdx) => ("tdx-guest", self::tdx(tdx)),
    };
    members.insert("qom-type".to_owned(), kind.into());
    members.insert("id".to_owned(), "tee".into());
    if let (Confidential::Snp(_), Some(encryption)) = (wanted, encryption) {
        members.insert("cbitpos".to_owned(), encryption.c_bit.into());
        let reduced = REDUCED_PHYS_BITS.into();
        members.insert("reduced-phys-bits".to_owned(), reduced);
    }
    Value::Object(members)
}

/// The value of `-object` for an IGVM file.
pub(crate) fn igvm(path: &Path) -> Value {
    json!({"qom-type": IGVM, "id": "igvm", "file": path})
}

/// The properties that a QEMU must have for the object.
pub(crate) fn properties(wanted: &Confidential, has_igvm: bool) -> impl Iterator<Item = String> {
    let (members, more): (_, &[&str]) = match wanted {
        Confidential::Snp(snp) => (self::snp(snp, has_igvm), &["cbitpos", "reduced-phys-bits"]),
        Confidential::Tdx(tdx) => (self::tdx(tdx), &[]),
    };
    let more = more.iter().map(ToString::to_string);
    members.into_iter().map(|(name, _)| name).chain(more)
}

/// `kernel-hashes` makes the launch digest that of kernel, initramfs and command line too. An IGVM file
/// has to bring the page of hashes: QEMU looks for its place in firmware that it has loaded itself, and
/// would end where there is none.
fn snp(snp: &Snp, has_igvm: bool) -> Map<String, Value> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
    put("policy", snp.policy.into());
    if !has_igvm {
        put("kernel-hashes", true.into());
    }
    put("host-data", STANDARD.encode(snp.host_data).into());
    if let Some(id) = &snp.id_block {
        put("id-block", STANDARD.encode(id.block()).into());
        put("id-auth", STANDARD.encode(id.auth()).into());
        put("author-key-enabled", id.has_author().into());
    }
    if snp.vcek_disabled {
        put("vcek-disabled", true.into());
    }
    members
}

/// Without `sept-ve-disable` the host could bring about a fault in the guest's kernel at any place.
fn tdx(tdx: &Tdx) -> Map<String, Value> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
    put("sept-ve-disable", true.into());
    put("mrconfigid", STANDARD.encode(tdx.mrconfigid).into());
    for (name, id) in [
        ("mrowner", tdx.mrowner),
        ("mrownerconfig", tdx.mrownerconfig),
    ] {
        if id != [0; TDX_ID_BYTES] {
            put(name, STANDARD.encode(id).into());
        }
    }
    let socket = match &tdx.quotes {
        QuoteService::Vsock { port } => {
            json!({"type": "vsock", "cid": HOST_CID, "port": port.to_string()})
        }
        QuoteService::Unix(path) => json!({"type": "unix", "path": path}),
    };
    put("quote-generation-socket", socket);
    members
}
