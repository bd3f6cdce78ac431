//! Caps on everything that the protocol's two ends accept from each other.

/// Bytes of a body of `auth`: a version, a TEE name and a short list of hashes.
pub const AUTH_BODY_BYTES: usize = 16 * 1024;

/// Bytes of a body of `attest`: evidence with certificates, an event log, and init-data.
pub const ATTEST_BODY_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of one resource in the clear, which also bounds what an administrator may store.
pub const RESOURCE_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of a JWE as JSON: a resource in base64 and its header.
pub const JWE_BYTES: usize = RESOURCE_BYTES / 3 * 4 + 16 * 1024;

/// Bytes of a policy in Rego.
pub const POLICY_BYTES: usize = 1024 * 1024;

/// Bytes of an error's body.
pub const ERROR_BODY_BYTES: usize = 64 * 1024;

/// Bytes of a token in its compact form; a header line must hold it.
pub const TOKEN_BYTES: usize = 96 * 1024;

/// Characters of a nonce; Trustee's has 44.
pub const NONCE_CHARS: usize = 4096;

/// Characters of one segment of a resource's path.
pub const SEGMENT_CHARS: usize = 128;

/// Characters of a whole resource URI.
pub const URI_CHARS: usize = 1024;
