//! How the agent is linked. It is read into every guest's memory before anything else, and run again for each
//! container and process, so that it is as small as the linker can make it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // Relocations in two bits each instead of 24 bytes; what starts a static program has applied them since
        // glibc 2.36.
        "-Wl,-z,pack-relative-relocs",
        // Functions of the same code are one function, as Rust leaves open. LLD is the linker of this target.
        "-Wl,--icf=all",
        // Texts that end alike share their end.
        "-Wl,-O2",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
