//! Options of storages: what is the kernel's, what the file system's, and what ours.

use std::ffi::CString;

use agent_api::GuestError;
use rustix::mount::MountFlags;

use super::PHASE;
use crate::fault::invalid;

/// The option that gives a storage to a group of the pod; Kata's name.
const GROUP_OPTION: &str = "fsgid=";

/// The group that a storage is for, and the options without it.
pub(super) fn take_group(options: &[String]) -> Result<(Option<u32>, Vec<String>), GuestError> {
    let (groups, rest): (Vec<_>, Vec<_>) = options
        .iter()
        .cloned()
        .partition(|option| option.starts_with(GROUP_OPTION));
    let Some(named) = groups.last() else {
        return Ok((None, rest));
    };
    let group = named
        .strip_prefix(GROUP_OPTION)
        .and_then(|id| id.parse().ok());
    match group.filter(|id| *id != u32::MAX) {
        Some(id) => Ok((Some(id), rest)),
        None => Err(invalid(PHASE, format!("{named} names no group"))),
    }
}

/// A local directory is for the pod's containers, whoever they run as.
pub(super) fn local_mode(options: &[String]) -> Result<u32, GuestError> {
    let Some(mode) = options
        .iter()
        .find_map(|option| option.strip_prefix("mode="))
    else {
        return Ok(0o777);
    };
    let parsed = u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    parsed.ok_or_else(|| invalid(PHASE, format!("mode={mode} is not a mode")))
}

/// Flags, and the rest for the file system.
pub(super) fn mount_options(options: &[String]) -> Result<(MountFlags, CString), GuestError> {
    let mut flags = MountFlags::empty();
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            other => rest.push(other),
        }
    }
    let rest = CString::new(rest.join(",")).map_err(|e| invalid(PHASE, e))?;
    Ok((flags, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> (MountFlags, String) {
        let list: Vec<_> = text.split(' ').map(str::to_owned).collect();
        let (flags, rest) = mount_options(&list).unwrap();
        (flags, rest.into_string().unwrap())
    }

    #[test]
    fn flags_are_told_from_the_file_systems_own_options() {
        let (flags, rest) = options("noexec nosuid mode=1777 size=64m rw");
        assert_eq!(flags, MountFlags::NOEXEC | MountFlags::NOSUID);
        assert_eq!(rest, "mode=1777,size=64m");
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(local_mode(&[]).unwrap(), 0o777);
        assert_eq!(local_mode(&["mode=0750".into()]).unwrap(), 0o750);
        assert!(local_mode(&["mode=9".into()]).is_err());
    }

    #[test]
    fn a_group_is_no_option_of_the_file_system() {
        let (group, rest) = take_group(&["fsgid=7".into(), "size=1".into()]).unwrap();
        assert_eq!((group, rest), (Some(7), vec!["size=1".to_owned()]));
        assert_eq!(take_group(&[]).unwrap(), (None, Vec::new()));
        for bad in ["fsgid=", "fsgid=x", "fsgid=4294967295"] {
            assert!(take_group(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
