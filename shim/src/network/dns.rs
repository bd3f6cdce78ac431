//! The pod's name servers: what stands in the resolv.conf that is mounted into its containers, for the
//! guest's own.

use std::fs::File;
use std::io::Read;

use crate::spec::Spec;

const DESTINATION: &str = "/etc/resolv.conf";
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// The most lines, and the longest, that the agent takes.
const MAX_LINES: usize = 64;
const MAX_LINE: usize = 1024;

/// The lines of the pod's resolv.conf; none where the host gives it none.
#[must_use]
pub fn resolv_conf(spec: &Spec) -> Vec<String> {
    if super::user::is_asked_for(spec) {
        return super::user::resolv_conf();
    }
    let mut mounts = spec.mounts.iter();
    let Some(mount) = mounts.find(|mount| mount.destination == DESTINATION) else {
        return Vec::new();
    };
    let mut text = String::new();
    let read =
        File::open(&mount.source).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    match read {
        Ok(_) => lines(&text),
        // Its containers have their own mount, whose error is told when it is made.
        Err(_) => Vec::new(),
    }
}

/// What says something, with single blanks.
fn lines(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with(['#', ';']))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty() && line.len() <= MAX_LINE)
        .filter(|line| !line.contains(char::is_control))
        .take(MAX_LINES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_say_something_are_told() {
        let text = "# by kubelet\nsearch ns.svc.cluster.local\tsvc\n\n ; x\nnameserver  10.0.0.10\n\
            options ndots:5\n";
        assert_eq!(
            lines(text),
            [
                "search ns.svc.cluster.local svc",
                "nameserver 10.0.0.10",
                "options ndots:5"
            ]
        );
        assert_eq!(lines(&"nameserver 1\n".repeat(100)).len(), MAX_LINES);
    }

    #[test]
    fn a_pod_without_the_file_has_no_lines() {
        let spec: Spec = serde_json::from_str(
            r#"{"mounts":[{"destination":"/etc/resolv.conf","source":"/nonexistent/r"}]}"#,
        )
        .unwrap();
        assert!(resolv_conf(&spec).is_empty());
        assert!(resolv_conf(&Spec::default()).is_empty());
    }
}
