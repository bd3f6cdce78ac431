//! A fuzz target for each decoder: everything that reads bytes from across a trust line.
//!
//! A target must return on any input: no panic, no endless loop, no memory that the input did not
//! pay for. Where a decoder has its encoder, the target also holds that what was read writes and
//! reads back the same.
//!
//! Two things run them. `tests/mutations.rs` runs each for a bounded count over its seeds with
//! mutations that are the same on every machine, as part of `make test`. `libfuzzer/` is a crate of
//! its own for `cargo fuzz`, which needs a nightly compiler and is no member of the workspace.

mod firmware;
mod guest;
mod host;
mod image;
pub mod mutate;
mod rule;
mod secret;
mod signature;
mod snp;
mod tdx;
mod vsock;

/// One decoder and inputs that it accepts.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// `<crate>_<what it reads>`.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
    /// Good inputs, from which mutations start.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
#[must_use]
pub fn targets() -> Vec<Target> {
    [
        firmware::TARGETS,
        guest::TARGETS,
        host::TARGETS,
        image::TARGETS,
        rule::TARGETS,
        secret::TARGETS,
        signature::TARGETS,
        snp::TARGETS,
        tdx::TARGETS,
        vsock::TARGETS,
    ]
    .concat()
}

/// Runs one target by its name.
///
/// # Panics
/// When there is none of that name, or the target finds a fault.
pub fn run(name: &str, data: &[u8]) {
    let all = targets();
    let target = all.iter().find(|target| target.name == name);
    let Some(target) = target else {
        panic!("no target `{name}`")
    };
    (target.run)(data);
}

/// Seeds from texts.
fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// The bytes as text, where they are some.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}
