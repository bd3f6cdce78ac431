//! Generates the messages of containerd's services from `proto/`, without `protoc`.

use std::path::PathBuf;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, ProtobufCustomize};

/// Every file of messages, by name.
const PROTOS: [&str; 2] = ["containers", "snapshots"];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?);
    Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // `include!` of the files themselves fails on their inner attributes.
    let index: String = PROTOS.map(|name| format!("pub mod {name};\n")).concat();
    fs::write(out.join("index.rs"), index)
}
