//! The main job, end to end, on real parts.
