//! Block devices that a specification names: `volumeDevices` of a pod, `--device` of `ctr`.
//!
//! The specification has the path in the container and the host's number; whether the container may write
//! stands in the rules of the device cgroup, of which the last that fits counts, as for the kernel.

use super::host::Host;
use super::{DiskError, Purpose, Wanted};
use crate::spec::Spec;
use crate::spec::oci::{DeviceRule, Linux};

/// The type of block devices.
pub(super) const BLOCK: &str = "b";
/// The type of a rule for all devices.
const ANY: &str = "a";

/// The block devices that a specification names.
pub(super) fn plan(spec: &Spec) -> Result<Vec<Wanted>, DiskError> {
    let Some(linux) = &spec.linux else {
        return Ok(Vec::new());
    };
    let blocks = linux.devices.iter().filter(|one| one.kind == BLOCK);
    blocks.map(|device| one(linux, device)).collect()
}

fn one(linux: &Linux, device: &crate::spec::oci::Device) -> Result<Wanted, DiskError> {
    let path = device.path.clone();
    let below = std::path::Path::new(&path).strip_prefix("/dev");
    let is_plain = below.is_ok_and(|below| {
        let mut parts = below.components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
    });
    if !is_plain {
        return Err(DiskError::Place(path));
    }
    let what = || format!("device {path}");
    let host = Host::by_number(device.major, device.minor).map_err(|source| DiskError::Host {
        what: what(),
        source,
    })?;
    let rules = linux.resources.iter().flat_map(|found| &found.devices);
    let writes = may_write(rules, device.major, device.minor);
    let read_only = !writes || host.is_read_only;
    Ok(Wanted {
        host,
        read_only,
        what: what(),
        purpose: Purpose::Node(path),
    })
}

/// Whether the rules let a container write to a block device: the last that says something of writing.
fn may_write<'a>(rules: impl Iterator<Item = &'a DeviceRule>, major: i64, minor: i64) -> bool {
    let fits = |rule: &&DeviceRule| {
        let is = |said: Option<i64>, number| said.is_none_or(|said| said == number || said < 0);
        let is_kind = [BLOCK, ANY, ""].contains(&rule.kind.as_str());
        let says = rule.access.is_empty() || rule.access.contains('w');
        is_kind && says && is(rule.major, major) && is(rule.minor, minor)
    };
    rules.filter(fits).last().is_some_and(|rule| rule.allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Vec<DeviceRule> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_last_rule_that_fits_says_whether_a_container_writes() {
        let deny = r#"{"allow":false,"access":"rwm"}"#;
        for (rule, writes) in [
            (
                r#"{"allow":true,"type":"b","major":7,"minor":3,"access":"rwm"}"#,
                true,
            ),
            (
                r#"{"allow":true,"type":"b","major":7,"minor":3,"access":"rm"}"#,
                false,
            ),
            (
                r#"{"allow":true,"type":"b","major":7,"minor":4,"access":"rwm"}"#,
                false,
            ),
            (
                r#"{"allow":true,"type":"c","major":7,"minor":3,"access":"rwm"}"#,
                false,
            ),
            (
                r#"{"allow":true,"type":"b","major":7,"minor":-1,"access":"rwm"}"#,
                true,
            ),
            (r#"{"allow":true,"type":"a"}"#, true),
        ] {
            let rules = rules(&format!("[{deny},{rule}]"));
            assert_eq!(may_write(rules.iter(), 7, 3), writes, "{rule}");
        }
        assert!(!may_write(rules("[]").iter(), 7, 3));
        let taken_back = rules(&format!("[{},{deny}]", r#"{"allow":true,"type":"a"}"#));
        assert!(!may_write(taken_back.iter(), 7, 3));
    }

    #[test]
    fn a_place_outside_of_dev_is_refused() {
        for path in ["/data", "/dev", "/dev/../etc/x", "dev/x", ""] {
            let spec = format!(r#"{{"linux":{{"devices":[{{"path":"{path}","type":"b"}}]}}}}"#);
            let refused = plan(&serde_json::from_str(&spec).unwrap());
            assert!(matches!(refused, Err(DiskError::Place(_))), "{path}");
        }
        let unknown =
            r#"{"linux":{"devices":[{"path":"/dev/x","type":"b","major":4095,"minor":7}]}}"#;
        let error = plan(&serde_json::from_str(unknown).unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("device /dev/x: the host has no"),
            "{error}"
        );
        let character = r#"{"linux":{"devices":[{"path":"/x","type":"c"}]}}"#;
        assert!(
            plan(&serde_json::from_str(character).unwrap())
                .unwrap()
                .is_empty()
        );
    }
}
