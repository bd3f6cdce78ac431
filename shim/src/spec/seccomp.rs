//! What of a seccomp profile the message to the guest has no place for.

use agent_api::{ErrorCode, GuestError};

use super::oci::Spec;

/// Refuses a profile whose listener the guest could not reach.
///
/// # Errors
/// It names one.
pub fn check(spec: &Spec) -> Result<(), GuestError> {
    let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
    let field = match seccomp {
        Some(profile) if !profile.listener_path.is_empty() => "listenerPath",
        Some(profile) if !profile.listener_metadata.is_empty() => "listenerMetadata",
        _ => return Ok(()),
    };
    let message = format!(
        "linux.seccomp.{field}: the listener is a program of the host, and cannot answer for system calls \
         in the guest: use a profile without SCMP_ACT_NOTIFY"
    );
    Err(GuestError::new(ErrorCode::Unimplemented, "spec", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_the_host_is_refused_by_its_field() {
        let error = |profile: &str| {
            let text = format!(r#"{{"linux":{{"seccomp":{profile}}}}}"#);
            check(&serde_json::from_str(&text).unwrap()).map_err(|error| error.to_string())
        };
        let path = error(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/l.sock"}"#);
        assert!(path.unwrap_err().contains("linux.seccomp.listenerPath"));
        let metadata = error(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"m"}"#);
        assert!(metadata.unwrap_err().contains("listenerMetadata"));
        assert_eq!(error(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), Ok(()));
        assert_eq!(error("null"), Ok(()));
    }
}
