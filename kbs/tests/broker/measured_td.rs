//! A TD that is predicted by the real `cloister measure` is affirmed by the real broker, and one of another
//! kernel is not, and `--explain` names the input that made it another one. The launch itself is
//! simulated: its registers and its log are those that hardware and firmware would have made.

use crate::deployment;
use crate::platform;
use crate::predicted;
use crate::tdvf;

use std::{collections::BTreeMap, fs, process::Command};

use deployment::{Deployment, Guest, succeed};
use evidence::tdx::Attributes;
use measure::tdx::{Dialect, Firmware, KernelForm, Memory, PageOrder, Vmm};
use platform::td::{ATTRIBUTES, Td};
use predicted::{Files, XFAM, evidence, launched, td};
use serde_json::Value;

/// What the broker says of a TD whose executables, hardware and configuration are as registered: there are
/// no `tdvfkernel` and `tdvfkernelparams`, without which executables are 4 and not 3.
const AFFIRMED: (&str, [i64; 3]) = ("affirming", [4, 2, 2]);

/// A broker whose default appraisal takes a simulated TD for a real one.
pub(crate) fn broker() -> Deployment {
    let deployment = platform::broker(&[]);
    let rego = policies::appraisal::DEFAULT.replace("[simulated(\"sim-tdx\")]", "[]");
    assert_ne!(rego, policies::appraisal::DEFAULT);
    let file = deployment.write("appraisal.rego", rego);
    deployment.own(&["policy", "set", "--file", &file, "--appraisal"]);
    deployment
}

/// What a broker says of a TD: its status, and executables, hardware and configuration.
pub(crate) async fn appraised(deployment: &Deployment, td: &Td) -> (String, [i64; 3]) {
    let mut guest = Guest::asked(deployment, "sim-tdx", None).await;
    td.prove(&mut guest.request);
    let token = guest.token(deployment).await;
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(&token)
        .unwrap()
        .claims;
    let said = &claims["submods"]["cpu0"];
    let claim = |name| said["ear.trustworthiness-vector"][name].as_i64().unwrap();
    let status = said["ear.status"].as_str().unwrap().to_owned();
    let vector = ["executables", "hardware", "configuration"].map(claim);
    (status, vector)
}

async fn assert_affirmed(deployment: &Deployment, td: &Td) {
    let (status, vector) = appraised(deployment, td).await;
    assert_eq!((status.as_str(), vector), AFFIRMED);
}

fn import(deployment: &Deployment, name: &str, document: &[u8], more: &[&str]) {
    let path = deployment.write(name, document);
    succeed(&deployment.owner(&[&["reference", "import", &path], more].concat()));
}

#[tokio::test]
async fn a_predicted_td_is_affirmed_and_another_kernel_is_refused_and_named() {
    let files = Files::new();
    let good = td(&launched(|_| {}));
    let kernel = tdvf::kernel(0).leak();
    kernel[0x2800] ^= 1;
    let other = td(&launched(|launch| launch.kernel = kernel));
    for (format, more) in [("json", &[][..]), ("corim", &["--accept-unsigned"])] {
        let deployment = broker();
        assert_eq!(appraised(&deployment, &good).await.1, [33, 97, 36]);
        let document = files.measured(&["--format", format, "--xfam", XFAM]);
        import(&deployment, "values", &document, more);
        assert_affirmed(&deployment, &good).await;
        assert_eq!(appraised(&deployment, &other).await.1, [33, 2, 2]);
    }
    let (same, said) = files.explain(&evidence(&other), &[]);
    assert!(!same && said.contains("the kernel was expected"), "{said}");
    assert!(!said.contains("RTMR0") && !said.contains("RTMR2"), "{said}");
}

#[tokio::test]
async fn a_signed_corim_of_a_td_is_taken_from_a_known_key_alone() {
    let files = Files::new();
    let openssl = |args: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(files.dir()).args(args.split(' '));
        succeed(&command.output().unwrap());
    };
    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem");
    openssl("pkey -in key.pem -pubout -out key.pub");
    let mut deployment = broker();
    let signed = ["--format", "corim", "--xfam", XFAM, "--sign-key", "key.pem"];
    let signed = files.measured(&signed);
    let path = deployment.write("signed.corim", &signed);
    let unknown = deployment.owner(&["reference", "import", &path]);
    assert!(!unknown.status.success(), "{unknown:?}");
    let config = deployment.path("kbs.toml");
    let text = fs::read_to_string(&config).unwrap();
    let signers = format!("[reference]\nsigners = [{:?}]\n", files.path("key.pub"));
    fs::write(&config, text.replace("[reference]\n", &signers)).unwrap();
    deployment.crash_and_restart();
    import(&deployment, "signed.corim", &signed, &[]);
    let good = td(&launched(|_| {}));
    assert_affirmed(&deployment, &good).await;
}

#[test]
fn each_size_of_memory_is_predicted_with_its_own_tables() {
    let files = Files::new();
    for (name, content) in tdvf::TABLES {
        files.put(&format!("large/{name}"), content);
    }
    files.put("large/etc/table-loader", &tdvf::loader());
    files.put("large/DMI", tdvf::SMBIOS);
    files.put("large/etc/acpi/tables", b"larger");
    let usual = "--append console=ttyS0 --dialect edk2-202508 --memory 2G,4G --acpi 2048=. \
                 --acpi 4G=large --format launch";
    let output = files.run(&usual.split_whitespace().collect::<Vec<_>>());
    succeed(&output);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let small = launched(|_| {});
    let large = launched(|launch| {
        launch.memory = Memory::new(4 << 30).unwrap();
        launch.acpi.files = &[tdvf::TABLES[0], ("etc/acpi/tables", b"larger")];
    });
    for (at, (launched, mib)) in [(small, 2048), (large, 4096)].into_iter().enumerate() {
        let shape = &listed[at];
        assert_eq!(shape["memory_mib"], mib);
        assert_eq!(shape["mr_td"], hex::encode(launched.mrtd));
        for register in 0..3 {
            let said = &shape[format!("rtmr_{register}")];
            assert_eq!(*said, hex::encode(launched.rtmrs[register]));
        }
    }
}

#[test]
fn a_document_says_what_it_has_not() {
    let files = Files::new();
    let output = files.measure(&["--format", "json"]);
    succeed(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["xfam is not", "rtmr_0 is in", "rtmr_3 is not", "tdvfkernel"] {
        assert!(said.contains(part), "{said}");
    }
    let names = |document: &[u8]| {
        let values: BTreeMap<String, Value> = serde_json::from_slice(document).unwrap();
        values.into_keys().collect::<Vec<_>>()
    };
    let all = ["mr_td", "rtmr_0", "rtmr_1", "rtmr_2"];
    assert_eq!(names(&output.stdout), all);
    let fewer = files.measure(&["--format", "json", "--no-rtmr-0"]);
    assert_eq!(names(&fewer.stdout), ["mr_td", "rtmr_1", "rtmr_2"]);
    assert!(String::from_utf8_lossy(&fewer.stderr).contains("rtmr_0 is left out"));
    let text = String::from_utf8(files.measured(&[])).unwrap();
    assert!(text.contains("xfam is not") && text.contains("rtmr_3 is not"));
    assert!(text.contains(&format!("mr_config_id {}", "00".repeat(48))));
}

#[test]
fn each_input_that_differs_is_named() {
    let files = Files::new();
    let explain = |launched: &measure::tdx::Prediction, more: &[&str]| {
        files.explain(&evidence(&td(launched)), more)
    };
    let (same, said) = explain(&launched(|_| {}), &["--xfam", XFAM]);
    assert!(
        same && said.contains("MRCONFIGID: give --init-data"),
        "{said}"
    );
    assert!(!said.contains("xfam"), "{said}");

    let memory = launched(|launch| launch.memory = Memory::new(3 << 30).unwrap());
    let line = launched(|launch| launch.command_line = "quiet");
    let patched = launched(|launch| launch.kernel_form = KernelForm::Patched);
    let order = launched(|launch| launch.order = PageOrder::WholeSection);
    let old = Dialect::edk2_2024();
    let (image, loader, kernel) = (tdvf::small(), tdvf::loader(), tdvf::kernel(0));
    let firmware = Firmware::parse(&image, Vmm::Qemu).unwrap();
    let older = tdvf::launch(&firmware, &old, &loader, &kernel);
    let older = older.predict().unwrap();
    let both = launched(|launch| {
        launch.command_line = "quiet";
        launch.initramfs = Some(b"other");
        launch.acpi.files = &[tdvf::TABLES[0], ("etc/acpi/tables", b"other")];
    });
    for (launched, more, told) in [
        (&memory, &[][..], &["memory 3072 MiB: allow it"][..]),
        (&line, &[], &["the command line was expected"]),
        (&line, &["--try-append", "quiet"], &["command line `quiet`"]),
        (&patched, &[], &["--kernel-form patched"]),
        (&older, &[], &["--dialect edk2-2024"]),
        (&order, &[], &["page order whole-section"]),
        (
            &both,
            &[],
            &[
                "ACPI's etc/acpi/tables was expected",
                "the command line was expected",
                "look at the initramfs file",
            ],
        ),
    ] {
        let (same, said) = explain(launched, more);
        assert!(
            !same && told.iter().all(|told| said.contains(told)),
            "{said}"
        );
        assert_eq!(said.matches("\n  ").count(), told.len(), "{said}");
    }
}

#[test]
fn a_quote_is_compared_with_its_log_and_a_part_of_evidence_as_far_as_it_goes() {
    let files = Files::new();
    let good = launched(|_| {});
    let mut changed = td(&good);
    changed.body.rtmr[1] = [9; 48];
    changed.body.mr_td = [7; 48];
    changed.body.xfam[0] = 0xe3;
    let (same, said) = files.explain(&evidence(&changed), &["--xfam", XFAM]);
    assert!(
        !same && said.contains("RTMR1: the log does not lead to"),
        "{said}"
    );
    assert!(
        said.contains("--try-firmware") && said.contains("xfam e302"),
        "{said}"
    );

    let mut image = tdvf::small();
    image[0x2000] ^= 1;
    files.put("other.fd", &image);
    let other = Firmware::parse(&image, Vmm::Qemu).unwrap();
    let mut firmware = td(&good);
    firmware.body.mr_td = other.mrtd(PageOrder::EachPage);
    let tried = ["--try-firmware", "other.fd"];
    let (same, said) = files.explain(&evidence(&firmware), &tried);
    assert!(!same && said.contains("MRTD: firmware other.fd"), "{said}");

    let log = td(&good).log.unwrap().finish();
    let (same, said) = files.explain(&log, &[]);
    assert!(
        same && said.contains("MRTD and MRCONFIGID are in a quote"),
        "{said}"
    );
    let mut alone = td(&launched(|launch| launch.command_line = "quiet"));
    alone.log = None;
    let (same, said) = files.explain(&evidence(&alone), &[]);
    assert!(
        !same && said.contains("RTMR2 is another one") && said.contains("cc_eventlog"),
        "{said}"
    );
    for (content, told) in [
        (&b"{}"[..], "no evidence of a TD"),
        (b"", "neither evidence"),
        (&vec![b' '; (2 << 20) + 1], "has more than"),
    ] {
        let (same, said) = files.explain(content, &[]);
        assert!(!same && said.contains(told), "{said}");
    }
}

#[test]
fn a_td_with_debug_is_another_launch_and_what_is_not_compared_is_told() {
    let files = Files::new();
    let good = launched(|_| {});
    let whole = td(&good);
    let mut alone = td(&good);
    alone.log = None;
    for td in [whole, alone] {
        let (same, said) = files.explain(&evidence(&td), &[]);
        for open in ["RTMR3: the guest", "the TD's attributes other than debug"] {
            let open = format!("not compared: {open}");
            assert!(same && said.contains(&open), "{said}");
        }
        let mut debug = td;
        debug.body.td_attributes = Attributes(ATTRIBUTES | 1);
        let (same, said) = files.explain(&evidence(&debug), &[]);
        assert!(!same && said.contains("started with debug on"), "{said}");
        assert_eq!(said.matches("\n  ").count(), 1, "{said}");
        assert!(said.contains("not compared: RTMR3"), "{said}");
    }
    let log = td(&good).log.unwrap().finish();
    let (same, said) = files.explain(&log, &[]);
    assert!(same && said.contains("not compared: RTMR3"), "{said}");
}

#[test]
fn init_data_is_bound_by_mrconfigid() {
    let files = Files::new();
    let data = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n";
    files.put("init.toml", data.as_bytes());
    let with = ["--init-data", "init.toml", "--format", "launch"];
    let listed: Value = serde_json::from_slice(&files.measured(&with)).unwrap();
    let mut td = td(&launched(|_| {}));
    let bound = listed[0]["mr_config_id"].as_str().unwrap();
    hex::decode_to_slice(bound, &mut td.body.mr_config_id).unwrap();
    assert_ne!(td.body.mr_config_id, [0; 48]);
    let with = &with[..2];
    assert!(files.explain(&evidence(&td), with).0);
    td.body.mr_config_id = [0; 48];
    let (same, said) = files.explain(&evidence(&td), with);
    assert!(
        !same && said.contains("bound other init-data, or none"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_predicted_is_refused_with_the_fix() {
    let files = Files::new();
    let usual = [
        "--append",
        "console=ttyS0",
        "--dialect",
        "edk2-202508",
        "--memory",
        "2G",
        "--acpi",
        ".",
    ];
    let without = |flag: &str| {
        let at = usual.iter().position(|word| *word == flag).unwrap();
        [&usual[..at], &usual[at + 2..]].concat()
    };
    for flag in ["--dialect", "--memory", "--acpi"] {
        let output = files.run(&without(flag));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(flag), "{said}");
    }
    for (more, told) in [
        (&["--vcpus", "2"][..], "cannot be used with"),
        (&["--guest-features", "0x1"], "cannot be used with"),
        (&["--id-key", "vmlinuz"], "cannot be used with"),
        (&["--vmm", "cloud-hypervisor"], "launch TDs with QEMU"),
        (&["--secure-boot", "on"], "authority"),
        (&["--authority", &"00".repeat(48)], "--secure-boot on"),
        (&["--xfam", "e7"], "16 hex digits"),
        (&["--acpi", "4G=."], "no such size"),
        (&["--tee", "snp"], "cannot be used"),
    ] {
        let output = files.measure(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{more:?}: {said}"
        );
    }
    for (name, told) in [
        ("OVMF.fd", "OVMF.fd"),
        ("vmlinuz", "no bzImage"),
        ("etc/table-loader", "etc/table-loader"),
        ("initramfs.cpio", "leave it out"),
        ("DMI", "SMBIOS' tables have 0 bytes"),
    ] {
        let kept = fs::read(files.path(name)).unwrap();
        files.put(name, b"");
        let output = files.measure(&[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{name}: {said}"
        );
        files.put(name, &kept);
    }
    // What is in RTMR0 alone is needed for that alone.
    fs::remove_file(files.path("DMI")).unwrap();
    let said = files.measure(&[]).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.contains("as DMI beside its etc/table-loader"),
        "{said}"
    );
    succeed(&files.measure(&["--no-rtmr-0", "--format", "json"]));
}
