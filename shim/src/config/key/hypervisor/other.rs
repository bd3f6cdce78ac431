//! The keys of a VMM's table that set nothing: those that mean nothing here, and those that are taken
//! only where they ask for what is done anyway.

use crate::config::key::Kind::{Number, Switch, Tables, Text, Words};
use crate::config::key::{Allowed, Moot, Only};

pub(super) const MOOT: &[Moot] = &[
    Moot {
        why: "is about the disk image of Kata's guest; Cloister's guest is its kernel with an initramfs",
        keys: &[
            ("image", Text),
            ("rootfs_type", Text),
            ("vm_rootfs_driver", Text),
            ("kernel_verity_params", Text),
            ("disable_image_nvdimm", Switch),
            ("memory_offset", Number),
        ],
    },
    Moot {
        why: "disks have QEMU's own settings: virtio-blk where they are there from the start, SCSI where they come later",
        keys: &[
            ("block_device_driver", Text),
            ("block_device_aio", Text),
            ("block_device_cache_set", Switch),
            ("block_device_cache_direct", Switch),
            ("block_device_cache_noflush", Switch),
            ("block_device_logical_sector_size", Number),
            ("block_device_physical_sector_size", Number),
            ("num_queues", Number),
            ("queue_size", Number),
        ],
    },
    Moot {
        why: "what comes later is processors, memory, disks and network cards, which need no bridge, and no port that is not counted anyway",
        keys: &[
            ("default_bridges", Number),
            ("pcie_root_port", Number),
            ("pcie_switch_port", Number),
            ("hotplug_vfio_on_root_bus", Switch),
        ],
    },
    Moot {
        why: "the guest's network cards have one queue",
        keys: &[("network_queues", Number)],
    },
    Moot {
        why: "only 9p, hugepages, swap, vhost-user stores or memory dumps would use it, and none is on",
        keys: &[
            ("msize_9p", Number),
            ("hugepage_type", Text),
            ("file_mem_backend", Text),
            ("guest_swap_path", Text),
            ("guest_swap_size_percent", Number),
            ("guest_swap_create_threshold_secs", Number),
            ("vhost_user_store_path", Text),
            ("vhost_user_reconnect_timeout_sec", Number),
            ("guest_memory_dump_paging", Switch),
            ("virtio_fs_queue_size", Number),
            ("factory.template_path", Text),
            ("memory_path", Text),
            ("device_state_path", Text),
        ],
    },
    Moot {
        why: "no annotation sets the path that it would admit",
        keys: &[
            ("valid_jailer_paths", Words),
            ("valid_ctlpaths", Words),
            ("valid_entropy_sources", Words),
            ("valid_vhost_user_store_paths", Words),
            ("valid_file_mem_backends", Words),
        ],
    },
    Moot {
        why: "the console and QEMU's errors are kept in any case, in the sandbox's directory and in the messages of failures",
        keys: &[
            ("enable_debug", Switch),
            ("log_level", Text),
            ("hypervisor_loglevel", Number),
        ],
    },
    Moot {
        why: "QEMU always runs in its seccomp sandbox, with everything denied that it denies",
        keys: &[("seccomp_sandbox", Text), ("seccompsandbox", Text)],
    },
    Moot {
        why: "counts for Arm's confidential guests, of which there is none",
        keys: &[("measurement_algo", Text)],
    },
    Moot {
        why: "there is no such check, or no such part, under QEMU here",
        keys: &[
            ("disable_nesting_checks", Switch),
            ("disable_selinux", Switch),
            ("ctlpath", Text),
            ("remote_hypervisor_socket", Text),
            ("remote_hypervisor_timeout", Number),
            ("hypervisor_socket", Text),
            ("hypervisor_timeout", Number),
            ("prefetch_list_path", Text),
        ],
    },
];

pub(super) const ONLY: &[Only] = &[
    Only {
        allowed: Allowed::Named(&["coco"]),
        why: "the parts of extension \"coco\" are in Cloister's agent, and no other extension is loaded",
        fix: "remove the extension",
        keys: &[("guest_extension_images", Tables)],
    },
    Only {
        allowed: Allowed::Parts(&["pmu=off"]),
        why: "the guest has the host's processor model as it is",
        fix: "remove it; of cpu_features \"pmu=off\" is taken, and left out",
        keys: &[
            ("cpu_features", Text),
            ("disable_nested_virtualization", Switch),
        ],
    },
    Only {
        allowed: Allowed::Text(&["/dev/urandom", "/dev/random"]),
        why: "the guest's entropy device reads the host's /dev/urandom",
        fix: "use \"/dev/urandom\"",
        keys: &[("entropy_source", Text)],
    },
    Only {
        allowed: Allowed::Text(&["no-port"]),
        why: "no PCI device of the host is passed to guests",
        fix: "use \"no-port\"",
        keys: &[("cold_plug_vfio", Text), ("hot_plug_vfio", Text)],
    },
    Only {
        allowed: Allowed::On,
        why: "the guest's kernel has no SELinux: a label would not hold",
        fix: "set it to true",
        keys: &[("disable_guest_selinux", Switch)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "it takes protection from the host or from the guest",
        fix: "remove it",
        keys: &[
            ("disable_seccomp", Switch),
            ("extra_monitor_socket", Text),
            ("dbg_monitor_socket", Text),
            ("guest_memory_dump_path", Text),
            ("guest_hook_path", Text),
        ],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "QEMU runs as the shim does, under the user and label that containerd gives it: this would not hold",
        fix: "remove it",
        keys: &[
            ("rootless", Switch),
            ("rootless_user.uid", Number),
            ("rootless_user.gid", Number),
            ("rootless_user.groups", Words),
            ("rootless_user.user_name", Text),
            ("selinux_label", Text),
            ("jailer_path", Text),
        ],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "the guest's memory is plain memory of the host, which grows by whole modules",
        fix: "remove it",
        keys: &[
            ("enable_virtio_mem", Switch),
            ("enable_hugepages", Switch),
            ("enable_mem_prealloc", Switch),
            ("enable_guest_swap", Switch),
            ("enable_numa", Switch),
            ("numa_mapping", Words),
            ("virtio_fs_cache_size", Number),
            ("virtio_fs_is_dax", Switch),
        ],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "the VM has no such device",
        fix: "remove it",
        keys: &[
            ("enable_iommu", Switch),
            ("enable_iommu_platform", Switch),
            ("enable_vhost_user_store", Switch),
            ("enable_iothreads", Switch),
            ("indep_iothreads", Number),
            ("use_legacy_serial", Switch),
            ("pflashes", Words),
            ("firmware_volume", Text),
            ("machine_accelerators", Text),
            ("default_gpus", Number),
            ("default_gpu_model", Text),
        ],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "no rate of disk or network is limited by the VMM: the limit would not hold",
        fix: "remove it; limit the pod in its specification, or on the host",
        keys: &[
            ("disk_rate_limiter_bw_max_rate", Number),
            ("disk_rate_limiter_bw_one_time_burst", Number),
            ("disk_rate_limiter_ops_max_rate", Number),
            ("disk_rate_limiter_ops_one_time_burst", Number),
            ("net_rate_limiter_bw_max_rate", Number),
            ("net_rate_limiter_bw_one_time_burst", Number),
            ("net_rate_limiter_ops_max_rate", Number),
            ("net_rate_limiter_ops_one_time_burst", Number),
            ("rx_rate_limiter_max_rate", Number),
            ("tx_rate_limiter_max_rate", Number),
        ],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "every VM boots: templates share memory between pods",
        fix: "set it to false",
        keys: &[
            ("factory.enable_template", Switch),
            ("boot_to_be_template", Switch),
            ("boot_from_template", Switch),
        ],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "init-data is a file of its own here",
        fix: "write it into a file that init_data in [cloister] names",
        keys: &[("initdata", Text)],
    },
];
