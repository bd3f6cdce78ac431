//! What containerd pipes to `start`, in the forms that its versions have.
//!
//! | who | what comes in | what goes out |
//! |---|---|---|
//! | CRI-O | nothing | the address |
//! | containerd 1.6, 1.7, 2.0 to 2.2 | the runtime's options, or nothing | the address |
//! | containerd from 2.3 on | `BootstrapParams`, the options in an extension | `BootstrapResult` |
//!
//! Of the options of runc, which containerd sends to shims that it does not know, one counts here: the cgroup
//! in which it wants the shim. Of the runtime's own it is the configuration file: each task names it again,
//! but a pod without a sandbox container has no task to name it.

use std::path::PathBuf;

use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::BootstrapError;
use crate::fields::each;
use crate::task::options;

/// The version of the task service that every containerd since 1.3 speaks.
const TASK_VERSION: i32 = 2;
/// The name of runc's options, and the number of their `shim_cgroup`.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
const SHIM_CGROUP: u32 = 3;

/// What counts of it; what is not there is to be had from the command line and the environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// containerd's address.
    pub(super) containerd: Option<String>,
    /// Where events go.
    pub(super) events: Option<String>,
    /// Where the socket is to be.
    pub(super) sockets: Option<PathBuf>,
    /// The cgroup in which the shim is to be.
    pub(super) shim_cgroup: Option<String>,
    /// The configuration file.
    pub(super) config: Option<PathBuf>,
    by_message: bool,
}

impl Asked {
    /// Reads what comes in for the container of this id.
    pub(super) fn read(input: &[u8], id: &str, namespace: &str) -> Result<Self, BootstrapError> {
        let params = BootstrapParams::parse_from_bytes(input).ok();
        // Options decode as this message too, with odd values.
        let params =
            params.filter(|params| params.instance_id == id && params.namespace == namespace);
        let Some(params) = params else {
            let options = Any::parse_from_bytes(input).ok();
            return Self::default().with(options.iter());
        };
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        let options = params
            .extensions
            .iter()
            .filter_map(|one| one.value.as_ref());
        let asked = Self {
            containerd: said(params.containerd_grpc_address.clone()),
            events: said(params.containerd_ttrpc_address.clone()),
            sockets: params.socket_dir.clone().and_then(said).map(PathBuf::from),
            by_message: true,
            ..Self::default()
        };
        asked.with(options)
    }

    fn with<'a>(mut self, options: impl Iterator<Item = &'a Any>) -> Result<Self, BootstrapError> {
        for one in options {
            let config = options::config_path(Some(one))
                .map_err(|error| BootstrapError::Options(error.to_string()))?;
            self.config = self.config.or(config);
            let cgroup = shim_cgroup(one)?;
            self.shim_cgroup = self.shim_cgroup.or(cgroup);
        }
        Ok(self)
    }

    /// The answer for a server at this address, in the form of the question.
    pub(super) fn reply(&self, address: String) -> Vec<u8> {
        if !self.by_message {
            return address.into_bytes();
        }
        let result = BootstrapResult {
            version: TASK_VERSION,
            address,
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        };
        result.write_to_bytes().unwrap_or_default()
    }
}

/// `ShimCgroup` of runc's options.
fn shim_cgroup(options: &Any) -> Result<Option<String>, BootstrapError> {
    if !options.type_url.ends_with(RUNC_OPTIONS) {
        return Ok(None);
    }
    let mut path = String::new();
    let read = each(&options.value, |field| match field.number {
        SHIM_CGROUP => field.text().map(|text| path = text),
        _ => Ok(()),
    });
    read.map_err(|error| BootstrapError::Options(error.to_string()))?;
    Ok(Some(path).filter(|path| !path.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(type_url: &str, value: &[u8]) -> Vec<u8> {
        let any = Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Default::default()
        };
        any.write_to_bytes().unwrap()
    }

    fn read(input: &[u8]) -> Asked {
        Asked::read(input, "pod", "k8s.io").unwrap()
    }

    #[test]
    fn the_shims_cgroup_is_read_from_runcs_options_and_no_others() {
        let value = b"\x08\x01\x1a\x05/shim\x48\x01";
        let of = |input: &[u8]| read(input).shim_cgroup;
        assert_eq!(of(&options(RUNC_OPTIONS, value)).as_deref(), Some("/shim"));
        assert_eq!(of(&options("runtimeoptions.v1.Options", b"")), None);
        assert_eq!(of(&options(RUNC_OPTIONS, b"\x1a\x00")), None);
        assert_eq!(of(b""), None);
        let torn = options(RUNC_OPTIONS, b"\x1a\xff");
        assert!(Asked::read(&torn, "pod", "k8s.io").is_err());
    }

    /// What containerd 1.6, 1.7 and 2.0 to 2.2 pipe for a handler with `ConfigPath`, and what 2.4 has before it.
    const OPTIONS: &[u8] = b"\x0a\x19runtimeoptions.v1.Options\x12\x30\x0a\x23io.containerd.runtimeoptions.v1.Opt\x12\x09/c/a.toml";
    const PARAMS: &[u8] = b"\x0a\x03pod\x12\x06k8s.io\x22\x062.4.2+\x2a\x0a/c.s.ttrpc\x32\x04/c.s\x3a\x0b/containerd\x42\x4f\x0a\x4d";

    #[test]
    fn a_containerd_of_before_2_3_pipes_options_and_reads_an_address() {
        let asked = read(OPTIONS);
        assert_eq!(asked.config, Some(PathBuf::from("/c/a.toml")));
        assert_eq!((&asked.containerd, &asked.events), (&None, &None));
        assert_eq!(asked.reply("unix:///s".to_owned()), b"unix:///s");
        let nothing = read(b"");
        assert_eq!(nothing, Asked::default());
        assert_eq!(nothing.reply("unix:///s".to_owned()), b"unix:///s");
    }

    #[test]
    fn a_containerd_from_2_3_on_pipes_a_message_and_reads_one() {
        let input = [PARAMS, OPTIONS, b"\x4a\x05/sock"].concat();
        let asked = read(&input);
        assert_eq!(asked.config, Some(PathBuf::from("/c/a.toml")));
        assert_eq!(asked.containerd.as_deref(), Some("/c.s"));
        assert_eq!(asked.events.as_deref(), Some("/c.s.ttrpc"));
        assert_eq!(asked.sockets, Some(PathBuf::from("/sock")));
        let reply = asked.reply("unix:///s".to_owned());
        assert_eq!(reply, b"\x08\x02\x12\x09unix:///s\x1a\x05ttrpc");
        // For another container it is no message, and as options it has no name that counts.
        let other = Asked::read(&input, "other", "k8s.io").unwrap();
        assert_eq!(other, Asked::default());
    }
}
