//! Which part of a quote was wrong, once `dcap-qvl` has refused it.
//!
//! The verdict is never made here. These checks repeat its own, each with a name, and run only where
//! it said no; when all of them pass, its text is what the owner gets.

use dcap_qvl::{SvnComponent, TcbLevel, TcbStatus};
use evidence::tdx::{Body, INTEL_QE, QeReport, Quote, TdxEvidence};
use ring::digest::{SHA256, digest};

use super::{Collateral, TdxFailure, document::Document, known::der, needs::Platform};

/// The first part that is wrong.
pub(super) fn cause(
    evidence: &TdxEvidence,
    collateral: &Collateral,
    now: i64,
    said: &str,
) -> TdxFailure {
    let named = || {
        let quote = evidence.quote();
        vendor(quote)?;
        let platform = Platform::of(quote)?;
        chain(&platform, collateral, now)?;
        signatures(quote, &platform)?;
        enclave(&quote.qe_report, collateral)?;
        module(&quote.body, collateral)?;
        levels(quote, &platform, collateral)?;
        attributes(&quote.body)
    };
    match named() {
        Err(cause) => cause,
        Ok(()) => TdxFailure::Refused(crate::failure::shorten(said)),
    }
}

fn vendor(quote: &Quote) -> Result<(), TdxFailure> {
    let found = quote.header.vendor_id;
    if found == INTEL_QE {
        return Ok(());
    }
    Err(TdxFailure::Vendor {
        found: hex::encode(found),
    })
}

fn chain(platform: &Platform, collateral: &Collateral, now: i64) -> Result<(), TdxFailure> {
    let document = Document::Pck;
    if platform.root != collateral.root.der {
        return Err(TdxFailure::ForeignRoot { document });
    }
    let needs = collateral.needs;
    if platform.ca != needs.ca {
        let (expected, found) = (platform.ca, needs.ca);
        return Err(TdxFailure::OtherCa { expected, found });
    }
    if platform.issuer != collateral.issuer.der {
        return Err(TdxFailure::Chain {
            document: Document::PckCa,
            issuer: Document::Root,
        });
    }
    platform.leaf.issued_by(&collateral.issuer)?;
    platform.leaf.period.at(now)?;
    collateral.pck_crl.clears(&platform.leaf)?;
    if platform.extension.fmspc != needs.fmspc {
        return Err(TdxFailure::Fmspc {
            expected: hex::encode(platform.extension.fmspc),
            found: hex::encode(needs.fmspc),
        });
    }
    Ok(())
}

fn signatures(quote: &Quote, platform: &Platform) -> Result<(), TdxFailure> {
    let report = quote.qe_report.to_bytes();
    let by_platform = der(&quote.qe_report_signature)
        .is_some_and(|signature| platform.leaf.verifies(&report, &signature));
    if !by_platform {
        return Err(TdxFailure::QeSignature);
    }
    let bound = [&quote.attestation_key[..], &quote.auth_data].concat();
    if !quote
        .qe_report
        .report_data
        .starts_with(digest(&SHA256, &bound).as_ref())
    {
        return Err(TdxFailure::QeBinding);
    }
    let mut point = vec![4];
    point.extend(quote.attestation_key);
    let key =
        ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
    key.verify(&quote.signed_bytes(), &quote.signature)
        .map_err(|_| TdxFailure::Signature)
}

fn enclave(report: &QeReport, collateral: &Collateral) -> Result<(), TdxFailure> {
    let identity = &collateral.qe_identity;
    let masked = |bytes: &[u8], mask: &[u8]| {
        let masked = bytes.iter().zip(mask).map(|(byte, mask)| byte & mask);
        hex::encode(masked.collect::<Vec<_>>())
    };
    let select = |bytes| masked(bytes, &identity.miscselect_mask);
    let attributes = |bytes| masked(bytes, &identity.attributes_mask);
    for (part, expected, found) in [
        (
            "qe_mrsigner",
            hex::encode(identity.mrsigner),
            hex::encode(report.mr_signer),
        ),
        (
            "qe_isvprodid",
            identity.isvprodid.to_string(),
            report.isv_prod_id.to_string(),
        ),
        (
            "qe_miscselect",
            select(&identity.miscselect),
            select(&report.misc_select),
        ),
        (
            "qe_attributes",
            attributes(&identity.attributes),
            attributes(&report.attributes),
        ),
        (
            "qe_debug",
            "false".to_owned(),
            (report.attributes[0] & 2 != 0).to_string(),
        ),
    ] {
        if expected != found {
            return Err(TdxFailure::QeIdentity {
                part,
                expected,
                found,
            });
        }
    }
    let part = "quoting enclave";
    let level = identity
        .tcb_levels
        .iter()
        .find(|level| report.isv_svn >= level.tcb.isvsvn)
        .ok_or(TdxFailure::NoLevel { part })?;
    alive(part, level.tcb_status)
}

fn module(body: &Body, collateral: &Collateral) -> Result<(), TdxFailure> {
    let info = &collateral.tcb_info;
    let part = "TDX module";
    let Some(base) = &info.tdx_module else {
        return Err(TdxFailure::NoLevel { part });
    };
    let identity = info
        .tdx_module_identity(&body.tcb_svn)
        .map_err(|_| TdxFailure::NoLevel { part })?;
    let (signer, attributes, mask) = identity.map_or(
        (&base.mrsigner, &base.attributes, &base.attributes_mask),
        |identity| {
            (
                &identity.mrsigner,
                &identity.attributes,
                &identity.attributes_mask,
            )
        },
    );
    let masked = |bytes: &[u8; 8]| {
        let mask = hex::decode(mask).unwrap_or_default();
        hex::encode(
            bytes
                .iter()
                .zip(mask)
                .map(|(byte, mask)| byte & mask)
                .collect::<Vec<_>>(),
        )
    };
    for (part, expected, found) in [
        ("mrsigner_seam", signer, hex::encode(body.mrsigner_seam)),
        ("seam_attributes", attributes, masked(&body.seam_attributes)),
    ] {
        if !expected.eq_ignore_ascii_case(&found) {
            let expected = expected.clone();
            return Err(TdxFailure::Module {
                part,
                expected,
                found,
            });
        }
    }
    let Some(identity) = identity else {
        return Ok(());
    };
    let level = identity
        .tcb_levels
        .iter()
        .find(|level| level.shortfall(&body.tcb_svn).is_none())
        .ok_or(TdxFailure::NoLevel { part })?;
    alive(part, level.tcb_status)
}

fn levels(quote: &Quote, platform: &Platform, collateral: &Collateral) -> Result<(), TdxFailure> {
    let pck = &platform.extension;
    let body = &quote.body;
    let current = body.tdx15.as_ref().map(|more| &more.tee_tcb_svn2);
    for svn in [Some(&body.tcb_svn), current].into_iter().flatten() {
        let short = |level: &TcbLevel| level.shortfalls(&pck.cpu_svn, pck.pce_svn, Some(svn));
        let level = collateral
            .tcb_info
            .tcb_levels
            .iter()
            .find(|level| short(level).is_ok_and(|short| short.is_empty()));
        let Some(level) = level else {
            let lowest = collateral.tcb_info.tcb_levels.last().map(short);
            let part = match lowest.and_then(Result::ok).as_deref() {
                Some([first, ..]) => match first.component {
                    SvnComponent::Sgx(_) => "platform's processor",
                    SvnComponent::PceSvn => "platform's provisioning enclave",
                    SvnComponent::Tdx(_) | SvnComponent::TdxModuleIsvSvn => "TDX module",
                },
                _ => "platform",
            };
            return Err(TdxFailure::NoLevel { part });
        };
        alive("platform", level.tcb_status)?;
    }
    Ok(())
}

fn alive(part: &'static str, status: TcbStatus) -> Result<(), TdxFailure> {
    if status == TcbStatus::Revoked {
        return Err(TdxFailure::TcbRevoked { part });
    }
    Ok(())
}

/// What no policy may allow: see [`super::verify`].
pub(super) fn attributes(body: &Body) -> Result<(), TdxFailure> {
    /// Bits 4 to 6 of the group whose bits all make a TD untrusted (348551, "TD ATTRIBUTES").
    const PROFILING: u64 = 0x70;
    let attributes = body.td_attributes;
    let servants = body
        .tdx15
        .as_ref()
        .is_some_and(|more| more.mr_servicetd != [0; 48]);
    let wrong = [
        (
            attributes.0 & PROFILING != 0 && !attributes.debug(),
            "the host profiles it",
        ),
        (attributes.migratable(), "it can be migrated"),
        (
            !attributes.septve_disable(),
            "the host can take its pages away unnoticed: SEPT_VE_DISABLE is off",
        ),
        (servants, "a service TD is bound to it"),
    ];
    match wrong.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, detail)) => Err(TdxFailure::Attributes {
            found: hex::encode(attributes.0.to_le_bytes()),
            detail,
        }),
        None => Ok(()),
    }
}
