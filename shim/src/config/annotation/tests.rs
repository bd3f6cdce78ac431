//! Annotations are allowed by name, judged by their key's rule, and never weaken what is there.

use std::collections::BTreeMap;

use super::*;
use crate::config::{SharedFs, Tee};

const VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";

fn all() -> Config {
    Config {
        enable_annotations: vec![".*".to_owned()],
        ..Config::default()
    }
}

fn with(config: Config, name: &str, value: &str) -> Result<Config, String> {
    let annotations = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    apply(config, &annotations).map_err(|error| error.to_string())
}

fn apply_one(allowed: &[&str], key: &str, value: &str) -> Result<Config, String> {
    let config = Config {
        enable_annotations: allowed.iter().map(|name| (*name).to_owned()).collect(),
        ..Config::default()
    };
    with(config, key, value)
}

fn config(name: &str, value: &str) -> Result<Config, String> {
    with(all(), &format!("{PREFIX}{name}"), value)
}

#[test]
fn an_allowed_annotation_takes_effect() {
    let vcpus = |allowed: &[&str], value| apply_one(allowed, VCPUS, value).unwrap().vm.vcpus;
    assert_eq!(vcpus(&["default_vcpus"], "3"), 3);
    assert_eq!(vcpus(&[".*"], "3"), 3);
    assert_eq!(vcpus(&["default_(vcpus|memory)"], "1.5"), 2);
    assert_eq!(apply_one(&[], "unrelated", "3").unwrap(), Config::default());
}

#[test]
fn one_that_is_not_allowed_is_refused_with_the_fix() {
    let error = apply_one(&["default_memory"], VCPUS, "3").unwrap_err();
    assert!(error.contains(VCPUS), "{error}");
    assert!(
        error.contains("add \"default_vcpus\" to enable_annotations"),
        "{error}"
    );
    let key = "io.katacontainers.config.runtime.disable_guest_seccomp";
    let error = apply_one(&["disable_guest_seccomp"], key, "true").unwrap_err();
    assert!(
        error.contains("\"runtime.disable_guest_seccomp\""),
        "{error}"
    );
    assert!(apply_one(&["runtime.disable_guest_seccomp"], key, "false").is_ok());
    assert!(apply_one(&["runtime\\..*"], key, "false").is_ok());
}

#[test]
fn every_family_is_behind_the_list() {
    for name in table::names() {
        let error = with(Config::default(), &format!("{PREFIX}{name}"), "1").unwrap_err();
        let never = matches!(table::find(&name), Some((_, Take::Never(_))));
        assert!(never || error.contains("is not allowed"), "{name}: {error}");
    }
}

#[test]
fn every_annotation_has_its_key() {
    for name in table::names() {
        let (key, take) = table::find(&name).unwrap();
        let own = matches!(take, Take::InitData | Take::Never(_));
        assert!(own || key::find(&key).is_some(), "{name}: {key}");
    }
}

#[test]
fn a_pod_may_ask_for_a_scratch_disk_of_its_own_size() {
    let key = "io.katacontainers.config.cloister.scratch_disk";
    let allowed = ["cloister.scratch_disk"];
    assert_eq!(apply_one(&allowed, key, "4096").unwrap().scratch_mib, 4096);
    for value in ["0", "1", "999999999"] {
        assert!(apply_one(&allowed, key, value).is_err(), "{value}");
    }
    assert!(apply_one(&["scratch_disk"], key, "4096").is_err());
}

#[test]
fn values_are_typed_and_capped() {
    for value in ["", "0", "-1", "many", "inf", "1000"] {
        assert!(
            apply_one(&[".*"], VCPUS, value)
                .unwrap_err()
                .contains(VCPUS)
        );
    }
    assert!(config("hypervisor.kernel_params", "cloister.tee=none").is_err());
    assert!(config("runtime.sandbox_cgroup_only", "maybe").is_err());
    assert!(config("runtime.sandbox_cgroup_only", "True").is_ok());
    assert_eq!(
        config("hypervisor.default_memory", "1Gi")
            .unwrap()
            .vm
            .memory_mib,
        1024
    );
    assert!(config("hypervisor.default_memory", "1").is_err());
    let long = "x".repeat(MAX_VALUE + 1);
    assert!(
        config("hypervisor.kernel_params", &long)
            .unwrap_err()
            .contains("bytes")
    );
    assert!(config("hypervisor.cc_init_data", &long).is_ok());
    assert!(config("hypervisor.cc_init_data", &"x".repeat(MAX_INIT_DATA + 1)).is_err());
}

#[test]
fn kernel_parameters_take_the_place_of_those_with_their_name() {
    let mut base = all();
    base.vm.kernel_params = vec!["quiet".to_owned(), "loglevel=1".to_owned()];
    let name = format!("{PREFIX}hypervisor.kernel_params");
    let changed = with(base, &name, "loglevel=7 a=b").unwrap();
    assert_eq!(changed.vm.kernel_params, ["quiet", "loglevel=7", "a=b"]);
}

#[test]
fn a_key_that_is_refused_in_the_file_is_refused_of_a_pod() {
    for (name, value) in [
        ("hypervisor.enable_iommu", "true"),
        ("hypervisor.guest_hook_path", "/hooks"),
        ("hypervisor.kernel_hash", "00"),
        ("hypervisor.virtio_fs_extra_args", "-o,source=/"),
        ("runtime.sandbox_bind_mounts", "/etc"),
        ("runtime.disable_new_netns", "true"),
        ("runtime.hypervisor_name", "clh"),
        ("agent.kernel_modules", "i915;e1000e"),
        ("agent.policy", "cGFja2FnZSBhZ2VudF9wb2xpY3k="),
    ] {
        let error = config(name, value).unwrap_err();
        assert!(error.contains(name), "{name}: {error}");
    }
    for (name, value) in [
        ("hypervisor.enable_iommu", "false"),
        ("hypervisor.block_device_driver", "virtio-scsi"),
        ("runtime.hypervisor_name", "qemu"),
        ("runtime.internetworking_model", "tcfilter"),
        ("agent.kernel_modules", ""),
    ] {
        assert_eq!(config(name, value), Ok(all()), "{name}");
    }
}

#[test]
fn a_pod_does_not_weaken_what_the_operator_set() {
    let seccomp = Config {
        disable_guest_seccomp: false,
        ..all()
    };
    let name = format!("{PREFIX}runtime.disable_guest_seccomp");
    assert!(with(seccomp, &name, "true").is_err());
    assert!(!with(all(), &name, "false").unwrap().disable_guest_seccomp);

    let name = format!("{PREFIX}runtime.sandbox_cgroup_only");
    assert!(with(all(), &name, "false").is_err());
    assert!(with(all(), &name, "true").unwrap().sandbox_cgroup);

    let mut capped = all();
    capped.vm.max_vcpus = Some(4);
    let most = format!("{PREFIX}hypervisor.default_max_vcpus");
    assert!(with(capped.clone(), &most, "8").is_err());
    assert_eq!(
        with(capped.clone(), &most, "2").unwrap().vm.max_vcpus,
        Some(2)
    );
    assert!(with(capped, VCPUS, "5").is_err());

    let mut confidential = all();
    confidential.tee = Tee::Sample;
    confidential.vm.shared_fs = SharedFs::None;
    let share = format!("{PREFIX}hypervisor.shared_fs");
    let error = with(confidential, &share, "virtio-fs").unwrap_err();
    assert!(error.contains("confidential"), "{error}");
}

#[test]
fn paths_must_be_admitted_and_exist() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("qemu-1");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let path = format!("{PREFIX}hypervisor.path");
    let error = with(all(), &path, file).unwrap_err();
    assert!(error.contains("valid_hypervisor_paths"), "{error}");
    let mut config = all();
    config.valid_hypervisor_paths = vec![format!("{}/qemu-*", dir.path().display())];
    assert_eq!(
        with(config.clone(), &path, file).unwrap().vm.qemu,
        Path::new(file)
    );
    assert!(with(config.clone(), &path, &file.replace('1', "2")).is_err());
    let kernel = format!("{PREFIX}hypervisor.kernel");
    assert_eq!(
        with(config.clone(), &kernel, file).unwrap().vm.kernel,
        Path::new(file)
    );
    assert!(with(config, &kernel, "qemu-1").is_err());
}

#[test]
fn the_other_families_are_typed_and_the_rest_is_unknown() {
    let other = |name: &str, value: &str| with(Config::default(), &format!("{KATA}{name}"), value);
    assert!(other("container.resource.swappiness", "60").is_ok());
    assert!(other("container.resource.swappiness", "101").is_err());
    assert!(other("container.resource.swap_in_bytes", "1024").is_ok());
    assert!(other("container.resource.swap_in_bytes", "much").is_err());
    assert!(other("pkg.oci.container_type", "pod_sandbox").is_ok());
    assert!(other("pkg.oci.bundle_path", "/run/b").is_ok());
    assert!(other("pkg.oci.bundle_path", "b").is_err());
    assert!(
        other("config_path", "/tmp/mine.toml")
            .unwrap_err()
            .contains("ConfigPath")
    );
    assert!(other("fs-opt.is-layer", "").is_err());
}

#[test]
fn unknown_ones_are_refused_with_a_suggestion() {
    let error = config("hypervisor.default_vcpu", "1").unwrap_err();
    assert!(
        error.contains("did you mean io.katacontainers.config.hypervisor.default_vcpus?"),
        "{error}"
    );
    let error = config("hypervisors.x", "1").unwrap_err();
    assert!(
        error.contains("io.katacontainers.config.hypervisors.x"),
        "{error}"
    );
}

#[test]
fn all_that_is_wrong_is_counted() {
    let annotations = ["a", "b", "c"].map(|name| (format!("{PREFIX}{name}"), String::new()));
    let error = apply(all(), &BTreeMap::from(annotations)).unwrap_err();
    assert_eq!(error.problems.len(), 3);
    assert!(error.to_string().contains("and 2 more"), "{error}");
    let many = (0..=MAX_COUNT).map(|i| (format!("{KATA}pkg.{i}"), String::new()));
    let error = apply(all(), &many.collect()).unwrap_err();
    assert!(error.problems.last().unwrap().reason.contains("at most"));
}
