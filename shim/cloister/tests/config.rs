//! `cloister config` as an operator runs it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn cloister(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloister"))
        .arg("config")
        .args(args)
        .env_remove("CLOISTER_CONFIG")
        .env_remove("KATA_CONF_FILE")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn write(path: &Path, text: &str) -> String {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_tells_every_problem_with_its_line_and_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir.path().join("configuration.toml"),
        "[hypervisor.qemu]\ndefault_vcpu = 1\nenable_iommu = true\nimage = \"/i\"\n",
    );
    let drop_in = write(
        &dir.path().join("config.d/10-a.toml"),
        "[runtime]\nexperimental = [\"x\"]\n",
    );
    let output = cloister(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    for expected in [
        format!(
            "{file}:2: hypervisor.qemu.default_vcpu: unknown key: did you mean hypervisor.qemu.default_vcpus?"
        ),
        format!(
            "{file}:3: hypervisor.qemu.enable_iommu: true: the VM has no such device: remove it"
        ),
        format!("{drop_in}:2: runtime.experimental: "),
        format!("note: {file}:4: hypervisor.qemu.image: "),
        format!("{file}: refused, with 3 problems"),
    ] {
        assert!(text.contains(&expected), "{expected}\n{text}");
    }
    let quiet = said(&cloister(&["check", "--quiet", &file]));
    assert_eq!(quiet.lines().count(), 3, "{quiet}");
}

#[test]
fn check_takes_a_good_file_and_finds_it_by_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir.path().join("c.toml"),
        "[hypervisor.qemu]\nkernel = \"/nonexistent/kernel\"\n",
    );
    let output = Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(["config", "check"])
        .env_remove("CLOISTER_CONFIG")
        .env("KATA_CONF_FILE", &file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = said(&output);
    assert!(text.contains(&format!("{file}: accepted")), "{text}");
    assert!(
        text.contains("/nonexistent/kernel is not on this machine"),
        "{text}"
    );
}

#[test]
fn show_prints_what_holds_and_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir.path().join("configuration.toml"),
        "[hypervisor.qemu]\ndefault_vcpus = 1\nenable_annotations = [\"default_.*\"]\n",
    );
    let drop_in = write(
        &dir.path().join("config.d/50-big.toml"),
        "[hypervisor.qemu]\ndefault_vcpus = 4\n",
    );
    let text = said(&cloister(&["show", &file]));
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap();
    assert!(
        line("default_vcpus = 4 ").ends_with("# 50-big.toml:2"),
        "{text}"
    );
    assert!(
        line("default_memory = 512 ").ends_with("# default"),
        "{text}"
    );

    let output = cloister(&["show", "--json", &file]);
    assert_eq!(output.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let values = json["values"].as_array().unwrap();
    let vcpus = values
        .iter()
        .find(|value| value["key"] == "hypervisor.qemu.default_vcpus")
        .unwrap();
    assert_eq!(vcpus["value"], 4);
    assert_eq!(vcpus["from"], format!("{drop_in}:2"));
    assert_eq!(json["files"].as_array().unwrap().len(), 2);
    let annotations = json["annotations"].as_array().unwrap();
    assert!(
        annotations.contains(&"hypervisor.default_memory".into()),
        "{annotations:?}"
    );
    assert!(
        !annotations.contains(&"hypervisor.kernel_params".into()),
        "{annotations:?}"
    );
}
