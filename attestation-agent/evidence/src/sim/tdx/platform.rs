//! A platform, its quoting enclave, and the quotes that it signs.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{
    Ca, DevelopmentRoot, SimError,
    der::Certificate,
    root::{Key, NAMES, pem},
};
use crate::{
    sim::x509::Validity,
    tdx::{AUTH_DATA_BYTES, Body, Header, QeReport, Quote, SIGNATURE_BYTES, TdxEvidence},
};

/// A platform, and the security versions that its certificate is for.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Who issues its certificate.
    pub ca: Ca,
    /// The platform's identity at its provisioning service.
    pub ppid: [u8; 16],
    /// The kind of platform, by which collateral is found.
    pub fmspc: [u8; 6],
    /// Security versions of the processor's parts.
    pub cpu_svn: [u8; 16],
    /// Security version of the provisioning enclave.
    pub pce_svn: u16,
    /// 0 is standard, 1 scalable, 2 scalable with integrity.
    pub sgx_type: u8,
    /// The instance, where a Platform CA issues.
    pub instance: Option<[u8; 16]>,
    /// The certificate's serial number.
    pub serial: u64,
    /// When the certificate holds.
    pub validity: Validity,
}

/// A platform's key, PCK, with its chain.
pub struct PlatformKey {
    key: Key,
    chain: Vec<u8>,
}

/// What a quoting enclave is.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Enclave {
    pub misc_select: [u8; 4],
    pub attributes: [u8; 16],
    pub mr_signer: [u8; 32],
    pub isv_prod_id: u16,
    pub isv_svn: u16,
}

/// A quoting enclave with its key, which the platform's key vouches for.
pub struct QuotingEnclave {
    key: Key,
    report: QeReport,
    report_signature: [u8; SIGNATURE_BYTES],
    chain: Vec<u8>,
}

impl fmt::Debug for PlatformKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlatformKey")
    }
}

impl fmt::Debug for QuotingEnclave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuotingEnclave")
    }
}

impl Default for Enclave {
    fn default() -> Self {
        let mut attributes = [0; 16];
        // INIT and MODE64BIT.
        attributes[0] = 0x15;
        Self {
            misc_select: [0; 4],
            attributes,
            mr_signer: [0xdc; 32],
            isv_prod_id: 2,
            isv_svn: 8,
        }
    }
}

impl DevelopmentRoot {
    /// The key of a platform, newly made.
    ///
    /// # Errors
    /// When the key cannot be made or a date cannot be written.
    pub fn platform(&self, platform: &Platform) -> Result<PlatformKey, SimError> {
        let key = Key::new()?;
        let issuer = platform.ca.at();
        let certificate = Certificate {
            serial: platform.serial,
            issuer: NAMES[issuer],
            subject: "Development SGX PCK Certificate",
            validity: platform.validity,
            key: key.point(),
            authority: false,
            platform: Some(platform),
        }
        .sign(&self.authorities[issuer].key.pkcs8)?;
        let mut chain = pem("CERTIFICATE", &certificate)? + &self.ca_chain(platform.ca)?;
        chain.push('\0');
        let chain = chain.into_bytes();
        Ok(PlatformKey { key, chain })
    }
}

impl PlatformKey {
    /// Starts a quoting enclave with a new key.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn enclave(&self, enclave: &Enclave) -> Result<QuotingEnclave, SimError> {
        let key = Key::new()?;
        let bound = Sha256::new()
            .chain_update(key.numbers()?)
            .chain_update(auth_data())
            .finalize();
        let mut report_data = [0; 64];
        report_data[..bound.len()].copy_from_slice(&bound);
        let report = QeReport {
            cpu_svn: [0; 16],
            misc_select: enclave.misc_select,
            attributes: enclave.attributes,
            mr_enclave: [0xe5; 32],
            mr_signer: enclave.mr_signer,
            isv_prod_id: enclave.isv_prod_id,
            isv_svn: enclave.isv_svn,
            report_data,
            reserved1: [0; 28],
            reserved2: [0; 32],
            reserved3: [0; 96],
            reserved4: [0; 60],
        };
        Ok(QuotingEnclave {
            report_signature: self.key.sign(&report.to_bytes())?,
            key,
            report,
            chain: self.chain.clone(),
        })
    }
}

impl QuotingEnclave {
    /// Signs what a TD is.
    ///
    /// # Errors
    /// When signing fails.
    pub fn quote(&self, header: Header, body: Body) -> Result<Quote, SimError> {
        let mut quote = Quote {
            header,
            body,
            signature: [0; SIGNATURE_BYTES],
            attestation_key: self.key.numbers()?,
            qe_report: self.report.clone(),
            qe_report_signature: self.report_signature,
            auth_data: auth_data(),
            certificates: self.chain.clone(),
        };
        quote.signature = self.key.sign(&quote.signed_bytes())?;
        Ok(quote)
    }

    /// Signs what a TD is and puts its log beside it.
    ///
    /// # Errors
    /// When signing fails, or the header and the body contradict each other.
    pub fn evidence(
        &self,
        header: Header,
        body: Body,
        event_log: Option<Vec<u8>>,
    ) -> Result<TdxEvidence, SimError> {
        let quote = self.quote(header, body)?;
        Ok(TdxEvidence::new(&quote.to_bytes(), event_log)?)
    }
}

/// 0 to 31, as Intel's enclave has it.
fn auth_data() -> [u8; AUTH_DATA_BYTES] {
    let mut data = [0; AUTH_DATA_BYTES];
    for (byte, value) in data.iter_mut().zip(0..) {
        *byte = value;
    }
    data
}
