//! What Cloister is measured by.
