//! Evidence that is real, simulated, and wrong. One program: each costs a link.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../development/mod.rs"]
mod development;
#[path = "../tdx_development/mod.rs"]
mod tdx_development;

mod random;
mod snp_mutations;
mod snp_simulated;
mod snp_vectors;
mod tdx_faults;
mod tdx_mutations;
mod tdx_simulated;
mod tdx_vectors;
