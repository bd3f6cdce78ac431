//! The part of the OCI runtime specification that reaches a guest, as JSON has it.
//!
//! Names of capabilities, actions and so on stay text: the guest's runtime is the one who knows
//! them. Absent lists are empty, as the specification lets both mean the same.
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>
#![allow(
    missing_docs,
    reason = "the fields are the specification's, under its names"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Reads `null` as the default, as Go writes empty lists.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub struct $name {
                $($(#[$meta])* #[serde(deserialize_with = "nullable")] pub $field: $type,)*
            }
        )*
    };
}

wire! {
    /// `config.json`.
    Spec {
        oci_version: String,
        process: Option<Process>,
        root: Option<Root>,
        hostname: String,
        domainname: String,
        mounts: Vec<Mount>,
        hooks: Option<Hooks>,
        annotations: BTreeMap<String, String>,
        linux: Option<Linux>,
    }
    /// `hooks`.
    Hooks {
        prestart: Vec<Hook>,
        create_runtime: Vec<Hook>,
        create_container: Vec<Hook>,
        start_container: Vec<Hook>,
        poststart: Vec<Hook>,
        poststop: Vec<Hook>,
    }
    /// A program of the host; `timeout` is in seconds.
    Hook { path: String, args: Vec<String>, env: Vec<String>, timeout: Option<u64>, }
    /// `root`.
    Root { path: String, readonly: bool, }
    /// One of `mounts`.
    Mount {
        destination: String,
        source: String,
        #[serde(rename = "type")] kind: String,
        options: Vec<String>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
    }
    /// `process`.
    Process {
        terminal: bool,
        console_size: Option<ConsoleSize>,
        user: Option<User>,
        args: Vec<String>,
        env: Vec<String>,
        cwd: String,
        capabilities: Option<Capabilities>,
        rlimits: Vec<Rlimit>,
        no_new_privileges: bool,
        apparmor_profile: String,
        oom_score_adj: Option<i64>,
        selinux_label: String,
        io_priority: Option<Value>,
        scheduler: Option<Value>,
    }
    /// `process.consoleSize`, in characters.
    ConsoleSize { height: u32, width: u32, }
    /// `process.user`.
    User {
        uid: u32,
        gid: u32,
        umask: Option<u32>,
        additional_gids: Vec<u32>,
        username: String,
    }
    /// `process.capabilities`.
    Capabilities {
        bounding: Vec<String>,
        effective: Vec<String>,
        inheritable: Vec<String>,
        permitted: Vec<String>,
        ambient: Vec<String>,
    }
    /// One of `process.rlimits`.
    Rlimit { #[serde(rename = "type")] kind: String, hard: u64, soft: u64, }
    /// `linux`.
    Linux {
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        sysctl: BTreeMap<String, String>,
        resources: Option<Resources>,
        cgroups_path: String,
        namespaces: Vec<Namespace>,
        devices: Vec<Device>,
        seccomp: Option<Seccomp>,
        rootfs_propagation: String,
        masked_paths: Vec<String>,
        readonly_paths: Vec<String>,
        mount_label: String,
        time_offsets: Option<Value>,
        intel_rdt: Option<Value>,
        personality: Option<Personality>,
    }
    /// `linux.personality`.
    Personality { domain: String, }
    /// One of `linux.uidMappings` and `linux.gidMappings`.
    IdMapping {
        #[serde(rename = "hostID")] host_id: u32,
        #[serde(rename = "containerID")] container_id: u32,
        size: u32,
    }
    /// One of `linux.namespaces`.
    Namespace { #[serde(rename = "type")] kind: String, path: String, }
    /// One of `linux.devices`.
    Device {
        path: String,
        #[serde(rename = "type")] kind: String,
        major: i64,
        minor: i64,
        file_mode: u32,
        uid: u32,
        gid: u32,
    }
    /// `linux.resources`.
    Resources {
        devices: Vec<DeviceRule>,
        memory: Option<Memory>,
        cpu: Option<Cpu>,
        pids: Option<Pids>,
        hugepage_limits: Vec<HugepageLimit>,
        #[serde(rename = "blockIO")] block_io: Option<Value>,
        network: Option<Value>,
        rdma: Option<Value>,
    }
    /// One of `linux.resources.devices`.
    DeviceRule {
        allow: bool,
        #[serde(rename = "type")] kind: String,
        major: Option<i64>,
        minor: Option<i64>,
        access: String,
    }
    /// `linux.resources.memory`, in bytes.
    Memory {
        limit: Option<i64>,
        reservation: Option<i64>,
        swap: Option<i64>,
        swappiness: Option<u64>,
        #[serde(rename = "disableOOMKiller")] disable_oom_killer: bool,
    }
    /// `linux.resources.cpu`, times in microseconds.
    Cpu {
        shares: Option<u64>,
        quota: Option<i64>,
        period: Option<u64>,
        realtime_runtime: Option<i64>,
        realtime_period: Option<u64>,
        cpus: String,
        mems: String,
    }
    /// `linux.resources.pids`.
    Pids { limit: i64, }
    /// One of `linux.resources.hugepageLimits`.
    HugepageLimit { page_size: String, limit: u64, }
    /// `linux.seccomp`.
    Seccomp {
        default_action: String,
        default_errno_ret: Option<u32>,
        architectures: Vec<String>,
        flags: Vec<String>,
        listener_path: String,
        listener_metadata: String,
        syscalls: Vec<Syscall>,
    }
    /// One of `linux.seccomp.syscalls`.
    Syscall { names: Vec<String>, action: String, errno_ret: Option<u32>, args: Vec<SyscallArg>, }
    /// One of `linux.seccomp.syscalls.args`.
    SyscallArg { index: u64, value: u64, value_two: u64, op: String, }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_writes_null_for_what_is_empty() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","mounts":null,"process":{"user":{"uid":5},"args":null}}"#,
        )
        .unwrap();
        assert_eq!(spec.process.unwrap().user.unwrap().uid, 5);
        assert!(spec.mounts.is_empty());
    }

    #[test]
    fn odd_names_of_the_specification_are_read() {
        let linux: Linux = serde_json::from_str(
            r#"{"uidMappings":[{"hostID":1,"containerID":2,"size":3}],"namespaces":[{"type":"network","path":"/n"}],
                "resources":{"memory":{"limit":5,"disableOOMKiller":true}}}"#,
        )
        .unwrap();
        assert_eq!(linux.uid_mappings[0].host_id, 1);
        assert_eq!(linux.namespaces[0].kind, "network");
        assert!(linux.resources.unwrap().memory.unwrap().disable_oom_killer);
    }
}
