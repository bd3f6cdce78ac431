//! The only program in the guest.
