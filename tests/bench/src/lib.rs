//! What Cloister is measured by, on whatever machine this runs.
//!
//! Milliseconds of one machine say little about another, and under emulation less still. So a start
//! is measured against the least that the same machine can do, in the same run and in turns: the
//! same kernel in the same VM with a program that only says that it is there.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod attest;
pub mod bare;
pub mod figure;
pub mod image;
pub mod io;
pub mod kbs;
pub mod pod;
pub mod runc;
pub mod size;
pub mod start;
