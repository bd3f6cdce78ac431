//! Vsock ports and addresses.

/// The agent's ttRPC server, in the guest. Kata's number.
pub const AGENT: u32 = 1024;

/// The stream port, in the guest: the host connects to it once for each stream of a process, and opens
/// with a [`crate::StreamLine`].
pub const STREAMS: u32 = 1025;

/// The port for forwarding, in the guest: the host connects to it for each connection to a port of the
/// pod, and opens with that port's number, two bytes, the higher first. The agent answers with a
/// [`crate::DialAnswer`].
pub const FORWARD: u32 = 1026;

/// The host port: the guest connects to it, and opens with a [`crate::HostLine`].
pub const HOST: u32 = 1030;

/// The host's context identifier, as the guest sees it (vsock(7): `VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;
