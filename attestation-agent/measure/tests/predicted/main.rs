//! Predictions against vectors, recorded logs and peers. One program: each costs a link.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../launch/mod.rs"]
mod launch;
#[path = "../measured_boot/mod.rs"]
mod measured_boot;
#[path = "../tdvf/mod.rs"]
mod tdvf;

mod snp_cloud_hypervisor;
mod snp_firmware;
mod snp_igvm;
mod snp_peer;
mod snp_vectors;
mod tdx_boot;
mod tdx_explain;
mod tdx_firmware;
mod tdx_launch;
mod tdx_real;
mod tdx_recorded;
