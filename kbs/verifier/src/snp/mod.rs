//! AMD SEV-SNP: a report, the certificate of the key that signed it, and what the report must bind.
//!
//! The chain down to the intermediates is checked once ([`Roots`]), the chip's certificate once per
//! chip and firmware where the caller keeps the [`Vek`], and the report each time. Checks that cost
//! nothing come first, so that a wrong certificate is named as such and not as a wrong signature.

mod claims;
mod crl;
mod failure;
mod role;
mod roots;
mod vek;

use evidence::snp::{Generation, Product, Report, SIGNED_BYTES, SnpEvidence, Tcb};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Deserializer};

pub use crl::{CRL_BYTES, Crl};
pub use failure::SnpFailure;
pub use role::Role;
pub use roots::{ROOTS_DIGEST_BYTES, Roots};
pub use vek::Vek;

use crate::{Bindings, Claims, Failure};

/// What the caller fetched beside the evidence.
#[derive(Debug, Clone, Copy, Default)]
pub struct Collateral<'a> {
    /// The key's certificate; without it, the evidence has to bring one.
    pub vek: Option<&'a Vek>,
    /// Lists of revoked certificates, of any products.
    pub crls: &'a [Crl],
}

/// What the operator decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether a verification needs a list of revoked certificates.
    pub crl: CrlRule,
    /// The generation to assume for reports of version 2, which do not name it. Without it they are
    /// refused.
    pub version_2: Option<Generation>,
}

/// Whether a list of revoked certificates has to be there. One that is there is always obeyed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CrlRule {
    /// A current list of the ARK has to be there.
    #[default]
    Required,
    /// Without one, the claim `crl` is `absent`.
    MayBeAbsent,
}

/// Reads evidence from its JSON.
///
/// # Errors
/// [`Failure::Malformed`] with the member that is wrong.
pub fn parse<'a>(roots: &Roots, evidence: impl Deserializer<'a>) -> Result<SnpEvidence, Failure> {
    SnpEvidence::deserialize(evidence).map_err(|error| Failure::Malformed {
        kind: roots.kind(),
        detail: crate::failure::shorten(&error.to_string()),
    })
}

/// The generation of the report's processor, which also tells what collateral to fetch.
///
/// # Errors
/// When the report has version 2 and the rules name no generation.
pub fn generation(report: &Report, rules: &Rules) -> Result<Generation, SnpFailure> {
    report
        .generation()
        .or(rules.version_2)
        .ok_or(SnpFailure::Version2)
}

/// Verifies evidence at `now`, in seconds since the Unix epoch. The kind in the claims is the roots'.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn verify(
    evidence: &SnpEvidence,
    roots: &Roots,
    collateral: Collateral<'_>,
    rules: &Rules,
    bindings: &Bindings,
    now: u64,
) -> Result<Claims, Failure> {
    let report = evidence.report();
    let generation = generation(report, rules)?;
    let product = generation.product();
    let brought;
    let vek = if let Some(vek) = collateral.vek {
        vek
    } else {
        brought = Vek::from_evidence(roots, product, evidence)?;
        &brought
    };
    if vek.product != product {
        let (expected, found) = (product, vek.product);
        return Err(SnpFailure::KeyProduct { expected, found }.into());
    }
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let crl = standing(roots, vek, collateral.crls, rules.crl, now)?;
    belongs(report, generation, vek)?;
    signature(evidence, vek)?;
    if report.vmpl != 0 {
        return Err(SnpFailure::Vmpl { found: report.vmpl }.into());
    }
    binds(report, bindings)?;
    let bound = report.host_data != [0; 32];
    Ok(Claims {
        kind: roots.kind(),
        evidence: claims::claims(report, generation, vek, crl),
        report_data: hex::encode(bindings.report_data),
        init_data: bound.then(|| hex::encode(report.host_data)),
    })
}

/// Dates and revocation of the whole chain.
fn standing(
    roots: &Roots,
    vek: &Vek,
    crls: &[Crl],
    rule: CrlRule,
    now: i64,
) -> Result<&'static str, SnpFailure> {
    let product: Product = vek.product;
    let line = roots.line(product)?;
    let issuer = line.issuer(vek.role());
    for standing in [&line.ark.standing, &issuer.standing, &vek.standing] {
        standing.at(now)?;
    }
    let mut checked = false;
    for crl in crls.iter().filter(|crl| crl.product == product) {
        if crl.issuer == Role::Ark {
            crl.clears(&issuer.standing, now)?;
            crl.clears(&line.ark.standing, now)?;
            checked = true;
        } else if crl.issuer == issuer.standing.role {
            crl.clears(&vek.standing, now)?;
        }
    }
    match (checked, rule) {
        (true, _) => Ok("checked"),
        (false, CrlRule::MayBeAbsent) => Ok("absent"),
        (false, CrlRule::Required) => Err(SnpFailure::CrlAbsent { product }),
    }
}

/// That the certificate is the one of the key which the report names.
fn belongs(report: &Report, generation: Generation, vek: &Vek) -> Result<(), SnpFailure> {
    if report.key_info.signature_masked()
        || report.key_info.signing_key() == evidence::snp::SigningKey::None
    {
        return Err(SnpFailure::Unsigned);
    }
    if !vek.role().signs_as(report.key_info.signing_key()) {
        return Err(SnpFailure::SigningKey { found: vek.role() });
    }
    if let Some(hardware) = vek.hardware_id() {
        if report.chip_id == [0; 64] {
            return Err(SnpFailure::ChipMasked);
        }
        let (id, padding) = report.chip_id.split_at(generation.chip_id_bytes());
        if id != hardware || padding.iter().any(|byte| *byte != 0) {
            return Err(SnpFailure::ChipId {
                expected: hex::encode(hardware),
                found: hex::encode(report.chip_id),
            });
        }
    }
    same_tcb(vek.tcb, report.reported_tcb, generation)
}

fn same_tcb(certificate: Tcb, report: Tcb, generation: Generation) -> Result<(), SnpFailure> {
    let fmc = |tcb: Tcb| generation.has_fmc().then_some(tcb.fmc).flatten();
    let parts = [
        ("reported_tcb_fmc", fmc(certificate), fmc(report)),
        (
            "reported_tcb_bootloader",
            Some(certificate.bootloader),
            Some(report.bootloader),
        ),
        ("reported_tcb_tee", Some(certificate.tee), Some(report.tee)),
        ("reported_tcb_snp", Some(certificate.snp), Some(report.snp)),
        (
            "reported_tcb_microcode",
            Some(certificate.microcode),
            Some(report.microcode),
        ),
    ];
    let show = |part: Option<u8>| part.map_or_else(|| "none".to_owned(), |part| part.to_string());
    for (part, expected, found) in parts {
        if expected != found {
            let (expected, found) = (show(expected), show(found));
            return Err(SnpFailure::Tcb {
                part,
                expected,
                found,
            });
        }
    }
    Ok(())
}

fn signature(evidence: &SnpEvidence, vek: &Vek) -> Result<(), SnpFailure> {
    const ECDSA_P384_SHA384: u32 = 1;
    let report = evidence.report();
    if report.sig_algo != ECDSA_P384_SHA384 {
        let found = report.sig_algo;
        return Err(SnpFailure::Algorithm { found });
    }
    let fixed = report.signature.fixed().ok_or(SnpFailure::Signature)?;
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &vek.point)
        .verify(&evidence.bytes()[..SIGNED_BYTES], &fixed)
        .map_err(|_| SnpFailure::Signature)
}

fn binds(report: &Report, bindings: &Bindings) -> Result<(), Failure> {
    let mut expected = [0; 64];
    expected[..bindings.report_data.len()].copy_from_slice(&bindings.report_data);
    if report.report_data != expected {
        return Err(Failure::ReportData {
            expected: hex::encode(expected),
            found: hex::encode(report.report_data),
        });
    }
    let sent = bindings.init_data.as_ref().map(measure::host_data);
    match sent {
        Some(sent) if sent != report.host_data => Err(Failure::InitData {
            bound: hex::encode(report.host_data),
            sent: hex::encode(sent),
        }),
        _ => Ok(()),
    }
}
