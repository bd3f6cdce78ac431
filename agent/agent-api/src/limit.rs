//! How much either side takes from the other.

/// One line on the host port with its line feed, in bytes.
pub const MAX_HOST_LINE: usize = 1024;

/// The text of a line of the agent's log, in bytes: where each is escaped, a line still fits.
pub const MAX_LOG_TEXT: usize = 470;

/// One answer to `ReadStdout` or `ReadStderr`, in bytes. Bigger reads gain nothing: a pipe holds
/// 64 KiB, and some vsock devices lose guest writes above about 32 KiB.
pub const MAX_STREAM_READ: usize = 32 * 1024;

/// The data of one `WriteStdin`, in bytes.
pub const MAX_STREAM_WRITE: usize = 1024 * 1024;

/// What is read of a stream at once, in bytes: a pipe holds as much.
pub const STREAM_CHUNK: usize = 64 * 1024;

/// Connections to the stream port at a time: three for each of a thousand processes.
pub const MAX_STREAMS: usize = 3 * 1024;

/// Connections to ports of a pod at a time that are forwarded for the host.
pub const MAX_FORWARDS: usize = 256;

/// A container, exec or sandbox id, in bytes. containerd's limit is 76.
pub const MAX_ID: usize = 128;

/// The message of a [`crate::GuestError`], in bytes; a longer one is cut at a character.
/// libcontainer's chains of causes fit, and a status stays far below a ttRPC message.
pub const MAX_ERROR_MESSAGE: usize = 4096;

/// The phase of a [`crate::GuestError`], in bytes.
pub const MAX_PHASE: usize = 64;

/// The ticket of a [`crate::GuestError`], in bytes.
pub const MAX_TICKET: usize = 128;

/// Layers in one answer of `WatchPull`; the agent tells those above it as one. Few images have more than a
/// hundred.
pub const MAX_PULL_LAYERS: usize = 256;

/// How long apart the answers of `WatchPull` are at least, in milliseconds: ten in a second are more than
/// an eye sees.
pub const PULL_INTERVAL_MS: u64 = 100;

/// How long `WatchPull` waits for something new before it answers what there is, in seconds.
pub const PULL_WAIT_SECONDS: u64 = 30;

/// Addresses of one interface of the guest.
pub const MAX_ADDRESSES: usize = 64;

/// Routes of the guest. A pod has a handful; some networks tell each other node's.
pub const MAX_ROUTES: usize = 1024;

/// Neighbours that the guest is told.
pub const MAX_NEIGHBOURS: usize = 1024;

/// One item of an answer to `TEE`, in bytes: a log of a start has the most.
pub const MAX_TEE_ITEM: usize = 1024 * 1024;

/// A host name in a `DIAL` line, in bytes (RFC 1035, section 2.3.4).
pub const MAX_HOST_NAME: usize = 253;

/// One file of a content slot, in bytes: as much as Kubernetes takes for a whole `ConfigMap` or Secret.
pub const MAX_CONTENT_FILE: usize = 1024 * 1024;

/// The files of one `PutContent`, in bytes; a ttRPC message has at most 4 MiB.
pub const MAX_CONTENT_REQUEST: usize = 2 * 1024 * 1024;

/// One set of files, in bytes: a projected volume joins several `ConfigMap`s and Secrets.
pub const MAX_CONTENT_SET: usize = 4 * 1024 * 1024;

/// Files of one set.
pub const MAX_CONTENT_FILES: usize = 1024;

/// The path of a file in its slot, in bytes, and how many parts it has.
pub const MAX_CONTENT_PATH: usize = 1024;
/// See [`MAX_CONTENT_PATH`].
pub const MAX_CONTENT_DEPTH: usize = 16;

/// All content of a pod, in bytes of the guest's memory: files in whole pages, with what names and directories take.
pub const MAX_CONTENT_POD: usize = 64 * 1024 * 1024;

/// Content slots of a pod.
pub const MAX_CONTENT_SLOTS: usize = 4096;

/// Sets of a pod that are not whole yet: each holds open directories.
pub const MAX_CONTENT_STAGES: usize = 64;

/// Files of a volume with secrets that are lent; a pod has twice as many, those of a set that was replaced among them
/// for as long as they are not empty. Each is open in the agent.
pub const MAX_LENT_FILES: usize = 256;

/// What is read of a termination message, in bytes: the kubelet keeps as much.
pub const MAX_TERMINATION_MESSAGE: usize = 4096;

/// What `GetDiagnosticData` calls it.
pub const TERMINATION_LOG: &str = "termination_log";
