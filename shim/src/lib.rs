//! The containerd shim, the cloister command line and the guest-pull snapshotter.
