//! Predictions as text, as what a launch needs, and as what a broker takes: the reference values under
//! Trustee's names.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use measure::Binding;
use measure::snp::{GuestFeatures, IdAuth, IdBlock, KeyDigest, LaunchDigest};
use serde_json::{Value, json};

use super::references::References;

/// The name under which appraisal policies ask for the launch digest.
const MEASUREMENT: &str = "snp_launch_measurement";

const NO_KERNEL: &str = "kernel_hashes off: these values say nothing of what is booted, so that a broker which has them \
                         releases keys to any kernel";

/// Of digests with hashes that nobody may look at.
pub(super) const UNSEEN: &str = "the digests have the hashes of kernel, initramfs and command line, but the firmware in the \
                                 IGVM file does not say that it compares what it boots with them (SNP_KERNEL_HASHES \
                                 at 0x10000): unless its code is known to, a broker releases keys to any kernel";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// A JSON list of shapes, each with all that its launch needs.
    Launch,
    /// A JSON map of reference values: `kbs reference import`.
    Json,
    /// The same as a CoRIM: signed with --sign-key, else for `kbs reference import --accept-unsigned`.
    Corim,
}

/// What digests say of what is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Booted {
    /// Nothing.
    Unsaid,
    /// They have its hashes, and what starts does not say that it looks at them.
    Unseen,
    /// Another one has another digest.
    Tied,
}

/// What the hardware will report.
pub(super) struct Predicted {
    pub(super) shapes: Vec<Shape>,
    pub(super) guest_features: GuestFeatures,
    pub(super) booted: Booted,
    pub(super) binding: Binding,
    pub(super) id_key: Option<KeyDigest>,
    pub(super) author_key: Option<KeyDigest>,
}

/// One way to launch the guest.
pub(super) struct Shape {
    pub(super) vcpus: usize,
    /// `None` where it is the same with each.
    pub(super) cpu_model: Option<String>,
    pub(super) measurement: LaunchDigest,
    pub(super) id_block: Option<SignedBlock>,
}

pub(super) struct SignedBlock {
    pub(super) block: IdBlock,
    pub(super) auth: IdAuth,
}

impl Shape {
    fn name(&self) -> String {
        let model = self.cpu_model.as_deref().unwrap_or("any-model");
        format!("{model} vcpus={}", self.vcpus)
    }
}

impl SignedBlock {
    /// As QEMU takes them.
    fn encoded(&self) -> (String, String) {
        let encoded = |bytes: &[u8]| STANDARD.encode(bytes);
        (
            encoded(&self.block.to_bytes()),
            encoded(self.auth.as_bytes()),
        )
    }
}

impl Predicted {
    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!("{} {}", self.binding.field(), self.binding.hex())];
        lines.extend(match self.booted {
            Booted::Unsaid => {
                Some("kernel_hashes off: the digests say nothing of what is booted".to_owned())
            }
            Booted::Unseen => Some(format!("kernel_hashes unseen: {UNSEEN}")),
            Booted::Tied => None,
        });
        for (name, key) in [
            ("id_key_digest", self.id_key),
            ("author_key_digest", self.author_key),
        ] {
            lines.extend(key.map(|key| format!("{name} {}", hex::encode(key.0))));
        }
        for shape in &self.shapes {
            lines.push(format!(
                "measurement {} {}",
                shape.measurement,
                shape.name()
            ));
            if let Some((block, auth)) = shape.id_block.as_ref().map(SignedBlock::encoded) {
                lines.push(format!("id-block {block}\nid-auth {auth}"));
            }
        }
        let mut text = String::new();
        for line in lines {
            // A `String` takes any text.
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// Each launch digest by its shape.
    pub(super) fn measurements(&self) -> Vec<(String, String)> {
        let named = |shape: &Shape| {
            let name = format!("SNP launch digest, {}", shape.name());
            (name, shape.measurement.hex())
        };
        self.shapes.iter().map(named).collect()
    }

    /// Tells what a document for a broker says nothing of.
    pub(super) fn warn(&self) -> anyhow::Result<()> {
        let mut told = std::io::stderr();
        match self.booted {
            Booted::Unsaid => writeln!(told, "{NO_KERNEL}")?,
            Booted::Unseen => writeln!(told, "{UNSEEN}")?,
            Booted::Tied => {}
        }
        Ok(())
    }

    pub(super) fn shapes(&self) -> Vec<Value> {
        let shape = |shape: &Shape| {
            let mut value = json!({
                "vcpus": shape.vcpus,
                "cpu_model": shape.cpu_model,
                "guest_features": self.guest_features.bits(),
                "kernel_hashes": self.booted != Booted::Unsaid,
                "measurement": shape.measurement.hex(),
                self.binding.field(): self.binding.hex(),
            });
            if let (Some(signed), Some(members)) = (&shape.id_block, value.as_object_mut()) {
                let (block, auth) = signed.encoded();
                members.insert("id_block".to_owned(), block.into());
                members.insert("id_auth".to_owned(), auth.into());
                members.insert("policy".to_owned(), signed.block.policy.into());
            }
            value
        };
        self.shapes.iter().map(shape).collect()
    }

    /// Each digest once: models of one signature have the same.
    pub(super) fn refer(&self, all: &mut References) {
        for shape in &self.shapes {
            all.digest(MEASUREMENT, shape.measurement.0);
        }
    }
}

pub(super) fn json_lines(value: &Value) -> anyhow::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).context("write JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}
