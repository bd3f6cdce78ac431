//! The annotations that Kata and Cloister know, each with the key that it sets for one pod.

use super::{CLOISTER, HYPERVISOR, Take};

/// How a value is read, and what may not be set so.
pub(super) struct Row {
    /// The name behind `io.katacontainers.config.`.
    pub(super) name: &'static str,
    /// The key that it sets.
    pub(super) key: &'static str,
    pub(super) take: Take,
}

/// Those whose name is not their key's, or whose value is not written as its key's.
pub(super) const ROWS: &[Row] = &[
    Row {
        name: "hypervisor.cc_init_data",
        key: "",
        take: Take::InitData,
    },
    Row {
        name: "hypervisor.path",
        key: "hypervisor.qemu.path",
        take: Take::Program,
    },
    Row {
        name: "hypervisor.virtio_fs_daemon",
        key: "hypervisor.qemu.virtio_fs_daemon",
        take: Take::Daemon,
    },
    Row {
        name: "hypervisor.kernel",
        key: "hypervisor.qemu.kernel",
        take: Take::File,
    },
    Row {
        name: "hypervisor.initrd",
        key: "hypervisor.qemu.initrd",
        take: Take::File,
    },
    Row {
        name: "hypervisor.firmware",
        key: "hypervisor.qemu.firmware",
        take: Take::File,
    },
    Row {
        name: "hypervisor.default_memory",
        key: "hypervisor.qemu.default_memory",
        take: Take::Mebibytes,
    },
    Row {
        name: "hypervisor.default_max_vcpus",
        key: "hypervisor.qemu.default_maxvcpus",
        take: Take::Key,
    },
    Row {
        name: "hypervisor.blk_logical_sector_size",
        key: "hypervisor.qemu.block_device_logical_sector_size",
        take: Take::Key,
    },
    Row {
        name: "hypervisor.blk_physical_sector_size",
        key: "hypervisor.qemu.block_device_physical_sector_size",
        take: Take::Key,
    },
    Row {
        name: "hypervisor.block_device_num_queues",
        key: "hypervisor.qemu.num_queues",
        take: Take::Key,
    },
    Row {
        name: "hypervisor.block_device_queue_size",
        key: "hypervisor.qemu.queue_size",
        take: Take::Key,
    },
    Row {
        name: "hypervisor.prefetch_files.list",
        key: "hypervisor.qemu.prefetch_list_path",
        take: Take::Key,
    },
    Row {
        name: "hypervisor.virtio_fs_extra_args",
        key: "hypervisor.qemu.virtio_fs_extra_args",
        take: Take::Never("an argument could share any directory of the host"),
    },
    Row {
        name: "runtime.sandbox_bind_mounts",
        key: "runtime.sandbox_bind_mounts",
        take: Take::Never("directories of the host are named by the pod's volumes"),
    },
    Row {
        name: "runtime.shared_mounts",
        key: "runtime.shared_mounts",
        take: Take::Never("directories of the host are named by the pod's volumes"),
    },
    Row {
        name: "runtime.hypervisor_name",
        key: "runtime.hypervisor_name",
        take: Take::Just("qemu"),
    },
    Row {
        name: "runtime.experimental",
        key: "runtime.experimental",
        take: Take::List(','),
    },
    Row {
        name: "hypervisor.numa_mapping",
        key: "hypervisor.qemu.numa_mapping",
        take: Take::List(','),
    },
    Row {
        name: "agent.kernel_modules",
        key: "agent.kata.kernel_modules",
        take: Take::List(';'),
    },
];

/// Hashes of files, by which Kata's Go runtime compared what it was about to start.
pub(super) const HASHES: &[&str] = &[
    "hypervisor.path_hash",
    "hypervisor.hypervisor_hash",
    "hypervisor.kernel_hash",
    "hypervisor.image_hash",
    "hypervisor.initrd_hash",
    "hypervisor.firmware_hash",
    "hypervisor.firmware_volume_hash",
    "hypervisor.jailer_hash",
    "hypervisor.asset_hash_type",
];

/// Those that are a key, with its values: the family, what is put in place of it, and the names.
pub(super) const SAME: &[(&str, &str, &[&str])] = &[
    (
        HYPERVISOR,
        "hypervisor.qemu.",
        &[
            "block_device_aio",
            "block_device_cache_direct",
            "block_device_cache_noflush",
            "block_device_cache_set",
            "block_device_driver",
            "cold_plug_vfio",
            "cpu_features",
            "default_gpu_model",
            "default_gpus",
            "default_vcpus",
            "disable_block_device_use",
            "disable_image_nvdimm",
            "disable_vhost_net",
            "enable_guest_swap",
            "enable_hugepages",
            "enable_iommu",
            "enable_iommu_platform",
            "enable_iothreads",
            "enable_mem_prealloc",
            "enable_vhost_user_store",
            "enable_virtio_mem",
            "entropy_source",
            "firmware_volume",
            "guest_hook_path",
            "hot_plug_vfio",
            "hugepage_type",
            "image",
            "indep_iothreads",
            "jailer_path",
            "kernel_params",
            "kernel_verity_params",
            "machine_accelerators",
            "machine_type",
            "memory_offset",
            "memory_slots",
            "msize_9p",
            "network_queues",
            "pcie_root_port",
            "pcie_switch_port",
            "reclaim_guest_freed_memory",
            "rootless",
            "rx_rate_limiter_max_rate",
            "shared_fs",
            "tx_rate_limiter_max_rate",
            "use_legacy_serial",
            "vhost_user_reconnect_timeout_sec",
            "vhost_user_store_path",
            "virtio_fs_cache",
            "virtio_fs_cache_size",
        ],
    ),
    (
        "runtime.",
        "runtime.",
        &[
            "agent_name",
            "create_container_timeout",
            "disable_guest_seccomp",
            "disable_new_netns",
            "enable_debug",
            "enable_pprof",
            "enable_vcpus_pinning",
            "experimental_force_guest_pull",
            "guest_selinux_label",
            "internetworking_model",
            "name",
            "sandbox_cgroup_only",
            "vfio_mode",
        ],
    ),
    (
        "agent.",
        "agent.kata.",
        &[
            "cdh_api_timeout_ms",
            "container_pipe_size",
            "enable_tracing",
            "policy",
        ],
    ),
    // Cloister's own: Kata has no such disk.
    (CLOISTER, "cloister.", &["scratch_disk"]),
];

/// The row of an annotation, by its name behind the prefix.
pub(super) fn find(name: &str) -> Option<(String, Take)> {
    if let Some(row) = ROWS.iter().find(|row| row.name == name) {
        return Some((row.key.to_owned(), row.take));
    }
    if HASHES.contains(&name) {
        let why = "no file is compared with a hash: `cloister measure` predicts the digest of the whole guest";
        return Some((String::new(), Take::Never(why)));
    }
    SAME.iter().find_map(|(family, table, names)| {
        let key = name.strip_prefix(family)?;
        names
            .contains(&key)
            .then(|| (format!("{table}{key}"), Take::Key))
    })
}

/// All names, each behind the prefix.
pub(super) fn names() -> impl Iterator<Item = String> {
    let same = SAME
        .iter()
        .flat_map(|(family, _, names)| names.iter().map(move |name| format!("{family}{name}")));
    let rows = ROWS.iter().map(|row| row.name.to_owned());
    rows.chain(HASHES.iter().map(|name| (*name).to_owned()))
        .chain(same)
}
