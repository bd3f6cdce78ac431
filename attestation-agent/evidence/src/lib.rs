//! Wire formats of evidence and init-data; pure.
