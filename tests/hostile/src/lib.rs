//! Crashes, refusals and hostile neighbours.

pub mod cpio;
