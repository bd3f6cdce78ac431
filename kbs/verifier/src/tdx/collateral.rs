//! Intel's collateral, read and checked once for all the platforms of its kind.

use std::sync::Arc;

use dcap_qvl::{QeIdentity, QuoteCollateralV3, TcbInfo};

use super::{
    Needs, Parts, Roots, TdxFailure,
    certificate::{Certificate, Crl, Signed, chain, form},
    document::{Document, Period, seconds},
    known::{Known, der},
    needs::Ca,
};

/// Collateral whose signatures were checked. Dates are judged in each verification, so this may be
/// kept until [`valid_until`](Self::valid_until).
#[derive(Debug, Clone)]
pub struct Collateral {
    pub(super) root: Certificate,
    pub(super) issuer: Certificate,
    pub(super) needs: Needs,
    pub(super) tcb_info: TcbInfo,
    pub(super) qe_identity: QeIdentity,
    pub(super) pck_crl: Crl,
    /// What is given to `dcap-qvl` each time.
    pub(super) whole: QuoteCollateralV3,
    pub(super) known: Arc<Known>,
    periods: Vec<Period>,
}

impl Collateral {
    /// Reads collateral and checks all of its signatures and revocations.
    ///
    /// # Errors
    /// Names the document that is wrong.
    pub fn prepare(roots: &Roots, parts: Parts) -> Result<Self, TdxFailure> {
        let root = &roots.root;
        let mut known = Known::default();
        let root_crl = Crl::parse(Document::RootCrl, &parts.root_ca_crl)?;
        known.remember(root, root_crl.issued_by(root)?);
        root_crl.clears(root)?;
        let mut below = |document, pem: &str| {
            let certificate = under(root, document, pem)?;
            known.remember(root, certificate.issued_by(root)?);
            root_crl.clears(&certificate)?;
            Ok::<_, TdxFailure>(certificate)
        };
        let tcb_signer = below(Document::TcbSigner, &parts.tcb_info_issuer_chain)?;
        let qe_signer = below(Document::QeSigner, &parts.qe_identity_issuer_chain)?;
        let issuer = below(Document::PckCa, &parts.pck_crl_issuer_chain)?;
        let pck_crl = Crl::parse(Document::PckCrl, &parts.pck_crl)?;
        known.remember(&issuer, pck_crl.issued_by(&issuer)?);
        let signed = document(
            &tcb_signer,
            Document::TcbInfo,
            &parts.tcb_info,
            &parts.tcb_info_signature,
        )?;
        known.remember(&tcb_signer, &signed);
        let signed = document(
            &qe_signer,
            Document::QeIdentity,
            &parts.qe_identity,
            &parts.qe_identity_signature,
        )?;
        known.remember(&qe_signer, &signed);
        let tcb_info = tcb_info(&parts.tcb_info)?;
        let qe_identity = qe_identity(&parts.qe_identity)?;
        let periods = vec![
            period(
                Document::TcbInfo,
                &tcb_info.issue_date,
                &tcb_info.next_update,
            )?,
            period(
                Document::QeIdentity,
                &qe_identity.issue_date,
                &qe_identity.next_update,
            )?,
            pck_crl.period,
            root_crl.period,
            tcb_signer.period,
            qe_signer.period,
            issuer.period,
            root.period,
        ];
        Ok(Self {
            needs: Needs {
                fmspc: fmspc(&tcb_info)?,
                ca: ca(&issuer)?,
            },
            root: root.clone(),
            issuer,
            tcb_info,
            qe_identity,
            pck_crl,
            whole: whole(parts),
            known: Arc::new(known),
            periods,
        })
    }

    /// The first second at which a part of it no longer holds, since the Unix epoch.
    #[must_use]
    pub fn valid_until(&self) -> i64 {
        let until = self.periods.iter().map(|period| period.until);
        until.min().unwrap_or(i64::MIN)
    }

    /// The platforms that it is for.
    #[must_use]
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// That all of it holds.
    pub(super) fn at(&self, now: i64) -> Result<(), TdxFailure> {
        self.periods.iter().try_for_each(|period| period.at(now))
    }
}

/// The certificate that a chain of two begins with; the other has to be the prepared root.
fn under(root: &Certificate, document: Document, pem: &str) -> Result<Certificate, TdxFailure> {
    let [der, above] = &chain(document, pem.as_bytes())?[..] else {
        return Err(form(
            document,
            "its chain is not a certificate and its root",
        ));
    };
    if *above != root.der {
        return Err(TdxFailure::ForeignRoot { document });
    }
    Certificate::parse(document, der)
}

fn document(
    signer: &Certificate,
    document: Document,
    text: &str,
    signature: &[u8],
) -> Result<Signed, TdxFailure> {
    let signed = der(signature)
        .map(|signature| Signed {
            message: text.as_bytes().to_vec(),
            signature,
        })
        .filter(|signed| signer.verifies(&signed.message, &signed.signature));
    let issuer = signer.document();
    signed.ok_or(TdxFailure::Chain { document, issuer })
}

fn tcb_info(text: &str) -> Result<TcbInfo, TdxFailure> {
    let document = Document::TcbInfo;
    let info: TcbInfo =
        serde_json::from_str(text).map_err(|_| form(document, "it is not a TCB info in JSON"))?;
    if info.id != "TDX" || info.version != 3 {
        return Err(form(document, "it is not of TDX and version 3"));
    }
    Ok(info)
}

fn qe_identity(text: &str) -> Result<QeIdentity, TdxFailure> {
    let document = Document::QeIdentity;
    let identity: QeIdentity = serde_json::from_str(text)
        .map_err(|_| form(document, "it is not a QE identity in JSON"))?;
    if identity.id != "TD_QE" || !matches!(identity.version, 2 | 3) {
        return Err(form(document, "it is not of TDX and version 2 or 3"));
    }
    Ok(identity)
}

fn period(document: Document, from: &str, until: &str) -> Result<Period, TdxFailure> {
    match (seconds(from), seconds(until)) {
        (Some(from), Some(until)) => Ok(Period {
            document,
            from,
            until,
        }),
        _ => Err(form(document, "its dates cannot be read")),
    }
}

fn fmspc(info: &TcbInfo) -> Result<[u8; 6], TdxFailure> {
    let mut fmspc = [0; 6];
    hex::decode_to_slice(&info.fmspc, &mut fmspc)
        .map_err(|_| form(Document::TcbInfo, "its FMSPC is not six bytes"))?;
    Ok(fmspc)
}

fn ca(issuer: &Certificate) -> Result<Ca, TdxFailure> {
    Ca::of_name(&issuer.subject_name).ok_or(form(
        Document::PckCa,
        "it is no PCK Platform CA or PCK Processor CA",
    ))
}

/// What `dcap-qvl` reads each time. The root is its anchor already, so chains are cut before it.
fn whole(parts: Parts) -> QuoteCollateralV3 {
    let first = |mut chain: String| {
        const END: &str = "-----END CERTIFICATE-----";
        if let Some(at) = chain.find(END) {
            chain.truncate(at + END.len());
        }
        chain.push('\n');
        chain
    };
    QuoteCollateralV3 {
        pck_crl_issuer_chain: parts.pck_crl_issuer_chain,
        root_ca_crl: parts.root_ca_crl,
        pck_crl: parts.pck_crl,
        tcb_info_issuer_chain: first(parts.tcb_info_issuer_chain),
        tcb_info: parts.tcb_info,
        tcb_info_signature: parts.tcb_info_signature,
        qe_identity_issuer_chain: first(parts.qe_identity_issuer_chain),
        qe_identity: parts.qe_identity,
        qe_identity_signature: parts.qe_identity_signature,
        pck_certificate_chain: None,
    }
}
