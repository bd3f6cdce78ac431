//! The invariants of the workspace, as tests.
