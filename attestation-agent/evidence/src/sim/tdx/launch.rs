//! A TD launched on a platform, and what the vendor says of both, with values that a test or a
//! simulated guest then changes.

use super::{Ca, Enclave, Level, Offer, Platform, QeLevel, Status};
use crate::{
    sim::x509::Validity,
    tdx::{Attributes, Body, Header, INTEL_QE},
};

/// SEPT_VE_DISABLE: a page that the host took away is no fault that the guest handles.
const SEPT_VE_DISABLE: u64 = 1 << 28;
/// The kind of a simulated platform.
const FMSPC: [u8; 6] = [0xd0, 0xc0, 0x6f, 0, 0, 0];
/// Security version of the processor's and the module's parts.
const SVN: u8 = 5;
/// Security version of the provisioning enclave.
const PCE_SVN: u16 = 13;
/// When the levels were defined, by the lowest version that they are for.
const FIRST_LEVEL: i64 = 1_710_288_000;
const DAY: i64 = 86_400;

impl Header {
    /// The header of a quote of Intel's quoting enclave.
    #[must_use]
    pub const fn simulated(version: u16) -> Self {
        Self {
            version,
            reserved: [0; 4],
            vendor_id: INTEL_QE,
            user_data: [8; 20],
        }
    }
}

impl Body {
    /// The report of an idle launch: its report data and MRCONFIGID are zero.
    #[must_use]
    pub const fn simulated(rtmr: [[u8; 48]; 4]) -> Self {
        let mut tcb_svn = [SVN; 16];
        // The module's version: the identity TDX_01.
        tcb_svn[1] = 1;
        Self {
            tcb_svn,
            mr_seam: [1; 48],
            mrsigner_seam: [0; 48],
            seam_attributes: [0; 8],
            td_attributes: Attributes(SEPT_VE_DISABLE),
            xfam: [0xe7, 2, 6, 0, 0, 0, 0, 0],
            mr_td: [3; 48],
            mr_config_id: [0; 48],
            mr_owner: [4; 48],
            mr_owner_config: [5; 48],
            rtmr,
            report_data: [0; 64],
            tdx15: None,
        }
    }
}

impl Platform {
    /// A platform at the highest level of [`Offer::simulated`].
    #[must_use]
    pub const fn simulated(validity: Validity) -> Self {
        Self {
            ca: Ca::Platform,
            ppid: [0xaa; 16],
            fmspc: FMSPC,
            cpu_svn: [SVN; 16],
            pce_svn: PCE_SVN,
            sgx_type: 1,
            instance: Some([0xbb; 16]),
            serial: 40,
            validity,
        }
    }
}

impl Offer {
    /// Three levels of the platform, its module and its quoting enclave, the lowest of them revoked.
    /// Serial number 99 is a revoked platform's and a revoked authority's.
    #[must_use]
    pub fn simulated(validity: Validity) -> Self {
        let level = |svn, pce_svn, status, advisory: Option<&str>| Level {
            sgx: [svn; 16],
            pce_svn,
            tdx: [svn; 16],
            date: FIRST_LEVEL + i64::from(svn) * DAY,
            status,
            advisories: advisory.map(str::to_owned).into_iter().collect(),
        };
        let version = |svn, status| QeLevel {
            svn,
            date: FIRST_LEVEL,
            status,
        };
        Self {
            ca: Ca::Platform,
            fmspc: FMSPC,
            tcb_info: validity,
            qe_identity: validity,
            pck_crl: validity,
            root_ca_crl: validity,
            levels: vec![
                level(SVN, PCE_SVN, Status::UpToDate, None),
                level(4, PCE_SVN, Status::OutOfDate, Some("INTEL-SA-00837")),
                level(3, 5, Status::Revoked, Some("INTEL-SA-00615")),
            ],
            module_levels: vec![
                version(SVN, Status::UpToDate),
                version(4, Status::OutOfDate),
                version(3, Status::Revoked),
            ],
            enclave: Enclave::default(),
            qe_levels: vec![
                version(8, Status::UpToDate),
                version(6, Status::OutOfDate),
                version(4, Status::Revoked),
            ],
            revoked_platforms: vec![99],
            revoked_authorities: vec![99],
        }
    }
}
