//! Image reference, registry, pull pipeline, unpack.
