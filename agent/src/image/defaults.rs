//! What a container has of its image's configuration where the request leaves it open: its process, its environment,
//! and the directories of its volumes.

use std::path::Path;

use agent_api::{ErrorCode, GuestError, oci};
use oci_spec::image::ImageConfiguration;

use crate::fault::{OrFail, invalid};
use crate::path;
use crate::users::Owner;

/// Takes from the image what the request leaves open: all of the process when it names no program,
/// else the user where it has none, what is missing of the environment, and an empty working directory.
///
/// # Errors
///
/// Neither names a program.
pub fn fill_process(
    process: &mut oci::Process,
    config: &ImageConfiguration,
) -> Result<(), GuestError> {
    let empty = oci_spec::image::Config::default();
    let config = config.config().as_ref().unwrap_or(&empty);
    let user = process.User.get_or_default();
    let names_root = user.Username.is_empty() && user.UID == 0 && user.GID == 0;
    if process.User.is_none() || (process.Args.is_empty() && names_root) {
        let user = process.User.mut_or_insert_default();
        user.Username = config.user().clone().unwrap_or_default();
    }
    if process.Args.is_empty() {
        let words = config.entrypoint().iter().chain(config.cmd()).flatten();
        process.Args = words.cloned().collect();
    }
    if process.Args.is_empty() {
        return Err(invalid(
            "create",
            "neither the request nor the image names a program",
        ));
    }
    fill_environment(
        &mut process.Env,
        config.env().as_deref().unwrap_or_default(),
    );
    if process.Cwd.is_empty() {
        process.Cwd = config.working_dir().clone().unwrap_or_default();
    }
    Ok(())
}

/// Makes the directories that the image calls volumes, where its layers have none. What is written there is the
/// container's, as all of its root is; who wants more mounts something on them.
///
/// # Errors
///
/// Names the volume.
pub fn make_volumes(
    root: &Path,
    config: &ImageConfiguration,
    owner: Owner,
) -> Result<(), GuestError> {
    let volumes = config
        .config()
        .as_ref()
        .and_then(|config| config.volumes().as_ref());
    for volume in volumes.into_iter().flatten() {
        let what = format!("volume {} of the image", image_rs::shown(volume));
        path::make_in_root(root, Path::new(volume), owner).or_fail(
            ErrorCode::InvalidArgument,
            "create",
            what,
        )?;
    }
    Ok(())
}

/// Adds to an environment without `PATH` what it has not: it is what somebody asked for by hand, and not
/// one that a container manager made from the image's. That one stays as it is.
pub fn fill_environment(environment: &mut Vec<String>, below: &[String]) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let asked: Vec<_> = environment.iter().map(|entry| name(entry)).collect();
    if !asked.iter().any(|name| name == "PATH") {
        let missing = below.iter().filter(|entry| !asked.contains(&name(entry)));
        environment.extend(missing.cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_are_made_in_the_root_whatever_links_are_on_their_way() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("link")).unwrap();
        let config = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Volumes": {"/data/deep": {}, "/link/in": {}, "/real": {}}},
        }))
        .unwrap();
        make_volumes(root.path(), &config, Owner::default()).unwrap();
        assert!(root.path().join("data/deep").is_dir());
        assert!(root.path().join("real/in").is_dir());
    }

    #[test]
    fn an_environment_without_a_path_is_added_to_the_images() {
        let below = [
            "PATH=/bin".to_owned(),
            "A=image".to_owned(),
            "B=image".to_owned(),
        ];
        let filled = |entries: &[&str]| {
            let mut environment = entries.iter().map(|&entry| entry.to_owned()).collect();
            fill_environment(&mut environment, &below);
            environment
        };
        assert_eq!(filled(&[]), below);
        assert_eq!(filled(&["A=mine"]), ["A=mine", "PATH=/bin", "B=image"]);
        assert_eq!(filled(&["PATH=/x", "A=mine"]), ["PATH=/x", "A=mine"]);
    }

    fn image() -> ImageConfiguration {
        serde_json::from_value(json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": ["/entry"],
                "Cmd": ["arg"],
                "Env": ["A=image"],
                "WorkingDir": "/work",
                "User": "web",
            },
            "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap()
    }

    #[test]
    fn a_request_without_a_program_takes_all_from_the_image() {
        let mut process = oci::Process::new();
        fill_process(&mut process, &image()).unwrap();
        assert_eq!(process.Args, ["/entry", "arg"]);
        assert_eq!(process.Env, ["A=image"]);
        assert_eq!(
            (process.Cwd.as_str(), process.User.Username.as_str()),
            ("/work", "web")
        );
    }

    #[test]
    fn what_the_request_says_stays() {
        let mut process = oci::Process::new();
        process.Args = vec!["mine".into()];
        process.Env = vec!["A=request".into(), "PATH=/bin".into()];
        process.User.mut_or_insert_default();
        fill_process(&mut process, &image()).unwrap();
        assert_eq!(process.Args, ["mine"]);
        assert_eq!(process.Env, ["A=request", "PATH=/bin"]);
        // The user of a request is always meant: zero is root.
        assert!(process.User.Username.is_empty());
        assert_eq!(process.Cwd, "/work");
        process.User.clear();
        fill_process(&mut process, &image()).unwrap();
        assert_eq!(process.User.Username, "web");
    }

    #[test]
    fn a_program_must_come_from_somewhere() {
        let bare = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap();
        assert!(fill_process(&mut oci::Process::new(), &bare).is_err());
    }
}
