//! The keys of the files that Kata 4 ships, with the values of its build: those of its Rust and of its Go
//! runtime together, one file for each VMM and kind of guest. Each key has a row, and each file is taken
//! whole, or is refused for the one thing that cannot be had.

use toml::{Table, Value};

use super::file::{Inspection, inspect};
use super::key;
use super::{SharedFs, Tee, Vm};

const FILES: &[(&str, &str)] = &[
    ("qemu", include_str!("shipped/qemu.toml")),
    ("coco-dev", include_str!("shipped/coco-dev.toml")),
    ("clh", include_str!("shipped/clh.toml")),
    ("fc", include_str!("shipped/fc.toml")),
    ("snp", include_str!("shipped/snp.toml")),
    ("tdx", include_str!("shipped/tdx.toml")),
];

fn text(name: &str) -> &'static str {
    FILES.iter().find(|(file, _)| *file == name).unwrap().1
}

fn inspected(text: &str) -> Inspection {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration.toml");
    std::fs::write(&path, text).unwrap();
    inspect(Some(&path))
}

/// The one thing for which a file is refused.
fn only_problem(name: &str) -> String {
    let problems = inspected(text(name)).problems;
    assert_eq!(problems.len(), 1, "{name}: {problems:#?}");
    problems[0].to_string()
}

fn leaves(above: &str, table: &Table, found: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let path = if above.is_empty() {
            key.clone()
        } else {
            format!("{above}.{key}")
        };
        match value {
            Value::Table(inner) => leaves(&path, inner, found),
            value => found.push((path, value.clone())),
        }
    }
}

#[test]
fn every_key_of_every_shipped_file_has_a_row_that_takes_its_type() {
    for (name, text) in FILES {
        let mut found = Vec::new();
        leaves("", &text.parse().unwrap(), &mut found);
        assert!(found.len() >= 70, "{name} has {} keys", found.len());
        for (path, value) in found {
            let (kind, _) = key::find(&path).unwrap_or_else(|| panic!("{name}: {path} has no row"));
            assert_eq!(kind.check(&value), Ok(()), "{name}: {path}");
        }
    }
}

#[test]
fn the_files_for_plain_vms_load_as_they_are() {
    let qemu = inspected(text("qemu"));
    assert_eq!(qemu.problems, []);
    let vm = &qemu.config.vm;
    assert_eq!(
        (vm.vcpus, vm.memory_mib, vm.overhead_mib),
        (1, 2048, Some(32))
    );
    assert_eq!((vm.shared_fs, vm.max_vcpus), (SharedFs::VirtioFs, None));
    assert_eq!(vm.kernel, Vm::default().kernel, "Kata's guest is not ours");
    assert_eq!(qemu.config.enable_annotations.len(), 5);

    let coco = inspected(text("coco-dev"));
    assert_eq!(coco.problems, []);
    assert_eq!(coco.config.vm.shared_fs, SharedFs::None);
}

#[test]
fn the_development_file_becomes_a_confidential_guest_by_one_table() {
    let text = format!("{}\n[cloister]\ntee = \"sample\"\n", text("coco-dev"));
    let inspection = inspected(&text);
    assert_eq!(inspection.problems, []);
    assert!(inspection.config.tee.is_confidential());
}

#[test]
fn a_go_file_names_no_vmm_and_loads_all_the_same() {
    let rust_only = ["hypervisor_name", "agent_name", "name"];
    let kept = text("qemu").lines().filter(|line| {
        let key = line.split(" = ").next().unwrap_or_default();
        !rust_only.contains(&key)
    });
    let go = kept.collect::<Vec<_>>().join("\n");
    assert_eq!(inspected(&go).problems, []);
}

#[test]
fn files_for_other_vmms_are_refused_for_their_vmm_alone() {
    assert!(only_problem("clh").contains("hypervisor.clh: VMs run under QEMU"));
    assert!(only_problem("fc").contains("hypervisor.firecracker: VMs run under QEMU"));
}

#[test]
fn files_for_trusted_hardware_load_as_they_are_and_say_which() {
    for (name, tee) in [("snp", Tee::Snp), ("tdx", Tee::Tdx)] {
        let inspection = inspected(text(name));
        assert_eq!(inspection.problems, [], "{name}");
        let vm = &inspection.config.vm;
        assert_eq!(inspection.config.tee, tee);
        assert!(vm.kernel.ends_with("vmlinuz"), "{:?}", vm.kernel);
        assert_eq!(vm.shared_fs, SharedFs::None);
        assert!(vm.firmware.is_some());
        let plain = text(name).replace("confidential_guest = true", "confidential_guest = false");
        assert_eq!(inspected(&plain).config.tee, Tee::None, "{name}");
    }
}
