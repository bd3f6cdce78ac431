//! `[runtime]`: the shim, and `[factory]`: what would start VMs before there are pods.

use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

use super::Kind::{Number, Switch, Tables, Text, Words};
use super::{Allowed, Honoured, Keys, Moot, Only, Set, VMMS};
use crate::config::{EmptyDirs, timeout};

/// How `experimental` spells that the guest pulls every image.
const FORCE_GUEST_PULL: &str = "force_guest_pull";

/// The table.
pub(super) static KEYS: Keys = Keys {
    honoured: HONOURED,
    moot: MOOT,
    only: ONLY,
};

/// The factory's.
pub(super) static FACTORY: Keys = Keys {
    honoured: &[],
    moot: &[Moot {
        why: "counts for templates and VM caches, of which none is on",
        keys: &[("template_path", Text), ("vm_cache_endpoint", Text)],
    }],
    only: &[Only {
        allowed: Allowed::Nothing,
        why: "every VM boots for its pod: none is cloned or kept in store",
        fix: "set it to false, or to 0",
        keys: &[("enable_template", Switch), ("vm_cache_number", Number)],
    }],
};

const HONOURED: &[Honoured] = &[
    Honoured {
        name: "experimental",
        set: Set::Words(|config, words| {
            if let Some(word) = words.iter().find(|word| *word != FORCE_GUEST_PULL) {
                return Err(format!("{word:?} is not one of {FORCE_GUEST_PULL:?}"));
            }
            config.force_guest_pull |= !words.is_empty();
            Ok(())
        }),
        get: |config| {
            let on = config
                .force_guest_pull
                .then(|| Value::from(FORCE_GUEST_PULL));
            Value::Array(on.into_iter().collect())
        },
    },
    Honoured {
        name: "experimental_force_guest_pull",
        set: Set::Switch(|config, on| config.force_guest_pull |= on),
        get: |config| Value::from(config.force_guest_pull),
    },
    Honoured {
        name: "emptydir_mode",
        set: Set::Text(|config, name| {
            if !name.is_empty() {
                config.empty_dirs = EmptyDirs::parse(name)?;
            }
            Ok(())
        }),
        get: |config| Value::from(config.empty_dirs.name()),
    },
    Honoured {
        name: "disable_guest_seccomp",
        set: Set::Switch(|config, on| config.disable_guest_seccomp = on),
        get: |config| Value::from(config.disable_guest_seccomp),
    },
    Honoured {
        name: "sandbox_cgroup_only",
        set: Set::Switch(|config, on| config.sandbox_cgroup = on),
        get: |config| Value::from(config.sandbox_cgroup),
    },
    Honoured {
        name: "enable_debug",
        set: Set::Switch(|config, on| config.observe.debug = on),
        get: |config| Value::from(config.observe.debug),
    },
    Honoured {
        name: "enable_tracing",
        set: Set::Switch(|config, on| config.observe.tracing = on),
        get: |config| Value::from(config.observe.tracing),
    },
    Honoured {
        name: "static_sandbox_resource_mgmt",
        set: Set::Switch(|config, on| config.static_size = on),
        get: |config| Value::from(config.static_size),
    },
    Honoured {
        name: "kubelet_root_dir",
        set: Set::Text(|config, path| {
            if !path.starts_with('/') {
                return Err(format!("{path:?} is not an absolute path"));
            }
            config.kubelet_root = PathBuf::from(path);
            Ok(())
        }),
        get: |config| Value::from(config.kubelet_root.display().to_string()),
    },
    // Kata's Go runtime has it here; [agent.kata] has it too, and comes after.
    Honoured {
        name: "create_container_timeout",
        set: Set::Number(|config, seconds| {
            config.create_timeout = timeout(Duration::from_secs(seconds))?;
            Ok(())
        }),
        get: |config| {
            let seconds = i64::try_from(config.create_timeout.as_secs());
            Value::from(seconds.unwrap_or(i64::MAX))
        },
    },
];

const MOOT: &[Moot] = &[
    Moot {
        why: "enable_debug and containerd's -debug say how much the shim logs",
        keys: &[("log_level", Text)],
    },
    Moot {
        why: "no PCI device of the host is passed to guests",
        keys: &[
            ("vfio_mode", Text),
            ("dan_conf", Text),
            ("pod_resource_api_sock", Text),
        ],
    },
    Moot {
        why: "emptydir_mode says where an emptyDir is",
        keys: &[("disable_guest_empty_dir", Switch)],
    },
    Moot {
        why: "is about the inner working of Kata's runtimes",
        keys: &[
            ("enable_pprof", Switch),
            ("use_passfd_io", Switch),
            ("passfd_listener_port", Number),
        ],
    },
    Moot {
        why: "traces are sent as OTLP, which Jaeger takes at its port 4318: otlp_endpoint in [cloister] names it",
        keys: &[
            ("jaeger_endpoint", Text),
            ("jaeger_user", Text),
            ("jaeger_password", Text),
        ],
    },
];

const ONLY: &[Only] = &[
    Only {
        allowed: Allowed::Text(&["virt_container", "virt-container", "cloister"]),
        why: "containers run in VMs, and in nothing else",
        fix: "use \"virt_container\"",
        keys: &[("name", Text)],
    },
    Only {
        allowed: Allowed::Text(VMMS),
        why: "is not the name of a VMM",
        fix: "use \"qemu\"",
        keys: &[("hypervisor_name", Text)],
    },
    Only {
        allowed: Allowed::Text(&["kata", "cloister"]),
        why: "the guest's agent is Cloister's, with Kata's protocol",
        fix: "use \"kata\"",
        keys: &[("agent_name", Text)],
    },
    Only {
        allowed: Allowed::LeftOut(&["tcfilter", "none"]),
        why: "an interface of the pod reaches the guest by a tap and tc, or there is none",
        fix: "use \"tcfilter\", which is taken and left out, or \"none\"",
        keys: &[("internetworking_model", Text)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "a pod does not run in the host's network",
        fix: "set it to false",
        keys: &[("disable_new_netns", Switch)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "only what a container's specification names is shared with the guest",
        fix: "remove it; name the directory as a volume of the pod",
        keys: &[("sandbox_bind_mounts", Words), ("shared_mounts", Tables)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "this would not hold: there is no such part",
        fix: "remove it",
        keys: &[
            ("enable_vcpus_pinning", Switch),
            ("keep_abnormal", Switch),
            ("guest_selinux_label", Text),
        ],
    },
];
