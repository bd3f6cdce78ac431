//! The specification in the contract's protobuf form.

use agent_api::oci as proto;
use protobuf::MessageField;

use super::oci;

/// The whole specification. Hooks do not travel: they are the host's programs.
#[must_use]
pub fn spec(spec: &oci::Spec) -> proto::Spec {
    proto::Spec {
        Version: spec.oci_version.clone(),
        Process: message(spec.process.as_ref().map(process)),
        Root: message(spec.root.as_ref().map(|root| proto::Root {
            Path: root.path.clone(),
            Readonly: root.readonly,
            ..Default::default()
        })),
        Hostname: spec.hostname.clone(),
        Mounts: spec.mounts.iter().map(mount).collect(),
        Annotations: spec.annotations.clone().into_iter().collect(),
        Linux: message(spec.linux.as_ref().map(linux)),
        ..Default::default()
    }
}

/// One process, as `exec` has it too.
#[must_use]
pub fn process(process: &oci::Process) -> proto::Process {
    proto::Process {
        Terminal: process.terminal,
        ConsoleSize: message(process.console_size.as_ref().map(|size| proto::Box {
            Height: size.height,
            Width: size.width,
            ..Default::default()
        })),
        User: message(process.user.as_ref().map(|user| proto::User {
            UID: user.uid,
            GID: user.gid,
            AdditionalGids: user.additional_gids.clone(),
            Username: user.username.clone(),
            ..Default::default()
        })),
        Args: process.args.clone(),
        Env: process.env.clone(),
        Cwd: process.cwd.clone(),
        Capabilities: message(
            process
                .capabilities
                .as_ref()
                .map(|set| proto::LinuxCapabilities {
                    Bounding: set.bounding.clone(),
                    Effective: set.effective.clone(),
                    Inheritable: set.inheritable.clone(),
                    Permitted: set.permitted.clone(),
                    Ambient: set.ambient.clone(),
                    ..Default::default()
                }),
        ),
        Rlimits: process.rlimits.iter().map(rlimit).collect(),
        NoNewPrivileges: process.no_new_privileges,
        ApparmorProfile: process.apparmor_profile.clone(),
        OOMScoreAdj: process.oom_score_adj.unwrap_or_default(),
        SelinuxLabel: process.selinux_label.clone(),
        ..Default::default()
    }
}

/// Limits, as `update` has them too.
#[must_use]
pub fn resources(from: &oci::Resources) -> proto::LinuxResources {
    proto::LinuxResources {
        Devices: from.devices.iter().map(device_rule).collect(),
        Memory: message(from.memory.as_ref().map(|memory| proto::LinuxMemory {
            Limit: memory.limit.unwrap_or_default(),
            Reservation: memory.reservation.unwrap_or_default(),
            Swap: memory.swap.unwrap_or_default(),
            Swappiness: memory.swappiness.unwrap_or_default(),
            DisableOOMKiller: memory.disable_oom_killer,
            ..Default::default()
        })),
        CPU: message(from.cpu.as_ref().map(|cpu| proto::LinuxCPU {
            Shares: cpu.shares.unwrap_or_default(),
            Quota: cpu.quota.unwrap_or_default(),
            Period: cpu.period.unwrap_or_default(),
            RealtimeRuntime: cpu.realtime_runtime.unwrap_or_default(),
            RealtimePeriod: cpu.realtime_period.unwrap_or_default(),
            Cpus: cpu.cpus.clone(),
            Mems: cpu.mems.clone(),
            ..Default::default()
        })),
        Pids: message(from.pids.as_ref().map(|pids| proto::LinuxPids {
            Limit: pids.limit,
            ..Default::default()
        })),
        HugepageLimits: from.hugepage_limits.iter().map(hugepage_limit).collect(),
        ..Default::default()
    }
}

fn mount(mount: &oci::Mount) -> proto::Mount {
    proto::Mount {
        destination: mount.destination.clone(),
        source: mount.source.clone(),
        type_: mount.kind.clone(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

fn rlimit(limit: &oci::Rlimit) -> proto::POSIXRlimit {
    proto::POSIXRlimit {
        Type: limit.kind.clone(),
        Hard: limit.hard,
        Soft: limit.soft,
        ..Default::default()
    }
}

fn linux(linux: &oci::Linux) -> proto::Linux {
    proto::Linux {
        UIDMappings: linux.uid_mappings.iter().map(id_mapping).collect(),
        GIDMappings: linux.gid_mappings.iter().map(id_mapping).collect(),
        Sysctl: linux.sysctl.clone().into_iter().collect(),
        Resources: message(linux.resources.as_ref().map(resources)),
        CgroupsPath: linux.cgroups_path.clone(),
        Namespaces: linux.namespaces.iter().map(namespace).collect(),
        Devices: linux.devices.iter().map(device).collect(),
        Seccomp: message(linux.seccomp.as_ref().map(seccomp)),
        RootfsPropagation: linux.rootfs_propagation.clone(),
        MaskedPaths: linux.masked_paths.clone(),
        ReadonlyPaths: linux.readonly_paths.clone(),
        MountLabel: linux.mount_label.clone(),
        ..Default::default()
    }
}

fn id_mapping(from: &oci::IdMapping) -> proto::LinuxIDMapping {
    proto::LinuxIDMapping {
        HostID: from.host_id,
        ContainerID: from.container_id,
        Size: from.size,
        ..Default::default()
    }
}

fn namespace(from: &oci::Namespace) -> proto::LinuxNamespace {
    proto::LinuxNamespace {
        Type: from.kind.clone(),
        Path: from.path.clone(),
        ..Default::default()
    }
}

fn device(from: &oci::Device) -> proto::LinuxDevice {
    proto::LinuxDevice {
        Path: from.path.clone(),
        Type: from.kind.clone(),
        Major: from.major,
        Minor: from.minor,
        FileMode: from.file_mode,
        UID: from.uid,
        GID: from.gid,
        ..Default::default()
    }
}

/// An absent number is -1, "any", as Kata sends it.
fn device_rule(from: &oci::DeviceRule) -> proto::LinuxDeviceCgroup {
    proto::LinuxDeviceCgroup {
        Allow: from.allow,
        Type: from.kind.clone(),
        Major: from.major.unwrap_or(-1),
        Minor: from.minor.unwrap_or(-1),
        Access: from.access.clone(),
        ..Default::default()
    }
}

fn hugepage_limit(from: &oci::HugepageLimit) -> proto::LinuxHugepageLimit {
    proto::LinuxHugepageLimit {
        Pagesize: from.page_size.clone(),
        Limit: from.limit,
        ..Default::default()
    }
}

fn seccomp(from: &oci::Seccomp) -> proto::LinuxSeccomp {
    proto::LinuxSeccomp {
        DefaultAction: from.default_action.clone(),
        DefaultErrnoRet: from
            .default_errno_ret
            .map(proto::linux_seccomp::DefaultErrnoRet::Defaulterrnoret),
        Architectures: from.architectures.clone(),
        Flags: from.flags.clone(),
        Syscalls: from.syscalls.iter().map(syscall).collect(),
        ..Default::default()
    }
}

fn syscall(from: &oci::Syscall) -> proto::LinuxSyscall {
    proto::LinuxSyscall {
        Names: from.names.clone(),
        Action: from.action.clone(),
        ErrnoRet: from.errno_ret.map(proto::linux_syscall::ErrnoRet::Errnoret),
        Args: from
            .args
            .iter()
            .map(|arg| proto::LinuxSeccompArg {
                Index: arg.index,
                Value: arg.value,
                ValueTwo: arg.value_two,
                Op: arg.op.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn message<M>(from: Option<M>) -> MessageField<M> {
    from.map_or_else(MessageField::none, MessageField::some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_guest_needs_arrives() {
        let from: oci::Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","hostname":"h","root":{"path":"rootfs","readonly":true},
                "process":{"terminal":true,"args":["a"],"env":["B=c"],"cwd":"/","user":{"uid":1,"gid":2},
                  "rlimits":[{"type":"RLIMIT_NOFILE","hard":3,"soft":2}],"capabilities":{"bounding":["CAP_KILL"]}},
                "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"]}],
                "linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":9}},
                  "seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["x"],"action":"A","errnoRet":1}]}}}"#,
        )
        .unwrap();
        let to = spec(&from);
        assert!(to.Root.Readonly && to.Process.Terminal);
        assert_eq!(to.Process.Rlimits[0].Hard, 3);
        assert_eq!(to.Process.Capabilities.Bounding, ["CAP_KILL"]);
        assert_eq!(to.Mounts[0].type_, "proc");
        let linux = &to.Linux;
        assert_eq!(
            (linux.Resources.Devices[0].Major, linux.Resources.Pids.Limit),
            (-1, 9)
        );
        assert_eq!(
            linux.Seccomp.Syscalls[0].ErrnoRet,
            Some(proto::linux_syscall::ErrnoRet::Errnoret(1))
        );
        assert_eq!(
            linux.Seccomp.DefaultErrnoRet,
            Some(proto::linux_seccomp::DefaultErrnoRet::Defaulterrnoret(38))
        );
        assert!(to.Hooks.is_none());
    }
}
