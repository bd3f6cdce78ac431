//! Volumes that a storage driver leaves to the guest to mount: Kata's *direct volumes*.
//!
//! In place of mounting a volume's device on the host, the driver describes it in a file whose directory is
//! named by the volume's path, and the kubelet hands the path on as an ordinary mount. Kata's two runtimes
//! spell some members in two ways; both are read. Members that are unknown are refused, because what they
//! ask for would not be done.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde::Deserialize;

use super::host::Host;
use super::{DiskError, FileSystem, Group, Purpose, Wanted, check};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::amend::is_host_bind;
use crate::spec::oci::Mount;

/// Where drivers describe their volumes.
pub(super) const ROOT: &str = "/run/kata-containers/shared/direct-volumes";
const FILE: &str = "mountInfo.json";
/// The type of a mount that Kata's Rust runtime takes for one.
const MOUNT_TYPE: &str = "directvol";
/// What the volume's type may be: a device, or a file, as it is.
const TYPES: [&str; 2] = ["block", "directvol"];
/// File systems that the guest's kernel has.
const FILE_SYSTEMS: [&str; 1] = ["ext4"];
const GROUP: &str = "fsGroup";
const POLICY: &str = "fsGroupChangePolicy";
/// `ephemeral`, or where the owner's broker has the key; and whether an ephemeral disk is authenticated.
const KEY: &str = "encryptionKey";
const INTEGRITY: &str = "dataIntegrity";
/// The kubelet's directory of parts of a pod's volumes.
const PARTS: &str = "volume-subpaths";
/// Plugins whose volumes a pod has.
const MAX_PLUGINS: usize = 64;
/// The longest description.
const MAX_FILE: u64 = 64 * 1024;
/// The longest name of a directory.
const MAX_NAME: usize = 255;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    #[serde(rename = "volume-type", alias = "volume_type")]
    kind: String,
    pub(super) device: String,
    #[serde(alias = "fs_type", default)]
    fstype: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    options: Option<Vec<String>>,
}

/// The volumes of a specification that are described.
pub(super) fn plan(config: &Config, spec: &mut Spec) -> Result<Vec<Wanted>, DiskError> {
    plan_in(Path::new(ROOT), config, spec)
}

fn plan_in(root: &Path, config: &Config, spec: &mut Spec) -> Result<Vec<Wanted>, DiskError> {
    let mut wanted = Vec::new();
    for (index, mount) in spec.mounts.iter_mut().enumerate() {
        let is_direct = mount.kind == MOUNT_TYPE;
        if !is_direct && !is_host_bind(mount) {
            continue;
        }
        let Some(file) = place(root, &mount.source) else {
            continue;
        };
        refuse_part(root, mount)?;
        let refused = |why: String| DiskError::Direct {
            destination: mount.destination.clone(),
            file: file.display().to_string(),
            why,
        };
        let text = match read(&file) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && !is_direct
                    && !file.parent().is_some_and(Path::exists) =>
            {
                continue;
            }
            // What the node's drivers describe is not for a user who may not look.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_direct => continue,
            read => read.map_err(|error| refused(error.to_string()))?,
        };
        let described = parse(&text).map_err(refused)?;
        let system = system(&described).map_err(refused)?;
        let what = format!("direct volume at {}", mount.destination);
        check(config, what, !system.encryption.is_empty())?;
        wanted.push(volume(index, mount, &described.device, system)?);
        // It is the guest's from here on.
        "bind".clone_into(&mut mount.kind);
        if !mount
            .options
            .iter()
            .any(|option| option == "rbind" || option == "bind")
        {
            mount.options.push("rbind".to_owned());
        }
    }
    Ok(wanted)
}

/// Refuses what is a part of such a volume: a directory below it, of which the host has nothing, and what the
/// kubelet makes of a `subPath`, which would be the host's empty directory.
fn refuse_part(root: &Path, mount: &Mount) -> Result<(), DiskError> {
    let source = Path::new(&mount.source);
    let above = source.ancestors().skip(1).map(Path::to_owned);
    let described = |volume: PathBuf| {
        let file = place(root, volume.to_str()?)?;
        file.parent().is_some_and(Path::exists).then_some(file)
    };
    match above.chain(volumes_of_part(source)).find_map(described) {
        None => Ok(()),
        Some(file) => Err(DiskError::Direct {
            destination: mount.destination.clone(),
            file: file.display().to_string(),
            why: "a part of a volume (subPath) is not mounted: mount it whole".to_owned(),
        }),
    }
}

/// The volumes of which `<pod>/volume-subpaths/<volume>/<container>/<n>` may be a part: the pod has each below
/// the name of its plugin.
fn volumes_of_part(source: &Path) -> Vec<PathBuf> {
    let named = || {
        let volume = source.parent()?.parent()?;
        let parts = volume.parent()?;
        let pod = parts.parent()?;
        (parts.file_name()? == PARTS).then_some((pod, volume.file_name()?))
    };
    let Some((pod, name)) = named() else {
        return Vec::new();
    };
    let plugins = fs::read_dir(pod.join("volumes")).into_iter().flatten();
    plugins
        .flatten()
        .take(MAX_PLUGINS)
        .map(|plugin| plugin.path().join(name))
        .flat_map(|volume| [volume.join("mount"), volume])
        .collect()
}

fn volume(
    index: usize,
    mount: &Mount,
    device: &str,
    mut system: FileSystem,
) -> Result<Wanted, DiskError> {
    let what = || format!("direct volume at {}", mount.destination);
    let host = Host::by_path(device.as_ref()).map_err(|source| DiskError::Host {
        what: what(),
        source,
    })?;
    // Whether this container may write is a matter of its own mount of it; another may.
    if host.is_read_only && !system.is_read_only() {
        system.options.push("ro".to_owned());
    }
    Ok(Wanted {
        what: what(),
        host,
        read_only: system.is_read_only(),
        purpose: Purpose::Volume(index, system),
    })
}

/// The file that would describe a volume; none for what cannot be the path of one.
pub(super) fn place(root: &Path, volume: &str) -> Option<PathBuf> {
    let name = URL_SAFE.encode(volume);
    (!volume.is_empty() && name.len() <= MAX_NAME).then(|| root.join(name).join(FILE))
}

pub(super) fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut text)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(format!("has more than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

/// A description that a pod can use.
pub(super) fn parse(text: &[u8]) -> Result<Description, String> {
    if text.len() as u64 > MAX_FILE {
        return Err(format!("has more than {MAX_FILE} bytes"));
    }
    let described = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    system(&described)?;
    Ok(described)
}

fn system(described: &Description) -> Result<FileSystem, String> {
    let Description { kind, fstype, .. } = described;
    if !TYPES.contains(&kind.as_str()) {
        let known = TYPES.join(", ");
        return Err(format!(
            "volume-type {kind:?} is not supported: use one of {known}"
        ));
    }
    if !FILE_SYSTEMS.contains(&fstype.as_str()) {
        let known = FILE_SYSTEMS.join(", ");
        return Err(format!(
            "fstype {fstype:?} is not supported: use one of {known}"
        ));
    }
    let mut metadata = described.metadata.clone().unwrap_or_default();
    let on_mismatch = match metadata.remove(POLICY).as_deref() {
        None | Some("" | "Always") => false,
        Some("OnRootMismatch") => true,
        Some(other) => return Err(format!("{POLICY} {other:?}: use Always or OnRootMismatch")),
    };
    let group = match metadata.remove(GROUP) {
        None => None,
        Some(text) => {
            let id = text.parse().ok().filter(|id| *id != u32::MAX);
            let id = id.ok_or_else(|| format!("{GROUP} {text:?} is no group's number"))?;
            Some(Group { id, on_mismatch })
        }
    };
    let encryption = encryption(metadata.remove(KEY), metadata.remove(INTEGRITY))?;
    if let Some(other) = metadata.keys().next() {
        return Err(format!(
            "metadata {other:?} is not supported: use {GROUP}, {POLICY}, {KEY}, {INTEGRITY}"
        ));
    }
    Ok(FileSystem {
        kind: fstype.clone(),
        options: described.options.clone().unwrap_or_default(),
        group,
        encryption,
    })
}

/// What the agent is told of a disk that it decrypts, in Kata's words. It, and its owner's policy, judge them.
fn encryption(key: Option<String>, integrity: Option<String>) -> Result<Vec<String>, String> {
    let Some(key) = key.filter(|key| !key.is_empty()) else {
        return match integrity {
            None => Ok(Vec::new()),
            Some(_) => Err(format!("metadata {INTEGRITY} needs {KEY}")),
        };
    };
    let is_ephemeral = key == "ephemeral";
    if !is_ephemeral && !key.starts_with("kbs:///") {
        return Err(format!(
            "metadata {KEY} is no address of a key: use ephemeral or kbs:///…"
        ));
    }
    let mut options = vec![format!("encryption_key={key}")];
    if is_ephemeral {
        options.push("create_filesystem".to_owned());
    }
    match integrity.as_deref() {
        None => {}
        Some("true" | "false") if is_ephemeral => {
            let value = integrity.unwrap_or_default();
            options.push(format!("data_integrity={value}"));
        }
        Some(_) => {
            return Err(format!(
                "metadata {INTEGRITY}: use true or false, with {KEY} ephemeral"
            ));
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pv/mount";

    fn planned(json: &str, options: &[&str]) -> (Spec, Result<Vec<Wanted>, DiskError>) {
        planned_as("bind", json, options)
    }

    fn planned_as(
        kind: &str,
        json: &str,
        options: &[&str],
    ) -> (Spec, Result<Vec<Wanted>, DiskError>) {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk");
        fs::write(&disk, "x").unwrap();
        let directory = root.path().join(URL_SAFE.encode(VOLUME));
        fs::create_dir(&directory).unwrap();
        let json = json.replace("DISK", disk.to_str().unwrap());
        fs::write(directory.join(FILE), json).unwrap();
        let mount = |source: &str| Mount {
            destination: "/data".into(),
            source: source.into(),
            kind: kind.into(),
            options: options.iter().map(|one| (*one).to_owned()).collect(),
            ..Mount::default()
        };
        let mut spec = Spec {
            mounts: vec![mount("/srv"), mount(VOLUME)],
            ..Spec::default()
        };
        let planned = plan_in(root.path(), &Config::default(), &mut spec);
        (spec, planned)
    }

    #[test]
    fn a_volume_is_found_however_its_mount_says_that_it_is_a_bind_mount() {
        let json = r#"{"volume-type":"block","device":"DISK","fstype":"ext4"}"#;
        for (kind, option) in [
            ("bind", "rw"),
            ("", "bind"),
            ("none", "bind"),
            ("none", "rbind"),
        ] {
            let (spec, found) = planned_as(kind, json, &[option]);
            assert_eq!(found.unwrap().len(), 1, "{kind} {option}");
            assert_eq!(spec.mounts[1].kind, "bind");
        }
        let (_, found) = planned_as("none", json, &["rw"]);
        assert!(found.unwrap().is_empty(), "no bind mount");
    }

    #[test]
    fn a_volume_is_described_in_the_words_of_either_runtime() {
        let go = r#"{"volume-type":"block","device":"DISK","fstype":"ext4",
            "metadata":{"fsGroup":"2000","fsGroupChangePolicy":"OnRootMismatch"},"options":["noatime"]}"#;
        let rust = r#"{"volume_type":"directvol","device":"DISK","fs_type":"ext4","metadata":{},"options":[]}"#;
        let (_, found) = planned(go, &["rbind", "rw"]);
        let found = found.unwrap();
        assert_eq!(found.len(), 1);
        let Purpose::Volume(1, system) = &found[0].purpose else {
            panic!("{found:?}")
        };
        assert_eq!(
            (system.kind.as_str(), system.options.as_slice()),
            ("ext4", ["noatime".to_owned()].as_slice())
        );
        assert_eq!(
            system.group,
            Some(Group {
                id: 2000,
                on_mismatch: true
            })
        );
        assert!(!found[0].read_only);
        let (spec, found) = planned(rust, &["rbind", "ro"]);
        let found = found.unwrap();
        assert!(!found[0].read_only, "another container may write");
        assert_eq!(spec.mounts[1].kind, "bind");
        assert!(spec.mounts[1].options.iter().any(|option| option == "ro"));
        let described =
            r#"{"volume-type":"block","device":"DISK","fstype":"ext4","options":["ro"]}"#;
        let (_, found) = planned(described, &["rbind", "rw"]);
        assert!(found.unwrap()[0].read_only);
    }

    #[test]
    fn an_encrypted_volume_is_asked_for_in_the_words_of_katas_agent() {
        for (metadata, asked) in [
            (
                r#"{"encryptionKey":"ephemeral"}"#,
                &["encryption_key=ephemeral", "create_filesystem"][..],
            ),
            (
                r#"{"encryptionKey":"ephemeral","dataIntegrity":"false"}"#,
                &[
                    "encryption_key=ephemeral",
                    "create_filesystem",
                    "data_integrity=false",
                ],
            ),
            (
                r#"{"encryptionKey":"kbs:///default/disk/key"}"#,
                &["encryption_key=kbs:///default/disk/key"],
            ),
        ] {
            let described = format!(
                r#"{{"volume-type":"block","device":"DISK","fstype":"ext4","metadata":{metadata}}}"#
            );
            let (_, found) = planned(&described, &["rbind"]);
            let found = found.unwrap();
            let Purpose::Volume(_, system) = &found[0].purpose else {
                panic!("{found:?}")
            };
            assert_eq!(system.encryption, asked, "{metadata}");
        }
    }

    #[test]
    fn what_would_not_be_done_is_refused_by_name() {
        for (json, told) in [
            (
                r#"{"volume-type":"spdkvol","device":"DISK","fstype":"ext4"}"#,
                "spdkvol",
            ),
            (
                r#"{"volume-type":"block","device":"DISK","fstype":"ntfs"}"#,
                "ntfs",
            ),
            (r#"{"volume-type":"block","device":"DISK"}"#, "fstype"),
            (
                r#"{"volume-type":"block","device":"DISK","fstype":"ext4","more":1}"#,
                "more",
            ),
            (
                r#"{"volume-type":"block","device":"/dev/null","fstype":"ext4"}"#,
                "neither",
            ),
            (
                r#"{"volume-type":"block","device":"DISK","fstype":"ext4","metadata":{"encryptionKey":"k"}}"#,
                "kbs:///",
            ),
            (
                r#"{"volume-type":"block","device":"DISK","fstype":"ext4","metadata":{"dataIntegrity":"true"}}"#,
                "needs encryptionKey",
            ),
            (
                r#"{"volume-type":"block","device":"DISK","fstype":"ext4","metadata":{"key":"k"}}"#,
                "\"key\"",
            ),
            (
                r#"{"volume-type":"block","device":"DISK","fstype":"ext4","metadata":{"fsGroup":"-1"}}"#,
                "fsGroup",
            ),
            ("{", "EOF"),
        ] {
            let (_, refused) = planned(json, &["rbind"]);
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(told) && error.contains("/data"), "{error}");
        }
    }

    #[test]
    fn a_part_of_a_volume_and_a_directory_without_a_description_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/u");
        let volume = pod.join("volumes/kubernetes.io~csi/pv/mount");
        fs::create_dir_all(&volume).unwrap();
        let described = place(root.path(), volume.to_str().unwrap()).unwrap();
        fs::create_dir(described.parent().unwrap()).unwrap();
        let refused = |source: &Path| {
            let mount = Mount {
                destination: "/data".into(),
                source: source.display().to_string(),
                kind: "bind".into(),
                ..Mount::default()
            };
            let mut spec = Spec {
                mounts: vec![mount],
                ..Spec::default()
            };
            let planned = plan_in(root.path(), &Config::default(), &mut spec);
            planned.err().map(|error| error.to_string())
        };
        let error = refused(&volume).unwrap();
        assert!(error.contains("mountInfo.json"), "{error}");
        for part in [volume.join("a"), pod.join("volume-subpaths/pv/main/0")] {
            let error = refused(&part).unwrap();
            assert!(
                error.contains("subPath") && error.contains("/data"),
                "{error}"
            );
        }
        assert_eq!(refused(&pod.join("volume-subpaths/other/main/0")), None);
        assert_eq!(refused(&pod.join("volumes/kubernetes.io~csi/other")), None);
    }

    #[test]
    fn the_names_of_kata_are_looked_for_and_only_of_mounts_that_can_be_volumes() {
        let file = place(Path::new(ROOT), "/a/b?c").unwrap();
        assert_eq!(
            file,
            Path::new("/run/kata-containers/shared/direct-volumes/L2EvYj9j/mountInfo.json")
        );
        assert_eq!(place(Path::new(ROOT), ""), None);
        assert_eq!(place(Path::new(ROOT), &"x".repeat(200)), None);
        let mut spec: Spec = serde_json::from_str(
            r#"{"mounts":[{"destination":"/d","type":"directvol","source":"/none"}]}"#,
        )
        .unwrap();
        assert!(plan_in(Path::new("/nowhere"), &Config::default(), &mut spec).is_err());
    }
}
