//! Generates CoCo's messages and ttRPC services from `proto/`, without `protoc`.

use std::path::PathBuf;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTOS: [&str; 3] = ["attestation_agent", "confidential_data_hub", "keyprovider"];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?);
    Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // `include!` of the files themselves fails on their inner attributes.
    let index: String = PROTOS
        .iter()
        .map(|name| format!("pub mod {name};\npub mod {name}_ttrpc;\n"))
        .collect();
    fs::write(out.join("index.rs"), index)
}
