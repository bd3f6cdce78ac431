//! The collateral that Intel's provisioning service would answer for the platforms of a development
//! root (PCS API version 4).

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Ca, DevelopmentRoot, Enclave, SimError};
use crate::sim::x509::Validity;

/// What the service says, and until when.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Whose list of revoked platforms.
    pub ca: Ca,
    /// The kind of platform.
    pub fmspc: [u8; 6],
    /// When the TCB info holds.
    pub tcb_info: Validity,
    /// When the QE identity holds.
    pub qe_identity: Validity,
    /// When the list of revoked platforms holds.
    pub pck_crl: Validity,
    /// When the root's list holds.
    pub root_ca_crl: Validity,
    /// Levels of the platform, the highest first.
    pub levels: Vec<Level>,
    /// Levels of the TDX module by its lowest security version, the highest first.
    pub module_levels: Vec<QeLevel>,
    /// What the quoting enclave has to be; its `isv_svn` is not looked at.
    pub enclave: Enclave,
    /// Levels of the quoting enclave, the highest first.
    pub qe_levels: Vec<QeLevel>,
    /// Serial numbers of revoked platforms.
    pub revoked_platforms: Vec<u64>,
    /// Serial numbers of revoked authorities: 1 the root, 2 Platform CA, 3 Processor CA, 4 the signer.
    pub revoked_authorities: Vec<u64>,
}

/// What a platform at these security versions or above is worth.
#[derive(Debug, Clone)]
pub struct Level {
    /// Of the processor's parts.
    pub sgx: [u8; 16],
    /// Of the provisioning enclave.
    pub pce_svn: u16,
    /// Of the TDX module's parts.
    pub tdx: [u8; 16],
    /// When the level was defined.
    pub date: i64,
    /// What it is worth.
    pub status: Status,
    /// Why it is not worth more.
    pub advisories: Vec<String>,
}

/// What a quoting enclave or a TDX module at this security version or above is worth.
#[derive(Debug, Clone)]
pub struct QeLevel {
    /// The security version.
    pub svn: u8,
    /// When the level was defined.
    pub date: i64,
    /// What it is worth.
    pub status: Status,
}

/// Intel's names for what a level is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are Intel's")]
pub enum Status {
    UpToDate,
    SWHardeningNeeded,
    ConfigurationNeeded,
    ConfigurationAndSWHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    Revoked,
}

/// The service's answers in the JSON that verifiers read.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names are those of the JSON")]
pub struct Collateral {
    pub tcb_info_issuer_chain: String,
    pub tcb_info: String,
    #[serde(serialize_with = "hexadecimal")]
    pub tcb_info_signature: Vec<u8>,
    pub qe_identity_issuer_chain: String,
    pub qe_identity: String,
    #[serde(serialize_with = "hexadecimal")]
    pub qe_identity_signature: Vec<u8>,
    pub pck_crl_issuer_chain: String,
    #[serde(serialize_with = "hexadecimal")]
    pub pck_crl: Vec<u8>,
    #[serde(serialize_with = "hexadecimal")]
    pub root_ca_crl: Vec<u8>,
}

fn hexadecimal<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex::encode(bytes))
}

impl DevelopmentRoot {
    /// Signs the collateral.
    ///
    /// # Errors
    /// When a date cannot be written.
    pub fn collateral(&self, offer: &Offer) -> Result<Collateral, SimError> {
        let tcb_info = offer.tcb_info()?.to_string();
        let qe_identity = offer.qe_identity()?.to_string();
        Ok(Collateral {
            tcb_info_issuer_chain: self.signing_chain()?,
            tcb_info_signature: self.sign(&tcb_info)?.to_vec(),
            tcb_info,
            qe_identity_issuer_chain: self.signing_chain()?,
            qe_identity_signature: self.sign(&qe_identity)?.to_vec(),
            qe_identity,
            pck_crl_issuer_chain: self.ca_chain(offer.ca)?,
            pck_crl: self.crl(Some(offer.ca), offer.pck_crl, &offer.revoked_platforms)?,
            root_ca_crl: self.crl(None, offer.root_ca_crl, &offer.revoked_authorities)?,
        })
    }
}

impl Offer {
    fn tcb_info(&self) -> Result<Value, SimError> {
        let levels: Vec<_> = self
            .levels
            .iter()
            .map(Level::json)
            .collect::<Result<_, _>>()?;
        let module: Vec<_> = svn_levels(&self.module_levels)?;
        let signer = hex::encode_upper([0; 48]);
        let (attributes, mask) = (hex::encode([0; 8]), hex::encode_upper([0xff; 8]));
        Ok(json!({
            "id": "TDX",
            "version": 3,
            "issueDate": date(self.tcb_info.from)?,
            "nextUpdate": date(self.tcb_info.until)?,
            "fmspc": hex::encode_upper(self.fmspc),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tdxModule": {
                "mrsigner": signer,
                "attributes": attributes,
                "attributesMask": mask,
            },
            "tdxModuleIdentities": [{
                "id": "TDX_01",
                "mrsigner": signer,
                "attributes": attributes,
                "attributesMask": mask,
                "tcbLevels": module,
            }],
            "tcbLevels": levels,
        }))
    }

    fn qe_identity(&self) -> Result<Value, SimError> {
        let enclave = &self.enclave;
        let mut mask = [0xff; 16];
        mask[0] = 0xfb;
        Ok(json!({
            "id": "TD_QE",
            "version": 2,
            "issueDate": date(self.qe_identity.from)?,
            "nextUpdate": date(self.qe_identity.until)?,
            "tcbEvaluationDataNumber": 17,
            "miscselect": hex::encode_upper(enclave.misc_select),
            "miscselectMask": "FFFFFFFF",
            "attributes": hex::encode_upper(enclave.attributes),
            "attributesMask": hex::encode_upper(mask),
            "mrsigner": hex::encode_upper(enclave.mr_signer),
            "isvprodid": enclave.isv_prod_id,
            "tcbLevels": svn_levels(&self.qe_levels)?,
        }))
    }
}

impl Level {
    fn json(&self) -> Result<Value, SimError> {
        let parts = |svns: [u8; 16]| svns.map(|svn| json!({ "svn": svn }));
        Ok(json!({
            "tcb": {
                "sgxtcbcomponents": parts(self.sgx),
                "pcesvn": self.pce_svn,
                "tdxtcbcomponents": parts(self.tdx),
            },
            "tcbDate": date(self.date)?,
            "tcbStatus": self.status,
            "advisoryIDs": self.advisories,
        }))
    }
}

fn svn_levels(levels: &[QeLevel]) -> Result<Vec<Value>, SimError> {
    let level = |level: &QeLevel| {
        Ok(json!({
            "tcb": { "isvsvn": level.svn },
            "tcbDate": date(level.date)?,
            "tcbStatus": level.status,
        }))
    };
    levels.iter().map(level).collect()
}

fn date(seconds: i64) -> Result<String, SimError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .ok_or(SimError::Date(seconds))
}
