//! The report: 1184 bytes, of which the first 672 are signed (56860, "ATTESTATION_REPORT").

use serde::{Deserialize, Serialize};

use super::{
    bytes::array,
    generation::Generation,
    words::{FirmwareVersion, GuestPolicy, KeyInfo, PlatformInfo, Signature, Tcb},
};

/// Bytes of a report.
pub const REPORT_BYTES: usize = 0x4a0;

/// Bytes of a report that its signature covers, from the first.
pub const SIGNED_BYTES: usize = 0x2a0;

const SIGNATURE_END: usize = SIGNED_BYTES + 2 * 72;

/// Every field of a report of version 2 to 5. The members' names and forms in JSON are the `sev`
/// crate's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Report {
    pub version: u32,
    pub guest_svn: u32,
    pub policy: GuestPolicy,
    pub family_id: [u8; 16],
    pub image_id: [u8; 16],
    pub vmpl: u32,
    pub sig_algo: u32,
    pub current_tcb: Tcb,
    pub plat_info: PlatformInfo,
    pub key_info: KeyInfo,
    #[serde(with = "array")]
    pub report_data: [u8; 64],
    #[serde(with = "array")]
    pub measurement: [u8; 48],
    pub host_data: [u8; 32],
    #[serde(with = "array")]
    pub id_key_digest: [u8; 48],
    #[serde(with = "array")]
    pub author_key_digest: [u8; 48],
    pub report_id: [u8; 32],
    pub report_id_ma: [u8; 32],
    pub reported_tcb: Tcb,
    /// From version 3 on, as the next two.
    pub cpuid_fam_id: Option<u8>,
    pub cpuid_mod_id: Option<u8>,
    pub cpuid_step: Option<u8>,
    /// Zeros where the host masks it.
    #[serde(with = "array")]
    pub chip_id: [u8; 64],
    pub committed_tcb: Tcb,
    pub current: FirmwareVersion,
    pub committed: FirmwareVersion,
    pub launch_tcb: Tcb,
    /// From version 5 on, as the next one.
    pub launch_mit_vector: Option<u64>,
    pub current_mit_vector: Option<u64>,
    pub signature: Signature,
}

/// Bytes or members that are no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Another length.
    #[error("an SNP report has {REPORT_BYTES} bytes, this one {0}")]
    Length(usize),
    /// A version that is not known here.
    #[error("SNP report version {0} is not known: 2 to 5 are")]
    Version(u32),
    /// A processor that is not known here.
    #[error("no SNP processor has CPUID family {family:#x} and model {model:#x}")]
    Processor {
        /// CPUID's combined family.
        family: u8,
        /// CPUID's combined model.
        model: u8,
    },
    /// Bytes behind the signature.
    #[error("the SNP report has something behind its signature")]
    Tail,
    /// Members that do not belong to the report's version and processor.
    #[error("the SNP report has members that its version and processor do not have, or lacks some")]
    Members,
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// When its length, version or processor is not known, or when there is something in the bytes
    /// that no signature covers.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let bytes: &[u8; REPORT_BYTES] = bytes
            .try_into()
            .map_err(|_| ReportError::Length(bytes.len()))?;
        if bytes[SIGNATURE_END..].iter().any(|byte| *byte != 0) {
            return Err(ReportError::Tail);
        }
        let version = u32::from_le_bytes(take(bytes, 0));
        let later = |from: u32, at: usize| (version >= from).then(|| bytes[at]);
        let chip_id = take(bytes, 0x1a0);
        let cpu = later(3, 0x188).zip(later(3, 0x189));
        let fmc = has_fmc(version, cpu, &chip_id)?;
        let tcb = |at| Tcb::read(take(bytes, at), fmc);
        let vector = |at| (version >= 5).then(|| u64::from_le_bytes(take(bytes, at)));
        Ok(Self {
            version,
            guest_svn: u32::from_le_bytes(take(bytes, 0x04)),
            policy: GuestPolicy(u64::from_le_bytes(take(bytes, 0x08))),
            family_id: take(bytes, 0x10),
            image_id: take(bytes, 0x20),
            vmpl: u32::from_le_bytes(take(bytes, 0x30)),
            sig_algo: u32::from_le_bytes(take(bytes, 0x34)),
            current_tcb: tcb(0x38),
            plat_info: PlatformInfo(u64::from_le_bytes(take(bytes, 0x40))),
            key_info: KeyInfo(u32::from_le_bytes(take(bytes, 0x48))),
            report_data: take(bytes, 0x50),
            measurement: take(bytes, 0x90),
            host_data: take(bytes, 0xc0),
            id_key_digest: take(bytes, 0xe0),
            author_key_digest: take(bytes, 0x110),
            report_id: take(bytes, 0x140),
            report_id_ma: take(bytes, 0x160),
            reported_tcb: tcb(0x180),
            cpuid_fam_id: later(3, 0x188),
            cpuid_mod_id: later(3, 0x189),
            cpuid_step: later(3, 0x18a),
            chip_id,
            committed_tcb: tcb(0x1e0),
            current: firmware(take(bytes, 0x1e8)),
            committed: firmware(take(bytes, 0x1ec)),
            launch_tcb: tcb(0x1f0),
            launch_mit_vector: vector(0x1f8),
            current_mit_vector: vector(0x200),
            signature: Signature {
                r: take(bytes, SIGNED_BYTES),
                s: take(bytes, SIGNED_BYTES + 72),
            },
        })
    }

    /// The report's bytes; what the specification reserves is zero.
    ///
    /// # Errors
    /// When the version or the processor is not known, or when members are there or missing against
    /// the version and the processor.
    pub fn to_bytes(&self) -> Result<[u8; REPORT_BYTES], ReportError> {
        let cpu = self.cpuid_fam_id.zip(self.cpuid_mod_id);
        let fmc = has_fmc(self.version, cpu, &self.chip_id)?;
        let mut bytes = [0; REPORT_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0x00, &self.version.to_le_bytes());
        put(0x04, &self.guest_svn.to_le_bytes());
        put(0x08, &self.policy.0.to_le_bytes());
        put(0x10, &self.family_id);
        put(0x20, &self.image_id);
        put(0x30, &self.vmpl.to_le_bytes());
        put(0x34, &self.sig_algo.to_le_bytes());
        put(0x38, &self.current_tcb.write(fmc));
        put(0x40, &self.plat_info.0.to_le_bytes());
        put(0x48, &self.key_info.0.to_le_bytes());
        put(0x50, &self.report_data);
        put(0x90, &self.measurement);
        put(0xc0, &self.host_data);
        put(0xe0, &self.id_key_digest);
        put(0x110, &self.author_key_digest);
        put(0x140, &self.report_id);
        put(0x160, &self.report_id_ma);
        put(0x180, &self.reported_tcb.write(fmc));
        let cpuid = [self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step];
        put(0x188, &cpuid.map(Option::unwrap_or_default));
        put(0x1a0, &self.chip_id);
        put(0x1e0, &self.committed_tcb.write(fmc));
        put(0x1e8, &firmware_bytes(self.current));
        put(0x1ec, &firmware_bytes(self.committed));
        put(0x1f0, &self.launch_tcb.write(fmc));
        put(0x1f8, &self.launch_mit_vector.unwrap_or(0).to_le_bytes());
        put(0x200, &self.current_mit_vector.unwrap_or(0).to_le_bytes());
        put(SIGNED_BYTES, &self.signature.r);
        put(SIGNED_BYTES + 72, &self.signature.s);
        if Self::parse(&bytes)? != *self {
            return Err(ReportError::Members);
        }
        Ok(bytes)
    }

    /// The processor's generation; version 2 does not say it.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        Generation::of_cpu(self.cpuid_fam_id?, self.cpuid_mod_id?)
    }
}

/// Whether the report's TCB versions have an FMC. A report of version 2 does not name its processor;
/// Turin's chips have an identity of eight bytes, padded with zeros.
fn has_fmc(version: u32, cpu: Option<(u8, u8)>, chip_id: &[u8; 64]) -> Result<bool, ReportError> {
    match (version, cpu) {
        (2, _) => Ok(*chip_id != [0; 64] && chip_id[8..] == [0; 56]),
        (3..=5, Some((family, model))) => Generation::of_cpu(family, model)
            .map(Generation::has_fmc)
            .ok_or(ReportError::Processor { family, model }),
        (3..=5, None) => Err(ReportError::Members),
        _ => Err(ReportError::Version(version)),
    }
}

fn take<const N: usize>(bytes: &[u8; REPORT_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn firmware([build, minor, major, _]: [u8; 4]) -> FirmwareVersion {
    FirmwareVersion {
        major,
        minor,
        build,
    }
}

fn firmware_bytes(version: FirmwareVersion) -> [u8; 4] {
    [version.build, version.minor, version.major, 0]
}
