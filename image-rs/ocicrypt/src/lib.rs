//! Layer encryption and key wrapping, both directions.
