//! The Rego policies and their engine.
