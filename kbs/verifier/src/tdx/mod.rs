//! Intel TDX: a quote, the collateral that says what its platform is worth, and what it must bind.

mod parts;

pub use parts::{CHAIN_BYTES, CRL_BYTES, DOCUMENT_BYTES, Parts, SIGNATURE_BYTES};
