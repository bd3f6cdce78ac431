//! The runtime's options in a request to create a task: where the configuration file is.
//!
//! `ctr --runtime-config-path` and containerd's `options.ConfigPath` send
//! `runtimeoptions.v1.Options { type_url = 1, config_path = 2, config_body = 3 }`. Options of
//! runc's, which containerd sends to shims that it does not know, name nothing of ours.

use std::path::PathBuf;

use agent_api::{ErrorCode, GuestError};
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::fields::each;

/// The message's name; some clients put a host before it.
const NAME: &str = "runtimeoptions.v1.Options";
/// The numbers of its fields.
const CONFIG_PATH: u32 = 2;
const CONFIG_BODY: u32 = 3;

/// The configuration file that the options name.
///
/// # Errors
/// The options are malformed, or hold the configuration itself.
pub(crate) fn config_path(options: Option<&Any>) -> Result<Option<PathBuf>, GuestError> {
    let Some(options) = options.filter(|options| options.type_url.ends_with(NAME)) else {
        return Ok(None);
    };
    let refuse = |text: String| GuestError::new(ErrorCode::InvalidArgument, "config", text);
    let mut path = String::new();
    let mut has_body = false;
    let read = each(&options.value, |field| match field.number {
        CONFIG_PATH => field.text().map(|text| path = text),
        CONFIG_BODY => {
            has_body = true;
            Ok(())
        }
        _ => Ok(()),
    });
    read.map_err(|error| refuse(format!("runtime options: {error}")))?;
    if has_body {
        let text = "runtime options: config_body is not supported: use ConfigPath";
        return Err(refuse(text.to_owned()));
    }
    Ok(Some(path)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_path_is_read_and_others_options_are_passed_over() {
        let value = b"\x0a\x01t\x12\x05/a/b\x63";
        let read = config_path(Some(&options(NAME, value))).unwrap();
        assert_eq!(read, Some(PathBuf::from("/a/bc")));
        assert_eq!(
            config_path(Some(&options("containerd.runc.v1.Options", b"\xff"))).unwrap(),
            None
        );
        assert_eq!(config_path(None).unwrap(), None);
        assert_eq!(config_path(Some(&options(NAME, b""))).unwrap(), None);
    }

    #[test]
    fn malformed_options_are_refused() {
        assert!(config_path(Some(&options(NAME, b"\x12\xff"))).is_err());
        assert!(
            config_path(Some(&options(NAME, b"\x1a\x01x")))
                .unwrap_err()
                .message
                .contains("config_body")
        );
    }
}
