//! A guest from an IGVM file, predicted by the real `cloister measure`.

use std::process::{Command, Output};

use serde_json::Value;
use support::igvm::{self, Builder};
use support::{firmware, product};

use super::Files;

/// `cloister measure` of the file `guest.igvm`.
fn measure(files: &Files, more: &[&str]) -> Output {
    let mut command = Command::new(product::bin("cloister").unwrap());
    command.current_dir(files.0.path());
    command.args(["measure", "--igvm", "guest.igvm"]);
    command.args(more).output().unwrap()
}

/// The flags that say what is booted, with this command line.
fn booted(line: &str) -> [&str; 6] {
    [
        "--kernel",
        "vmlinuz",
        "--initrd",
        "initramfs.cpio",
        "--append",
        line,
    ]
}

/// The digests in a text.
fn digests(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines = said.lines();
    let digests = lines.filter_map(|line| line.strip_prefix("measurement "));
    digests.map(|rest| rest[..96].to_owned()).collect()
}

#[test]
fn an_igvm_file_is_predicted_for_the_kernel_that_it_ties_to_the_guest() {
    let files = Files::new();
    let mut builder = Builder::snp(0x3_0000);
    let image = firmware::direct_boot(2);
    builder.pages((1 << 32) - image.len() as u64, &image);
    let hashes = igvm::hashes(b"MZ, a kernel", b"070701, an initramfs", b"quiet\0");
    builder.page(0x81_0000, 0, 0, Some(&hashes));
    files.put("guest.igvm", &builder.file());
    let measure = |line: &str, more: &[&str]| measure(&files, &[&booted(line), more].concat());
    let predicted = measure("quiet", &["--vcpus", "1-2"]);
    let digest = &digests(&predicted)[0];
    let explained = measure("quiet", &["--explain", digest]);
    assert!(explained.status.success(), "{explained:?}");
    for (line, more, told) in [
        (
            "quiet debug",
            &[][..],
            "another kernel, initramfs or command line",
        ),
        (
            "quiet",
            &["--guest-features", "0x21", "--explain", digest],
            "guest features 0x1",
        ),
        ("quiet", &["--firmware", "OVMF.fd"], "cannot be used with"),
        ("quiet", &["--id-key", "id.pem"], "cannot be used with"),
        ("quiet", &["--tee", "tdx"], "--dialect"),
        (
            "quiet",
            &["--try-append", "debug", "--explain", digest],
            "the same with every command line",
        ),
    ] {
        let output = measure(line, more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{more:?}: {said}"
        );
    }
    files.image("set", "6.12.1", b"MZ, a kernel");
    let add = [
        "add",
        "--image",
        "set",
        "--igvm",
        "guest.igvm",
        "--append",
        "quiet",
    ];
    let refused = files.image_set(&add);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("image-set publish"),
        "{said}"
    );
}

#[test]
fn an_igvm_file_by_cloud_hypervisor_is_predicted_with_the_hashes_that_it_writes() {
    let files = Files::new();
    files.put("vmlinuz", &[0; 4096]);
    let mut builder = Builder::snp(0x3_0000);
    files.put("guest.igvm", &builder.page(0x2000, 0, 0, None).file());
    let by = ["--vmm", "cloud-hypervisor"];
    let measure = |line: &str, more: &[&str]| {
        let flags = [&booted(line), &by[..], more].concat();
        super::igvm::measure(&files, &flags)
    };
    let predicted = measure(
        "quiet",
        &["--vcpus", "1-2", "--cpu-model", "EPYC-v4,EPYC-Genoa"],
    );
    let found = digests(&predicted);
    let said = String::from_utf8_lossy(&predicted.stdout).into_owned();
    assert!(
        found.len() == 2 && said.contains("any-model vcpus=2"),
        "{said}"
    );
    assert!(said.contains("kernel_hashes unseen"), "{said}");
    let without = digests(&super::igvm::measure(
        &files,
        &[&by[..], &["--no-kernel"]].concat(),
    ));
    assert!(!found.contains(&without[0]) && without[0] != digests(&measure("debug", &[]))[0]);

    let listed = measure("quiet", &["--format", "launch"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["measurement"], found[0].as_str());
    assert_eq!(
        (&listed[0]["cpu_model"], &listed[0]["kernel_hashes"]),
        (&Value::Null, &true.into())
    );
    for format in ["json", "corim"] {
        let document = measure("quiet", &["--format", format]);
        let told = String::from_utf8_lossy(&document.stderr);
        assert!(
            document.status.success() && told.contains("SNP_KERNEL_HASHES at 0x10000"),
            "{told}"
        );
    }

    let explained = measure("quiet", &["--explain", &found[0]]);
    assert!(explained.status.success(), "{explained:?}");
    for (line, more, told) in [
        (
            "debug",
            &["--explain", &found[0], "--try-append", "quiet"][..],
            "command line `quiet`",
        ),
        ("quiet", &["--explain", &without[0]], "kernel-hashes off"),
        ("quiet", &["--explain", &found[1]], "vCPUs 2"),
        ("quiet ", &[], "cuts off spaces"),
        (
            "quiet",
            &["--guest-features", "0x21"],
            "--guest-features 0x1",
        ),
        ("quiet", &["--tee", "tdx"], "launch TDs with QEMU"),
    ] {
        let output = measure(line, more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{more:?}: {said}"
        );
    }
    files.put("vmlinuz", b"MZ");
    let short = measure("quiet", &[]);
    assert!(String::from_utf8_lossy(&short.stderr).contains("fewer than the 4096 bytes"));
}
