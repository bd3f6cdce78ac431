//! Vsock ports and addresses.

/// The agent's ttRPC server, in the guest. Kata's number.
pub const AGENT: u32 = 1024;

/// The stream port, in the guest: the host connects to it once for each stream of a process, and opens
/// with a [`crate::StreamLine`].
pub const STREAMS: u32 = 1025;

/// The host port: the guest connects to it, and opens with a [`crate::HostLine`].
pub const HOST: u32 = 1030;

/// The host's context identifier, as the guest sees it (vsock(7): `VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;
