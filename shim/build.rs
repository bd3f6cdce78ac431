//! How the shim is linked. There is one for each pod, and what it maps and touches is counted: it is made small as the
//! agent is (`agent/build.rs`).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // Relocations in two bits each instead of 24 bytes, all of which are read at the start.
        "-Wl,-z,pack-relative-relocs",
        // Functions of the same code are one function. LLD is the linker of this target.
        "-Wl,--icf=all",
        // Texts that end alike share their end.
        "-Wl,-O2",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
