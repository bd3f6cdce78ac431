//! What the hardware will report, computed before launch; pure.
//!
//! [`snp`] follows an SEV-SNP launch page by page to its digest, and makes the ID block that lets only
//! that digest start. [`tdx`] follows a TDX launch to MRTD, and writes the event log that firmware and
//! kernel will write, which gives RTMR0 to RTMR2. [`Binding`] says where a launch binds init-data.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod guid;
mod ovmf;
pub mod snp;
pub mod tdx;

pub use evidence::init_data::{Binding, HOST_DATA_BYTES, MRCONFIGID_BYTES, host_data, mrconfigid};
pub use ovmf::TableError;
