//! Builds the guest's kernel and initramfs, reproducibly, and writes down what went in.
//!
//! ```text
//!   Debian's cloud kernel ──apt, unpack──┐
//!                                        ├─► kernel directory: vmlinux, vmlinuz, modules/
//!   Debian's source + own fragment ──────┘            │
//!                                                     ▼
//!   cloister-agent (static) ──────────────► image: vmlinux, vmlinuz, initramfs.cpio, manifest.json
//! ```
//!
//! The kernel is handed to the VMM as the ELF file with a PVH entry, because unpacking a bzImage
//! costs one to two seconds under emulation; the bzImage is for the firmware of a TEE. The initramfs is packed by LZ4
//! ([`lz4`]): firmware copies and hashes less than half of it, and Linux unpacks it as fast as it would copy it.
//! The same inputs give the same bytes: nothing in an image depends on time, user, directory or
//! the order of a directory listing. Nothing here runs at pod start, and nothing needs root.
//!
//! The kernel's command line is not made here: the `hypervisor` crate owns it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod apt;
pub mod bzimage;
mod command;
pub mod compile;
pub mod config;
pub mod cpio;
pub mod debian;
mod digest;
pub mod elf;
pub mod image;
pub mod kernel;
pub mod launch;
pub mod lz4;
pub mod manifest;
pub mod module;
mod signature;
mod unpack;

pub use image::build;
pub use kernel::Kernel;
pub use manifest::Manifest;
