//! Cloister against the protocols and clients of its peers.
