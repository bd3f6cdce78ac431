//! A guest from an IGVM file, predicted by the real `cloister measure`.

use std::process::Command;

use support::igvm::{self, Builder};
use support::{firmware, product};

use super::Files;

#[test]
fn an_igvm_file_is_predicted_for_the_kernel_that_it_ties_to_the_guest() {
    let files = Files::new();
    let mut builder = Builder::snp(0x3_0000);
    let image = firmware::direct_boot(2);
    builder.pages((1 << 32) - image.len() as u64, &image);
    let hashes = igvm::hashes(b"MZ, a kernel", b"070701, an initramfs", b"quiet\0");
    builder.page(0x81_0000, 0, 0, Some(&hashes));
    files.put("guest.igvm", &builder.file());
    let cloister = product::bin("cloister").unwrap();
    let measure = |line: &str, more: &[&str]| {
        let mut command = Command::new(&cloister);
        command
            .current_dir(files.0.path())
            .args(["measure", "--igvm", "guest.igvm"]);
        command.args([
            "--kernel",
            "vmlinuz",
            "--initrd",
            "initramfs.cpio",
            "--append",
            line,
        ]);
        command.args(more).output().unwrap()
    };
    let predicted = measure("quiet", &["--vcpus", "1-2"]);
    let said = String::from_utf8_lossy(&predicted.stdout);
    assert!(predicted.status.success(), "{predicted:?}");
    let digest = said
        .lines()
        .find_map(|line| line.strip_prefix("measurement "));
    let digest = &digest.unwrap()[..96];
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
