//! HTTP and TLS over a stream that the caller dials.
