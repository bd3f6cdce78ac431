//! Generates the messages and the asynchronous ttRPC service from `proto/`, without `protoc`.
//!
//! Messages also get `serde::Serialize` in the form that Kata gives to its policy: the policy of
//! a pod reads requests as JSON, so that form is part of the contract (see `src/json.rs`).

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use protobuf::descriptor::field_descriptor_proto::Type;
use protobuf::reflect::{EnumDescriptor, FieldDescriptor, MessageDescriptor, OneofDescriptor};
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize, ProtobufCustomizeCallback};

/// Every file of the contract, by name.
const PROTOS: [&str; 7] = ["agent", "content", "csi", "health", "oci", "pull", "types"];
/// Those of them that hold a service.
const SERVICES: [&str; 4] = ["agent", "content", "health", "pull"];

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
        .rust_protobuf_customize_callback(PolicyJson)
        .run()?;
    write_index(&out)
}

/// Lists the generated files in one file that `lib.rs` includes; `include!` of the files
/// themselves fails on their inner attributes.
fn write_index(out: &Path) -> io::Result<()> {
    let messages = PROTOS.iter().map(|name| format!("pub mod {name};\n"));
    let services = SERVICES
        .iter()
        .map(|name| format!("pub mod {name}_ttrpc;\n"));
    fs::write(
        out.join("index.rs"),
        messages.chain(services).collect::<String>(),
    )
}

/// Adds what `serde` needs to each generated item.
struct PolicyJson;

impl ProtobufCustomizeCallback for PolicyJson {
    fn message(&self, _: &MessageDescriptor) -> ProtobufCustomize {
        ProtobufCustomize::default().before("#[derive(::serde::Serialize)]")
    }

    fn enumeration(&self, _: &EnumDescriptor) -> ProtobufCustomize {
        ProtobufCustomize::default().before("#[derive(::serde::Serialize)]")
    }

    fn oneof(&self, _: &OneofDescriptor) -> ProtobufCustomize {
        ProtobufCustomize::default().before("#[derive(::serde::Serialize)]")
    }

    fn field(&self, field: &FieldDescriptor) -> ProtobufCustomize {
        let form = match field.proto().type_() {
            Type::TYPE_ENUM => "crate::json::enumeration",
            Type::TYPE_MESSAGE if field.is_singular() => "crate::json::message",
            _ => return ProtobufCustomize::default(),
        };
        ProtobufCustomize::default().before(&format!("#[serde(serialize_with = \"{form}\")]"))
    }

    fn special_field(&self, _: &MessageDescriptor, _: &str) -> ProtobufCustomize {
        ProtobufCustomize::default().before("#[serde(skip)]")
    }
}
