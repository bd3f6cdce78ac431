//! Intel TDX's quotes, and the JSON around them that guests send.
//!
//! Offsets and meanings are those of Intel's "TDX DCAP Quoting Library API" (appendix 3, "TD Quote
//! Format"), the JSON is Trustee's. Nothing here believes a field: that is the verifier's work.

mod body;
mod message;
mod quote;

pub use body::{Attributes, Body, Body15, Body15Ex, REPORT_DATA_BYTES};
pub use message::{TdxEvidence, TdxMessage};
pub use quote::{
    AUTH_DATA_BYTES, CHAIN_BYTES, Header, INTEL_QE, QE_REPORT_BYTES, QUOTE_BYTES, QeReport, Quote,
    QuoteError, SIGNATURE_BYTES,
};
