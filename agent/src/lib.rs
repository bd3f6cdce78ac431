//! The only program in the guest: PID 1, the host's counterpart on vsock, and the owner's deputy.
//!
//! ```text
//! kernel ─► main ─► boot (file systems, modules, command line)
//!                    └► init: init-data ─► gate ─► server on vsock 1024, streams on 1025 ─► READY
//!                                                    │
//!                         request ─► Gate::admit ─► Allowed<request> ─► sandbox, container
//!                                                                         └► `container` sub-command
//! ```
//!
//! The agent is one process with threads that holds keys, so it never forks a container out of
//! itself: `/proc/self/exe container ...` is a fresh, single-threaded process that drives
//! libcontainer ([`jail`]) and ends; the container's first process is then re-parented to PID 1,
//! which reaps it.
//!
//! The host is not trusted. Every request passes [`gate`]; paths that a request names must lie
//! below the guest's own directories; whatever is not supported is refused by name.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod boot;
pub mod causes;
pub mod cgroup;
pub mod cmdline;
pub mod console;
pub mod container;
pub mod content;
pub mod copy_file;
pub mod crypt;
pub mod disk;
pub mod fault;
pub mod firmware;
pub mod forward;
pub mod gate;
pub mod guest;
pub mod host;
pub mod hotplug;
pub mod huge;
pub mod idmap;
pub mod image;
pub mod init;
pub mod jail;
pub mod metrics;
pub mod module;
pub mod network;
pub mod oom;
pub mod path;
pub mod pause;
pub mod places;
pub mod polled;
pub mod power;
pub mod process;
pub mod proof;
pub mod pulls;
pub mod reaper;
pub mod runtime;
pub mod sandbox;
pub mod scratch;
pub mod sealed;
pub mod secure_mount;
pub mod server;
pub mod spec;
pub mod stdio;
pub mod storage;
pub mod stream;
pub mod trace;
pub mod user;
pub mod users;
pub mod workload;
