//! Files of people's, and what is said about them.

use std::time::Duration;

use super::*;
use crate::config::{Tee, VirtioFsCache};
use hypervisor::{Accel, Machine};

fn inspect_text(text: &str) -> Inspection {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration.toml");
    std::fs::write(&path, text).unwrap();
    inspect(Some(&path))
}

fn load_text(text: &str) -> Result<Config, String> {
    let inspection = inspect_text(text);
    let problems = inspection.problems;
    match problems.is_empty() {
        true => Ok(inspection.config),
        false => Err(ConfigError { problems }.to_string()),
    }
}

#[test]
fn no_file_means_the_defaults_and_a_named_one_must_exist() {
    assert_eq!(load(None).unwrap(), Config::default());
    let error = load(Some(Path::new("/nonexistent.toml"))).unwrap_err();
    assert!(error.to_string().contains("/nonexistent.toml"), "{error}");
}

#[test]
fn keys_of_kata_and_of_cloister_take_effect() {
    let config = load_text(
        r#"
        [hypervisor.qemu]
        kernel = "/k"
        machine_type = "microvm"
        default_vcpus = 1.5
        default_maxvcpus = 4
        overhead_vcpus = 0.25
        default_memory = 300
        default_maxmemory = 4096
        overhead_memory = 64
        kernel_params = "quiet a=b"
        enable_annotations = ["cc_init_data"]
        valid_hypervisor_paths = ["/usr/bin/qemu-*"]
        shared_fs = "none"
        virtio_fs_cache = "never"
        enable_iommu = false
        [agent.kata]
        reconnect_timeout_ms = 1500
        create_container_timeout = 90
        enable_debug = true
        [runtime]
        experimental = ["force_guest_pull"]
        disable_guest_seccomp = false
        create_container_timeout = 30
        [cloister]
        accel = "tcg"
        tee = "sample"
        scratch_disk = 1024
        scratch_dir = "/scratch"
        [relay]
        allow = ["Registry.example:443"]
        [mirror]
        directory = "/big/blobs"
        size_mib = 0
        "#,
    )
    .unwrap();
    let vm = &config.vm;
    assert_eq!(
        (vm.kernel.as_path(), vm.initrd.as_deref()),
        (Path::new("/k"), None)
    );
    assert_eq!((vm.machine, vm.accel), (Machine::Microvm, Accel::Tcg));
    assert_eq!(
        (vm.vcpus, vm.max_vcpus, vm.overhead_millicpus),
        (2, Some(4), Some(250))
    );
    assert_eq!(
        (vm.memory_mib, vm.max_memory_mib, vm.overhead_mib),
        (300, Some(4096), Some(64))
    );
    assert_eq!(vm.kernel_params, ["quiet", "a=b", "cloister.log=debug"]);
    assert_eq!(
        (vm.shared_fs, vm.virtio_fs_cache),
        (SharedFs::None, VirtioFsCache::Never)
    );
    assert_eq!(config.valid_hypervisor_paths, ["/usr/bin/qemu-*"]);
    assert_eq!(config.boot_timeout, Duration::from_millis(1500));
    assert_eq!(config.create_timeout, Duration::from_secs(90));
    assert!(config.force_guest_pull && !config.disable_guest_seccomp);
    assert_eq!((config.tee, config.scratch_mib), (Tee::Sample, 1024));
    assert_eq!(config.scratch_dir, Path::new("/scratch"));
    assert_eq!(config.relay_allow[0].to_string(), "registry.example:443");
    assert_eq!(config.mirror.directory, Path::new("/big/blobs"));
    assert!(config.mirror.open().is_none() && Config::default().mirror.open().is_some());
}

#[test]
fn wrong_values_name_their_key() {
    for (text, named) in [
        ("[relay]\nallow = [\"no-port\"]", "relay.allow"),
        ("[relay]\nallow = \"a:1\"", "a list of strings"),
        ("[runtime]\nexperimental = [\"x\"]", "runtime.experimental"),
        (
            "[runtime]\nhypervisor_name = \"xen\"",
            "runtime.hypervisor_name",
        ),
        (
            "[hypervisor.qemu]\nshared_fs = \"9p\"",
            "hypervisor.qemu.shared_fs",
        ),
        (
            "[hypervisor.qemu]\nenable_annotations = [\"(\"]",
            "enable_annotations",
        ),
        ("[hypervisor.qemu]\ndefault_vcpus = 65", "default_vcpus"),
        ("[hypervisor.qemu]\ndefault_vcpus = \"1\"", "a number"),
        (
            "[hypervisor.qemu]\ndefault_vcpus = 4\ndefault_maxvcpus = 2",
            "default_maxvcpus = 2",
        ),
        ("[hypervisor.qemu]\ndefault_memory = 1", "default_memory"),
        (
            "[hypervisor.qemu]\nkernel_params = \"cloister.tee=none\"",
            "kernel_params",
        ),
        ("[hypervisor.qemu]\nenable_debug = \"yes\"", "true or false"),
        (
            "[hypervisor.clh]\nenable_debug = 1\n[runtime]\nhypervisor_name = \"qemu\"",
            "hypervisor.clh.enable_debug",
        ),
        (
            "[agent.kata]\nreconnect_timeout_ms = 0",
            "agent.kata.reconnect_timeout_ms",
        ),
        (
            "[agent.kata]\ndebug_console_enabled = true",
            "debug_console_enabled",
        ),
        ("[cloister]\ntee = \"sev\"", "cloister.tee"),
        ("[cloister]\nsnp_cpu_model = \"host\"", "snp_cpu_model"),
        ("[cloister]\ntdx_mrowner = \"00\"", "cloister.tdx_mrowner"),
        ("[cloister]\nscratch_disk = 63", "cloister.scratch_disk"),
        ("[cloister]\nscratch_disk = -1", "cloister.scratch_disk"),
        ("[cloister]\nscratch_dir = \"tmp\"", "cloister.scratch_dir"),
        ("[mirror]\ndirectory = \"blobs\"", "mirror.directory"),
        ("[mirror]\nsize_mib = -1", "mirror.size_mib"),
        ("[mirror]\nsize_mb = 1", "did you mean mirror.size_mib?"),
        (
            "[cloister]\naccell = \"kvm\"",
            "did you mean cloister.accel?",
        ),
        (
            "[relays]\nallow = []",
            "relays: unknown table: did you mean relay?",
        ),
        ("runtime = 1", "runtime: is a table"),
        (
            "[hypervisor.qemu.factory]\nenable_template = true",
            "factory.enable_template",
        ),
    ] {
        let error = load_text(text).unwrap_err();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn all_problems_are_told_at_once_each_with_its_line() {
    let text =
        "[hypervisor.qemu]\ndefault_vcpu = 1\nenable_iommu = true\n\n[runtimes]\nx = 1\ny = 2\n";
    let problems = inspect_text(text).problems;
    let told: Vec<(usize, &str)> = problems
        .iter()
        .map(|problem| (problem.place.as_ref().unwrap().line, problem.key.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (2, "hypervisor.qemu.default_vcpu"),
            (3, "hypervisor.qemu.enable_iommu"),
            (5, "runtimes")
        ]
    );
    let [misspelt, refused, _] = problems.as_slice() else {
        panic!("{problems:?}")
    };
    assert_eq!(misspelt.fix, "did you mean hypervisor.qemu.default_vcpus?");
    assert!(refused.reason.contains("no such device") && refused.fix == "remove it");
}

#[test]
fn what_would_weaken_a_confidential_guest_is_refused() {
    let tee = "[cloister]\ntee = \"sample\"\n[hypervisor.qemu]\n";
    assert_eq!(load_text(tee).unwrap().vm.shared_fs, SharedFs::None);
    for (key, named) in [
        ("shared_fs = \"virtio-fs\"", "shared_fs = \"none\""),
        ("confidential_guest = true", "promised"),
        ("guest_hook_path = \"/hooks\"", "protection"),
        ("extra_monitor_socket = \"qmp\"", "protection"),
        ("snp_id_block = \"AAAA\"", "base64 of 96 bytes"),
        ("snp_guest_policy = 720896", "DEBUG"),
    ] {
        let error = load_text(&format!("{tee}{key}")).unwrap_err();
        assert!(error.contains(named), "{key}: {error}");
    }
    for table in [
        "[runtime]\nsandbox_bind_mounts = [\"/etc\"]",
        "[agent.kata]\npolicy = \"x\"",
        "[runtime]\ndisable_new_netns = true",
        "[runtime]\nemptydir_mode = \"block-plain\"\n[cloister]\ntee = \"sample\"",
        "[runtime]\nemptydir_mode = \"block-encrypted\"\n[hypervisor.qemu]\ndisable_block_device_use = true",
        "[runtime]\nemptydir_mode = \"block\"",
    ] {
        assert!(load_text(table).is_err(), "{table}");
    }
}

#[test]
fn katas_guest_makes_room_for_cloisters() {
    let vm = |keys: &str| load_text(&format!("[hypervisor.qemu]\n{keys}")).unwrap().vm;
    let own = Vm::default();
    let with_image = vm("kernel = \"/k\"\nimage = \"/i\"");
    assert_eq!(
        (&with_image.kernel, &with_image.initrd),
        (&own.kernel, &own.initrd)
    );
    let with_initrd = vm("kernel = \"/k\"\ninitrd = \"/r\"\nimage = \"\"");
    assert_eq!(with_initrd.kernel, Path::new("/k"));
    assert_eq!(with_initrd.initrd.as_deref(), Some(Path::new("/r")));
}

#[test]
fn the_vmm_is_the_named_one_or_the_only_one() {
    let error = load_text("[hypervisor.clh]\npath = \"x\"").unwrap_err();
    assert!(
        error.contains("hypervisor.clh") && error.contains("QEMU"),
        "{error}"
    );
    let both = "[hypervisor.clh]\nrootless = true\n[hypervisor.qemu]\ndefault_vcpus = 2\n";
    assert!(load_text(both).unwrap_err().contains("more than one VMM"));
    let named = format!("{both}[runtime]\nhypervisor_name = \"qemu\"\n");
    assert_eq!(load_text(&named).unwrap().vm.vcpus, 2);
    assert!(load_text("[runtime]\nhypervisor_name = \"firecracker\"").is_err());
}

#[test]
fn drop_ins_are_merged_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration.toml");
    let write = |path: &Path, keys: &str| {
        std::fs::write(path, format!("[hypervisor.qemu]\n{keys}\n")).unwrap();
    };
    write(&path, "default_vcpus = 1\ndefault_memory = 100");
    let drop_ins = dir.path().join("config.d");
    std::fs::create_dir(&drop_ins).unwrap();
    write(&drop_ins.join("20-b.toml"), "default_vcpus = 3");
    write(&drop_ins.join("10-a.toml"), "default_vcpus = 2");
    write(&drop_ins.join("90-c.txt"), "default_vcpus = 4");
    let inspection = inspect(Some(&path));
    assert_eq!(
        (inspection.config.vm.vcpus, inspection.config.vm.memory_mib),
        (3, 100)
    );
    assert_eq!(inspection.files.len(), 3);
    let vcpus = inspection
        .values
        .iter()
        .find(|value| value.key.ends_with(".default_vcpus"));
    let place = vcpus.unwrap().place.as_ref().unwrap().to_string();
    assert!(place.ends_with("20-b.toml:2"), "{place}");

    write(&drop_ins.join("30-c.toml"), "bogus_key = 3");
    let error = load(Some(&path)).unwrap_err().to_string();
    assert!(error.contains("30-c.toml:2"), "{error}");
}

#[test]
fn what_is_taken_and_means_nothing_is_noted() {
    let notes = inspect_text(
        "[hypervisor.qemu]\nimage = \"/i\"\nkernel_params = \"agent.log=debug\"\nenable_debug = false\n\
         [runtime]\nname = \"virt_container\"\ninternetworking_model = \"tcfilter\"\n",
    )
    .notes;
    let keys: Vec<&str> = notes.iter().map(|note| note.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "hypervisor.qemu.image",
            "hypervisor.qemu.kernel_params",
            "runtime.internetworking_model"
        ]
    );
}

#[test]
fn the_kind_of_guest_is_said_and_never_guessed() {
    let qemu = "[hypervisor.qemu]\nfirmware = \"/ovmf.fd\"\nconfidential_guest = true\n";
    let tee = |more: &str| load_text(&format!("{qemu}{more}")).map(|config| config.tee);
    assert_eq!(tee("sev_snp_guest = true").unwrap(), Tee::Snp);
    let port = "tdx_quote_generation_service_socket_port = 4050";
    assert_eq!(tee(port).unwrap(), Tee::Tdx);
    assert_eq!(tee("[cloister]\ntee = \"tdx\"").unwrap(), Tee::Tdx);
    assert!(tee("").unwrap_err().contains("of no kind"));
    for weaker in ["none", "sample", "sim-snp"] {
        let error = tee(&format!("[cloister]\ntee = {weaker:?}")).unwrap_err();
        assert!(error.contains("promised"), "{weaker}: {error}");
    }
}

#[test]
fn a_guest_of_trusted_hardware_has_what_it_needs() {
    let snp = "[cloister]\ntee = \"snp\"\n";
    let qemu = "[hypervisor.qemu]\nfirmware = \"/ovmf.fd\"\n";
    for (text, named) in [
        (snp.to_owned(), "hypervisor.qemu.firmware"),
        (format!("{snp}accel = \"tcg\"\n{qemu}"), "nothing emulates"),
        (
            format!("{snp}{qemu}machine_type = \"microvm\""),
            "machine_type",
        ),
        (
            format!("{snp}{qemu}snp_id_block = {:?}", "A".repeat(128)),
            "authentication information",
        ),
        (
            format!("{snp}{qemu}igvm = \"/guest.igvm\""),
            "no second one",
        ),
    ] {
        let error = load_text(&text).unwrap_err();
        assert!(error.contains(named), "{named}: {error}");
    }
    // The policy that was signed is 0 there.
    let auth = format!("{}AA==", "AAAA".repeat(1365));
    let id = format!(
        "snp_id_block = {:?}\nsnp_id_auth = {auth:?}",
        "A".repeat(128)
    );
    let error = load_text(&format!("{snp}{qemu}{id}")).unwrap_err();
    assert!(error.contains("the policy that was signed is 0"), "{error}");
    let config = load_text(&format!("{snp}snp_cpu_model = \"host-generation\"\n{qemu}")).unwrap();
    assert_eq!(config.vm.confidential.cpu_model, None);
    assert!(config.vm.kernel.ends_with("vmlinuz"));
}

#[test]
fn the_chips_key_is_left_by_snp_guests_alone() {
    let qemu = "[hypervisor.qemu]\nfirmware = \"/ovmf.fd\"";
    let with = |tee: &str, value: &str| {
        load_text(&format!(
            "[cloister]\ntee = {tee:?}\nsnp_vcek_disabled = {value}\n{qemu}"
        ))
    };
    for (value, disabled) in [("true", true), ("false", false)] {
        let config = with("snp", value).unwrap();
        assert_eq!(config.vm.confidential.vcek_disabled, disabled);
        assert_eq!(with("tdx", value).is_err(), disabled);
    }
    for tee in ["none", "sample", "sim-snp", "sim-tdx", "tdx"] {
        let error = with(tee, "true").unwrap_err();
        assert!(error.contains("cloister.snp_vcek_disabled"), "{error}");
    }
    assert!(with("snp", "1").unwrap_err().contains("true or false"));
}

#[test]
fn an_igvm_file_stands_for_the_firmware_of_an_snp_guest_alone() {
    let with = |tee: &str, more: &str| {
        let text =
            format!("[cloister]\ntee = {tee:?}\n[hypervisor.qemu]\nigvm = \"/guest.igvm\"\n");
        load_text(&format!("{text}{more}"))
    };
    let config = with("snp", "").unwrap();
    assert_eq!(config.vm.igvm.as_deref(), Some(Path::new("/guest.igvm")));
    for (tee, named) in [
        ("tdx", "into no TD"),
        ("none", "starts SEV-SNP guests"),
        ("sim-snp", "starts SEV-SNP guests"),
    ] {
        let error = with(tee, "").unwrap_err();
        assert!(error.contains(named), "{tee}: {error}");
    }
    let error = with("snp", &format!("snp_id_block = {:?}", "A".repeat(128))).unwrap_err();
    assert!(error.contains("drops any other"), "{error}");
}
