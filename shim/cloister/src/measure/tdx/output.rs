//! A TD's predictions as text, as a list of shapes, and as what a broker takes.
//!
//! `tdvfkernel` and `tdvfkernelparams` are shown and are no reference values: the default appraisal policy
//! counts an event only where its digest is of its text, and those two are of the kernel's file and of the
//! whole line. `rtmr_1` and `rtmr_2` hold both.

use std::fmt::Write as _;
use std::io::Write as _;

use measure::Binding;
use measure::tdx::Digest;
use serde_json::{Map, Value};

use super::super::references::References;
use super::acpi::Size;

/// Names of reference values in the default appraisal policy.
const MR_TD: &str = "mr_td";
const RTMR_0: &str = "rtmr_0";
const RTMR_1: &str = "rtmr_1";
const RTMR_2: &str = "rtmr_2";
const XFAM: &str = "xfam";

const NO_XFAM: &str = "xfam is not predicted, and the default appraisal policy asks for it: give --xfam, or \
                       register it from a quote of such a host";
const NO_RTMR_3: &str = "rtmr_3 is not predicted: the guest extends it while it runs";
const RTMR_0_JUDGED: &str = "rtmr_0 is in the document: once a broker has values for it, a TD of any other shape is \
                             refused; --no-rtmr-0 leaves it out";
const NO_RTMR_0: &str =
    "rtmr_0 is left out, so that shape and devices are not judged: --format launch has it";
const NO_EVENTS: &str = "tdvfkernel and tdvfkernelparams are not in the document: rtmr_1 and rtmr_2 hold kernel \
                         and command line";

/// What the hardware will report.
pub(in super::super) struct Predicted {
    pub(super) mr_td: Digest,
    pub(super) shapes: Vec<Shape>,
    pub(super) binding: Binding,
    pub(super) xfam: Option<[u8; 8]>,
    /// Whether a broker is told RTMR0.
    pub(super) rtmr_0: bool,
}

/// One size of a guest.
pub(super) struct Shape {
    pub(super) size: Size,
    /// RTMR0 to RTMR2.
    pub(super) rtmrs: [Digest; 3],
    /// What extends RTMR1 for the kernel.
    pub(super) kernel: Option<Digest>,
    /// What extends RTMR2 for the command line.
    pub(super) command_line: Option<Digest>,
}

impl Shape {
    /// In words.
    fn size(&self) -> String {
        let vcpus = self.size.vcpus.map(|vcpus| format!(" vcpus={vcpus}"));
        format!("memory={}{}", self.size.mib, vcpus.unwrap_or_default())
    }

    /// Registers and events by their names.
    fn digests(&self) -> Vec<(&'static str, Digest)> {
        let [rtmr_0, rtmr_1, rtmr_2] = self.rtmrs;
        let mut named = vec![(RTMR_0, rtmr_0), (RTMR_1, rtmr_1), (RTMR_2, rtmr_2)];
        named.extend(self.kernel.map(|digest| ("tdvfkernel", digest)));
        named.extend(self.command_line.map(|digest| ("tdvfkernelparams", digest)));
        named
    }
}

impl Predicted {
    pub(in super::super) fn text(&self) -> String {
        let mut lines = vec![
            format!("{} {}", self.binding.field(), self.binding.hex()),
            format!("{MR_TD} {}", hex::encode(self.mr_td)),
        ];
        lines.extend(
            self.xfam
                .map(|xfam| format!("{XFAM} {}", hex::encode(xfam))),
        );
        for shape in &self.shapes {
            let size = shape.size();
            let digests = shape.digests().into_iter();
            lines.extend(
                digests.map(|(name, digest)| format!("{name} {} {size}", hex::encode(digest))),
            );
        }
        if self.xfam.is_none() {
            lines.push(NO_XFAM.to_owned());
        }
        lines.push(NO_RTMR_3.to_owned());
        let mut text = String::new();
        for line in lines {
            // A `String` takes any text.
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// MRTD, and the registers of each shape that a broker is told.
    pub(in super::super) fn measurements(&self) -> Vec<(String, String)> {
        let mut all = vec![("TDX MRTD".to_owned(), hex::encode(self.mr_td))];
        for shape in &self.shapes {
            let size = shape.size();
            let told = |(number, _): &(usize, _)| *number > 0 || self.rtmr_0;
            let registers = shape.rtmrs.iter().enumerate().filter(told);
            all.extend(
                registers
                    .map(|(number, rtmr)| (format!("TDX RTMR{number}, {size}"), hex::encode(rtmr))),
            );
        }
        all
    }

    /// Tells what a document for a broker has not.
    pub(in super::super) fn warn(&self) -> anyhow::Result<()> {
        let missing = self.xfam.is_none().then_some(NO_XFAM);
        let rtmr_0 = if self.rtmr_0 {
            RTMR_0_JUDGED
        } else {
            NO_RTMR_0
        };
        for line in missing.into_iter().chain([rtmr_0, NO_RTMR_3, NO_EVENTS]) {
            writeln!(std::io::stderr(), "{line}")?;
        }
        Ok(())
    }

    pub(in super::super) fn shapes(&self) -> Vec<Value> {
        let shape = |shape: &Shape| {
            let digests = shape.digests().into_iter();
            let mut members: Map<String, Value> = digests
                .map(|(name, digest)| (name.to_owned(), hex::encode(digest).into()))
                .collect();
            members.insert("memory_mib".to_owned(), shape.size.mib.into());
            let vcpus = shape.size.vcpus;
            members.extend(vcpus.map(|vcpus| ("vcpus".to_owned(), vcpus.into())));
            members.insert(MR_TD.to_owned(), hex::encode(self.mr_td).into());
            members.insert(self.binding.field().to_owned(), self.binding.hex().into());
            Value::Object(members)
        };
        self.shapes.iter().map(shape).collect()
    }

    pub(in super::super) fn refer(&self, all: &mut References) {
        all.digest(MR_TD, self.mr_td);
        for shape in &self.shapes {
            let [rtmr_0, rtmr_1, rtmr_2] = shape.rtmrs;
            all.digest(RTMR_1, rtmr_1);
            all.digest(RTMR_2, rtmr_2);
            if self.rtmr_0 {
                all.digest(RTMR_0, rtmr_0);
            }
        }
        if let Some(xfam) = self.xfam {
            all.xfam(xfam);
        }
    }
}
