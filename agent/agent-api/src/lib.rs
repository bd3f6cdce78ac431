//! The one host-guest contract.
