//! Real parts for the tests: containerd, a registry, a broker, a state directory.
