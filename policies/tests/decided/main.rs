//! Policies as they ship and as owners write them. One program: each costs a link.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod appraisal;
mod corim;
mod refusal;
mod rego;
mod robust;
mod unsaid;
