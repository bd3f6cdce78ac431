//! Builds the guest's kernel and initramfs, reproducibly.
