//! A fuzz target for each decoder.
