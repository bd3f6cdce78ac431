//! What the hardware will report, computed before launch; pure.
//!
//! [`snp`] follows an SEV-SNP launch page by page to its digest, and makes the ID block that lets only
//! that digest start. [`Binding`] says where a launch binds init-data. For TDX there is only the
//! binding so far: MRTD and the RTMRs are not computed here.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
pub mod snp;

pub use binding::{Binding, HOST_DATA_BYTES, MRCONFIGID_BYTES, host_data, mrconfigid};
