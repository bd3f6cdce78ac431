//! The key broker that operators deploy.
