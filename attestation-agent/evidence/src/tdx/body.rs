//! The body: what the TDX module reports of a TD (348551, "TDREPORT_STRUCT").

use super::quote::Reader;

/// Bytes of REPORTDATA.
pub const REPORT_DATA_BYTES: usize = 64;

const BYTES_10: usize = 584;
const BYTES_15: usize = 648;
const BYTES_15_EX: usize = 885;

/// Every field of a body. Quotes of version 4 have no more than these; those of version 5 say in
/// their type whether [`Body15`] and [`Body15Ex`] follow.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the claims")]
pub struct Body {
    pub tcb_svn: [u8; 16],
    pub mr_seam: [u8; 48],
    pub mrsigner_seam: [u8; 48],
    pub seam_attributes: [u8; 8],
    pub td_attributes: Attributes,
    pub xfam: [u8; 8],
    pub mr_td: [u8; 48],
    pub mr_config_id: [u8; 48],
    pub mr_owner: [u8; 48],
    pub mr_owner_config: [u8; 48],
    pub rtmr: [[u8; 48]; 4],
    pub report_data: [u8; REPORT_DATA_BYTES],
    /// From TDX 1.5 on, in version 5.
    pub tdx15: Option<Body15>,
}

/// What TDX 1.5 added.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the claims")]
pub struct Body15 {
    pub tee_tcb_svn2: [u8; 16],
    pub mr_servicetd: [u8; 48],
    /// In bodies of type 4.
    pub ex: Option<Box<Body15Ex>>,
}

/// What the extended form of TDX 1.5 adds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Intel's")]
pub struct Body15Ex {
    pub vmid: u8,
    pub td_id: [u8; 32],
    pub dev_info: [u8; 48],
    pub init_service_td_hash: [u8; 48],
    pub init_service_td_attributes: [u8; 8],
    pub init_cpu_svn: [u8; 16],
    pub init_tee_tcb_svn: [u8; 16],
    pub init_tee_fmspc: [u8; 12],
    pub cur_service_td_hash: [u8; 48],
    pub cur_service_td_attributes: [u8; 8],
}

/// How the TD was made (348551, "TD ATTRIBUTES").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes(pub u64);

impl Attributes {
    /// The host may read the TD and change it.
    #[must_use]
    pub const fn debug(self) -> bool {
        bit(self.0, 0)
    }

    /// A pending page that the TD touches stops the TD and is not told to it.
    #[must_use]
    pub const fn septve_disable(self) -> bool {
        bit(self.0, 28)
    }

    /// A migration TD may move it to another host.
    #[must_use]
    pub const fn migratable(self) -> bool {
        bit(self.0, 29)
    }

    /// It may use supervisor protection keys.
    #[must_use]
    pub const fn protection_keys(self) -> bool {
        bit(self.0, 30)
    }

    /// It may use Key Locker.
    #[must_use]
    pub const fn key_locker(self) -> bool {
        bit(self.0, 31)
    }

    /// It may use performance monitoring.
    #[must_use]
    pub const fn perfmon(self) -> bool {
        bit(self.0, 63)
    }
}

const fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 != 0
}

impl Body {
    /// The type that a quote of version 5 gives, and the body's bytes.
    #[must_use]
    pub fn kind_and_bytes(&self) -> (u16, usize) {
        match &self.tdx15 {
            None => (2, BYTES_10),
            Some(more) if more.ex.is_none() => (3, BYTES_15),
            Some(_) => (4, BYTES_15_EX),
        }
    }

    /// The body's bytes where a quote of version 5 gives this type.
    pub(super) const fn bytes_of_kind(kind: u16) -> Option<usize> {
        match kind {
            2 => Some(BYTES_10),
            3 => Some(BYTES_15),
            4 => Some(BYTES_15_EX),
            _ => None,
        }
    }

    pub(super) fn read(rest: &mut Reader<'_>, kind: u16) -> Option<Self> {
        Some(Self {
            tcb_svn: rest.array()?,
            mr_seam: rest.array()?,
            mrsigner_seam: rest.array()?,
            seam_attributes: rest.array()?,
            td_attributes: Attributes(u64::from_le_bytes(rest.array()?)),
            xfam: rest.array()?,
            mr_td: rest.array()?,
            mr_config_id: rest.array()?,
            mr_owner: rest.array()?,
            mr_owner_config: rest.array()?,
            rtmr: [rest.array()?, rest.array()?, rest.array()?, rest.array()?],
            report_data: rest.array()?,
            tdx15: match kind {
                3 | 4 => Some(Body15 {
                    tee_tcb_svn2: rest.array()?,
                    mr_servicetd: rest.array()?,
                    ex: match kind {
                        4 => Some(Box::new(Body15Ex::read(rest)?)),
                        _ => None,
                    },
                }),
                _ => None,
            },
        })
    }

    pub(super) fn write(&self, to: &mut Vec<u8>) {
        let attributes = self.td_attributes.0.to_le_bytes();
        let [r0, r1, r2, r3] = &self.rtmr;
        let fields: [&[u8]; 15] = [
            &self.tcb_svn,
            &self.mr_seam,
            &self.mrsigner_seam,
            &self.seam_attributes,
            &attributes,
            &self.xfam,
            &self.mr_td,
            &self.mr_config_id,
            &self.mr_owner,
            &self.mr_owner_config,
            r0,
            r1,
            r2,
            r3,
            &self.report_data,
        ];
        to.extend(fields.concat());
        if let Some(more) = &self.tdx15 {
            to.extend(more.tee_tcb_svn2);
            to.extend(more.mr_servicetd);
            if let Some(ex) = &more.ex {
                ex.write(to);
            }
        }
    }
}

impl Body15Ex {
    fn read(rest: &mut Reader<'_>) -> Option<Self> {
        let [vmid] = rest.array()?;
        Some(Self {
            vmid,
            td_id: rest.array()?,
            dev_info: rest.array()?,
            init_service_td_hash: rest.array()?,
            init_service_td_attributes: rest.array()?,
            init_cpu_svn: rest.array()?,
            init_tee_tcb_svn: rest.array()?,
            init_tee_fmspc: rest.array()?,
            cur_service_td_hash: rest.array()?,
            cur_service_td_attributes: rest.array()?,
        })
    }

    fn write(&self, to: &mut Vec<u8>) {
        let fields: [&[u8]; 10] = [
            &[self.vmid],
            &self.td_id,
            &self.dev_info,
            &self.init_service_td_hash,
            &self.init_service_td_attributes,
            &self.init_cpu_svn,
            &self.init_tee_tcb_svn,
            &self.init_tee_fmspc,
            &self.cur_service_td_hash,
            &self.cur_service_td_attributes,
        ];
        to.extend(fields.concat());
    }
}
