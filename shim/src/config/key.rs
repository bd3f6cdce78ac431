//! The keys of a configuration file: those that are supported, those of Kata's that are not, and
//! the nearest one to a misspelt one.
//!
//! A key of Kata's that asks for nothing (`false`, `0`, an empty string or list) is accepted: the
//! runtime does just that. One that asks for something is refused by name.

use toml::{Table, Value};

/// Which table a list of keys is for, and the keys that are supported in it.
const SUPPORTED: &[(&str, &[&str])] = &[
    (
        "hypervisor.qemu",
        &[
            "path",
            "kernel",
            "initrd",
            "machine_type",
            "firmware",
            "default_vcpus",
            "default_memory",
            "kernel_params",
            "enable_annotations",
            "shared_fs",
            "virtio_fs_daemon",
            "virtio_fs_extra_args",
        ],
    ),
    (
        "agent.kata",
        &["reconnect_timeout_ms", "create_container_timeout"],
    ),
    (
        "runtime",
        &[
            "name",
            "hypervisor_name",
            "agent_name",
            "experimental",
            "disable_guest_seccomp",
        ],
    ),
    (
        "cloister",
        &["accel", "tee", "init_data", "scratch_disk", "scratch_dir"],
    ),
    ("relay", &["allow"]),
    ("mirror", &["directory", "size_mib"]),
];

/// Kata's keys (4.1) that are known and not supported.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    (
        "hypervisor.qemu",
        &[
            "image",
            "rootfs_type",
            "vm_rootfs_driver",
            "confidential_guest",
            "kernel_verity_params",
            "valid_hypervisor_paths",
            "valid_virtio_fs_daemon_paths",
            "valid_file_mem_backends",
            "valid_entropy_sources",
            "valid_vhost_user_store_paths",
            "cpu_features",
            "seccompsandbox",
            "seccomp_sandbox",
            "rootless",
            "selinux_label",
            "disable_selinux",
            "disable_guest_selinux",
            "default_maxvcpus",
            "overhead_vcpus",
            "overhead_memory",
            "memory_slots",
            "memory_offset",
            "default_maxmemory",
            "enable_virtio_mem",
            "enable_mem_prealloc",
            "enable_hugepages",
            "reclaim_guest_freed_memory",
            "enable_guest_swap",
            "guest_swap_path",
            "block_device_driver",
            "block_device_aio",
            "block_device_cache_set",
            "block_device_cache_direct",
            "block_device_cache_noflush",
            "queue_size",
            "num_queues",
            "enable_iothreads",
            "indep_iothreads",
            "disable_block_device_use",
            "disk_rate_limiter_bw_max_rate",
            "disk_rate_limiter_ops_max_rate",
            "virtio_fs_cache",
            "virtio_fs_cache_size",
            "virtio_fs_queue_size",
            "vhost_user_store_path",
            "enable_vhost_user_store",
            "cold_plug_vfio",
            "hot_plug_vfio",
            "hotplug_vfio_on_root_bus",
            "pcie_root_port",
            "pcie_switch_port",
            "default_bridges",
            "enable_iommu",
            "enable_iommu_platform",
            "entropy_source",
            "disable_vhost_net",
            "network_queues",
            "guest_hook_path",
            "guest_memory_dump_path",
            "guest_memory_dump_paging",
            "extra_monitor_socket",
            "enable_debug",
            "machine_accelerators",
            "sev_snp_guest",
            "snp_guest_policy",
            "snp_id_block",
            "snp_id_auth",
            "tdx_quote_generation_service_socket_port",
            "guest_extension_images",
            "disable_image_nvdimm",
            "firmware_volume",
            "msize_9p",
            "rx_rate_limiter_max_rate",
            "tx_rate_limiter_max_rate",
            "file_mem_backend",
        ],
    ),
    (
        "agent.kata",
        &[
            "enable_debug",
            "enable_tracing",
            "kernel_modules",
            "debug_console_enabled",
            "dial_timeout",
            "dial_timeout_ms",
            "cdh_api_timeout",
            "cdh_api_timeout_ms",
            "launch_process_timeout",
            "image_pull_timeout",
            "policy",
            "mem_agent",
            "server_port",
            "log_port",
            "container_pipe_size",
            "health_check_request_timeout_ms",
        ],
    ),
    (
        "runtime",
        &[
            "enable_debug",
            "internetworking_model",
            "disable_new_netns",
            "sandbox_cgroup_only",
            "static_sandbox_resource_mgmt",
            "sandbox_bind_mounts",
            "vfio_mode",
            "disable_guest_empty_dir",
            "emptydir_mode",
            "dan_conf",
            "enable_vcpus_pinning",
            "enable_pprof",
            "enable_tracing",
            "jaeger_endpoint",
            "jaeger_user",
            "jaeger_password",
            "keep_abnormal",
            "shared_mounts",
            "use_passfd_io",
            "passfd_listener_port",
            "pod_resource_api_sock",
            "guest_selinux_label",
            "create_container_timeout",
            "image_client",
        ],
    ),
    (
        "factory",
        &[
            "enable_template",
            "template_path",
            "vm_cache_number",
            "vm_cache_endpoint",
        ],
    ),
    (
        "hypervisor",
        &[
            "clh",
            "cloud-hypervisor",
            "firecracker",
            "dragonball",
            "remote",
            "stratovirt",
            "openvmm",
        ],
    ),
];

/// What is wrong with a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// No one knows it; perhaps this one was meant.
    Unknown(String, Option<String>),
    /// Kata knows it; it is not supported.
    Unsupported(String),
}

/// The first key of the file that must be refused.
pub(super) fn check(file: &Table) -> Option<Problem> {
    file.iter().find_map(|(name, value)| check_top(name, value))
}

fn check_top(name: &str, value: &Value) -> Option<Problem> {
    let Value::Table(table) = value else {
        return Some(Problem::Unknown(name.to_owned(), nearest(name, &tables())));
    };
    match name {
        // These hold one table for each kind.
        "hypervisor" | "agent" => table.iter().find_map(|(kind, value)| {
            let path = format!("{name}.{kind}");
            match value {
                Value::Table(keys) if is_table(&path) => check_keys(&path, keys),
                _ if lists(UNSUPPORTED, name, kind) => Some(Problem::Unsupported(path)),
                _ => Some(Problem::Unknown(path.clone(), nearest(&path, &tables()))),
            }
        }),
        _ if is_table(name) || UNSUPPORTED.iter().any(|(known, _)| *known == name) => {
            check_keys(name, table)
        }
        _ => Some(Problem::Unknown(name.to_owned(), nearest(name, &tables()))),
    }
}

fn check_keys(table: &str, keys: &Table) -> Option<Problem> {
    keys.iter().find_map(|(key, value)| {
        let path = format!("{table}.{key}");
        if lists(SUPPORTED, table, key) {
            None
        } else if lists(UNSUPPORTED, table, key) {
            (!asks_for_nothing(value)).then_some(Problem::Unsupported(path))
        } else {
            let candidates = all_keys(table);
            let suggestion = nearest(key, &candidates).map(|near| format!("{table}.{near}"));
            Some(Problem::Unknown(path, suggestion))
        }
    })
}

/// The candidate that differs from `word` by the fewest edits, if they are few.
pub(super) fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    /// More edits than this are another word, not a misspelt one.
    const MOST_EDITS: usize = 3;
    let (edits, best) = candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .min_by_key(|(edits, _)| *edits)?;
    (edits <= MOST_EDITS && edits < word.len()).then(|| best.to_owned())
}

/// Levenshtein's distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Removes the unsupported keys that ask for nothing, so that the rest can be read strictly.
pub(super) fn strip_unsupported(file: &mut Table) {
    for (table, keys) in UNSUPPORTED {
        let target = match table.split_once('.') {
            Some((top, kind)) => file.get_mut(top).and_then(|top| top.get_mut(kind)),
            None => file.get_mut(*table),
        };
        if let Some(Value::Table(target)) = target {
            for key in *keys {
                target.remove(*key);
            }
        }
    }
    file.remove("factory");
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Boolean(on) => !on,
        Value::Integer(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.values().all(asks_for_nothing),
        Value::Datetime(_) => false,
    }
}

fn is_table(name: &str) -> bool {
    SUPPORTED.iter().any(|(table, _)| *table == name)
}

fn lists(lists: &[(&str, &[&str])], table: &str, key: &str) -> bool {
    lists
        .iter()
        .any(|(name, keys)| *name == table && keys.contains(&key))
}

fn tables() -> Vec<&'static str> {
    SUPPORTED.iter().map(|(table, _)| *table).collect()
}

fn all_keys(table: &str) -> Vec<&'static str> {
    let of_table = |lists: &'static [(&str, &[&'static str])]| {
        lists
            .iter()
            .filter(move |(name, _)| *name == table)
            .flat_map(|(_, keys)| keys.iter().copied())
    };
    of_table(SUPPORTED).chain(of_table(UNSUPPORTED)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Option<Problem> {
        check(&text.parse().unwrap())
    }

    #[test]
    fn a_misspelt_key_gets_a_suggestion() {
        let problem = problem("[hypervisor.qemu]\ndefault_vcpu = 1").unwrap();
        let near = Some("hypervisor.qemu.default_vcpus".to_owned());
        assert_eq!(
            problem,
            Problem::Unknown("hypervisor.qemu.default_vcpu".into(), near)
        );
    }

    #[test]
    fn a_misspelt_table_gets_a_suggestion() {
        assert_eq!(
            problem("[relays]"),
            Some(Problem::Unknown("relays".into(), Some("relay".into())))
        );
        assert_eq!(
            problem("zzzzzzzz = 1"),
            Some(Problem::Unknown("zzzzzzzz".into(), None))
        );
    }

    #[test]
    fn keys_of_kata_are_refused_only_where_they_ask_for_something() {
        assert_eq!(problem("[hypervisor.qemu]\nenable_iommu = false"), None);
        let refused = Some(Problem::Unsupported("hypervisor.qemu.enable_iommu".into()));
        assert_eq!(problem("[hypervisor.qemu]\nenable_iommu = true"), refused);
        assert_eq!(problem("[factory]\nenable_template = false"), None);
    }

    #[test]
    fn another_hypervisor_is_refused_by_name() {
        let refused = Some(Problem::Unsupported("hypervisor.clh".into()));
        assert_eq!(problem("[hypervisor.clh]\npath = \"x\""), refused);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
