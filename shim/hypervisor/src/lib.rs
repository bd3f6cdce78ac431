//! A `VmSpec` becomes a running `Vm`: a QEMU process, its control socket, its console, and the
//! vsock connections between host and guest.
//!
//! ```text
//!   VmSpec ──check──► CheckedSpec ──┐
//!                                   ├─ arguments() ─► Vec<String> ─► QEMU ─► Vm
//!   the host ──resolve──► Facts ────┘                 (pidfd, QMP, console, vsock)
//! ```
//!
//! The command line is a pure function of the checked spec and the resolved facts, so that it can
//! be compared with golden files. Nothing here knows what a container is.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accel;
mod boot;
mod console;
pub mod disk;
pub mod growth;
mod hot_nic;
pub mod nic;
pub mod qemu;
pub mod qmp;
pub mod spec;
mod supervise;
mod tail;
pub mod tee;
mod tsc;
mod vhost_net;
mod vm;
pub mod vsock;

pub use disk::{Address, Disks, HotDisk};
pub use growth::{Growth, Hotplug, Size};
pub use hot_nic::{HotNicError, HotNics, MAX_HOT_NICS};
pub use nic::Nic;
pub use spec::{Accel, CheckedSpec, Disk, Machine, Scratch, SharedFs, SpecError, VmSpec, Vsock};
pub use supervise::{Cause, Exit, Status};
pub use tee::Confidential;
pub use vm::{BootError, Pulse, Timings, Vm};
pub use vsock::{Connector, Incoming, VsockStream};
