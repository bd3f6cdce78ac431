//! Proves the guest to the broker and receives its secrets.
