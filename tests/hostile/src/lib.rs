//! Crashes, refusals and hostile neighbours.
