//! The containerd shim.
//!
//! ```text
//!   bootstrap ─► task ─► sandbox ─► hypervisor::Vm
//!                 │  │      └─ boot ─► network, relay (host port) ─► mirror, virtiofs
//!                 │  └─► guest ─► the agent's ttRPC
//!                 ├─ config, spec, rootfs, init_data     what a container becomes
//!                 ├─ process, io, event, stats           what containerd sees
//!                 └─ telemetry, log ─► monitor           what an operator sees
//! ```
//!
//! The shim is part of the untrusted host: it moves bytes and names, and knows neither keys nor
//! evidence.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bootstrap;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod container;
pub mod containers;
pub mod creation;
pub mod dev_tee;
pub mod disk;
pub mod event;
pub mod exchange;
pub mod exposition;
mod fields;
pub mod guest;
mod guest_log;
pub mod hooks;
pub mod idmap;
pub mod init_data;
pub mod io;
pub mod kernel_line;
mod lock;
pub mod log;
pub mod mirror;
pub mod monitor;
mod mountinfo;
pub mod network;
pub mod own_namespace;
pub mod process;
pub mod reason;
pub mod relay;
pub mod rootfs;
pub mod sandbox;
pub mod spec;
pub mod state_dir;
pub mod stats;
pub mod task;
pub mod tee;
pub mod telemetry;
pub mod timeline;
mod tree;
pub mod virtiofs;
pub mod volume;
