//! An image that says itself how it is launched: measured and published from its signed directory alone, and
//! refused where a part of it is missing or another one.

use std::fs;

use measure::tdx::Memory;
use serde_json::Value;

use super::{Files, broker, executables, image_set::done, image_set::told};
use crate::measured_td;
use crate::predicted::{self, XFAM, launched, td};
use crate::tdvf;

const SNP: &str = "add --image set --firmware OVMF.fd --append quiet --vcpus 1-2";
const TD: &str = "add --image set --tee tdx --firmware td/OVMF.fd --append console=ttyS0 --dialect edk2-202508 \
                  --memory 2G --xfam";

impl Files {
    fn add(&self, words: &str) -> std::process::Output {
        self.image_set(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// The command line of a TD with two vCPUs and one with four, whose tables are others.
    fn td_shapes(&self) -> String {
        let tables = predicted::Files::new();
        fs::rename(tables.dir(), self.path("td")).unwrap();
        let four = self.path("td/four");
        let loader = tdvf::loader();
        let others = [
            ("etc/table-loader", loader.as_slice()),
            ("DMI", tdvf::SMBIOS),
        ];
        for (name, content) in others.into_iter().chain(tdvf::TABLES) {
            let path = four.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fs::write(four.join("etc/acpi/tables"), b"of four").unwrap();
        format!("{TD} {XFAM} --acpi 2G/2=td --acpi 2G/4=td/four")
    }

    /// What `cloister measure` says of the image alone.
    fn measured_set(&self, more: &str) -> std::process::Output {
        let mut command = std::process::Command::new(support::product::bin("cloister").unwrap());
        let words = format!("measure --image set {more}");
        command.current_dir(self.path(""));
        command.args(words.split_whitespace()).output().unwrap()
    }
}

#[tokio::test]
async fn a_signed_image_with_its_launch_is_published_by_nothing_but_its_directory() {
    let files = Files::new();
    let deployment = broker(&[]);
    let good = files.digest();
    files.image("set", "6.12.1", b"MZ, a kernel");
    files.key("owner.pem");
    done(&files.add(SNP));
    assert!(told(&files.add(SNP)).contains("launch 0 of set is this one"));
    fs::remove_file(files.path("OVMF.fd")).unwrap();
    assert!(told(&files.publish_set(&deployment, "set", &[])).contains("not signed"));
    done(&files.image_set(&["sign", "set", "--key", "owner.pem"]));
    done(&files.publish_set(&deployment, "set", &[]));
    assert_eq!(executables(&deployment, good).await, 3);
    let refused = files.publish_set(&deployment, "set", &["--vcpus", "4"]);
    assert!(told(&refused).contains("--firmware"), "{}", told(&refused));
}

#[test]
fn the_same_inputs_make_the_same_manifest_and_a_diff_names_what_a_launch_changes() {
    let files = Files::new();
    let shapes = files.td_shapes();
    let made = || {
        let dir = files.image("set", "6.12.1", &tdvf::kernel(0));
        for words in [SNP, &shapes] {
            done(&files.add(words));
        }
        fs::read(dir.join("manifest.json")).unwrap()
    };
    let first = made();
    fs::rename(files.path("set"), files.path("first")).unwrap();
    assert_eq!(made(), first);
    done(&files.image_set(&["diff", "first", "set"]));
    fs::remove_dir_all(files.path("set")).unwrap();
    files.image("set", "6.12.1", &tdvf::kernel(0));
    done(&files.add(&SNP.replace("quiet", "debug")));
    let output = files.image_set(&["diff", "first", "set", "--json"]);
    let changes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let line = changes
        .iter()
        .find(|it| it["what"] == "launch 0 command_line")
        .unwrap();
    assert_eq!(
        (&line["old"], &line["new"]),
        (&"quiet".into(), &"debug".into())
    );
    assert!(changes.iter().any(|it| it["what"] == "launch 1 shapes"));
}

#[test]
fn launches_of_one_size_with_other_devices_are_told_by_their_tables() {
    let files = Files::new();
    files.td_shapes();
    files.image("set", "6.12.1", &tdvf::kernel(0));
    for tables in ["td", "td/four"] {
        done(&files.add(&format!("{TD} {XFAM} --acpi {tables}")));
    }
    let output = files.measured_set("--format json");
    let values: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, count) in [("mr_td", 1), ("rtmr_0", 2), ("rtmr_1", 1), ("rtmr_2", 1)] {
        assert_eq!(values[name].as_array().unwrap().len(), count, "{name}");
    }
}

/// What changed of measurements, each with the inputs that make it so.
fn measured(output: &std::process::Output) -> Vec<(String, String)> {
    let changes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |change: &Value| {
        let because = change["because"].as_array()?;
        let because: Vec<&str> = because.iter().filter_map(Value::as_str).collect();
        Some((change["what"].as_str()?.to_owned(), because.join(", ")))
    };
    changes.iter().filter_map(of).collect()
}

#[test]
fn launches_in_manifests_are_compared_and_the_input_behind_each_change_is_named() {
    let files = Files::new();
    let shapes = files.td_shapes();
    let mut newer = tdvf::kernel(0);
    newer[0x2fff] ^= 1;
    for (kernel, line, dir) in [
        (tdvf::kernel(0), "console=ttyS0", "first"),
        (newer, "console=ttyS0 debug", "second"),
    ] {
        files.image("set", "6.12.1", &kernel);
        done(&files.add(SNP));
        let words = shapes.split_whitespace().map(|word| match word {
            "console=ttyS0" => line,
            word => word,
        });
        done(&files.image_set(&words.collect::<Vec<_>>()));
        fs::rename(files.path("set"), files.path(dir)).unwrap();
    }
    let output = files.image_set(&["diff", "first", "second", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = [
        ("launch 0: SNP launch digest, EPYC-v4 vcpus=1", "kernel"),
        ("launch 0: SNP launch digest, EPYC-v4 vcpus=2", "kernel"),
        ("launch 1: TDX RTMR1, memory=2048 vcpus=2", "kernel"),
        ("launch 1: TDX RTMR1, memory=2048 vcpus=4", "kernel"),
        ("launch 1: TDX RTMR2, memory=2048 vcpus=2", "command line"),
        ("launch 1: TDX RTMR2, memory=2048 vcpus=4", "command line"),
    ];
    let expected = expected.map(|(what, because)| (what.to_owned(), because.to_owned()));
    assert_eq!(measured(&output), expected);

    // A launch that neither says, with other tables and firmware that has no other variables.
    let config = "[hypervisor.qemu]\ndefault_memory = 2048\n[cloister]\ntee = \"sim-tdx\"\n";
    files.put("configuration.toml", config.as_bytes());
    let mut other = fs::read(files.path("td/OVMF.fd")).unwrap();
    let code = other.len() - 0x1000;
    other[code] ^= 1;
    files.put("other.fd", &other);
    let words = "diff first second --json --config configuration.toml --firmware td/OVMF.fd --new-firmware \
                 other.fd --dialect edk2-202508 --acpi td";
    let output = files.add(words);
    let said: Vec<_> = measured(&output)
        .into_iter()
        .filter(|(what, _)| !what.starts_with("launch"))
        .collect();
    let expected = [
        ("TDX MRTD", "firmware"),
        ("TDX RTMR1, memory=2048", "kernel"),
    ];
    let expected = expected.map(|(what, because)| (what.to_owned(), because.to_owned()));
    assert_eq!(said, expected, "{}", told(&output));
}

#[test]
fn a_part_of_the_image_that_is_missing_or_another_one_is_refused_by_name() {
    let files = Files::new();
    let dir = files.image("set", "6.12.1", &tdvf::kernel(0));
    let said = told(&files.measured_set(""));
    assert!(said.contains("image-set add"), "{said}");
    files.key("owner.pem");
    for words in [SNP, &files.td_shapes()] {
        done(&files.add(words));
    }
    done(&files.image_set(&["sign", "set", "--key", "owner.pem"]));
    let verify = || files.image_set(&["verify", "set", "--key", "owner.pem.pub"]);
    done(&verify());
    let refused = |name: &str| {
        for output in [verify(), files.measured_set("")] {
            let said = told(&output);
            assert!(
                !output.status.success() && said.contains(name),
                "{name}: {said}"
            );
        }
    };
    for name in [
        "vmlinuz",
        "launch-0/firmware.fd",
        "launch-1/firmware.fd",
        "launch-1/acpi-2048-2/etc/table-loader",
        "launch-1/acpi-2048-4/etc/acpi/tables",
    ] {
        let path = dir.join(name);
        let mut content = fs::read(&path).unwrap();
        content[0] ^= 1;
        fs::write(&path, &content).unwrap();
        refused(name);
        fs::remove_file(&path).unwrap();
        refused(name);
        content[0] ^= 1;
        fs::write(&path, &content).unwrap();
    }
    done(&verify());
    let manifest = dir.join("manifest.json");
    let kept: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for name in [
        "launch-0/firmware.fd",
        "launch-1/acpi-2048-4/etc/acpi/tables",
    ] {
        let mut fewer = kept.clone();
        let outputs = fewer["outputs"].as_array_mut().unwrap();
        outputs.retain(|output| output["name"] != name);
        fs::write(&manifest, fewer.to_string()).unwrap();
        let said = told(&files.measured_set(""));
        assert!(said.contains(&format!("needs {name}")), "{said}");
    }
    for (launch, member) in [
        (0, "command_line"),
        (0, "firmware"),
        (1, "dialect"),
        (1, "shapes"),
    ] {
        let mut fewer = kept.clone();
        fewer["launches"][launch]
            .as_object_mut()
            .unwrap()
            .remove(member);
        fs::write(&manifest, fewer.to_string()).unwrap();
        let said = told(&files.measured_set(""));
        assert!(said.contains(&format!("`{member}`")), "{said}");
    }
}

#[tokio::test]
async fn tds_of_the_shapes_in_an_image_are_affirmed_and_one_of_another_shape_is_refused() {
    let files = Files::new();
    let deployment = measured_td::broker();
    let shapes = files.td_shapes();
    let (kernel, initramfs) = (tdvf::kernel(0), b"initramfs");
    let dir = files.image("set", "6.12.1", &kernel);
    fs::write(dir.join("initramfs.cpio"), initramfs).unwrap();
    let manifest = dir.join("manifest.json");
    let mut listed: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    listed["outputs"][1]["sha256"] = super::image_set::sha256(initramfs).into();
    fs::write(&manifest, listed.to_string()).unwrap();
    files.key("owner.pem");
    done(&files.add(&shapes));
    done(&files.image_set(&["sign", "set", "--key", "owner.pem"]));

    let two = td(&launched(|_| {}));
    let four = td(&launched(|launch| {
        launch.acpi.files = &[tdvf::TABLES[0], ("etc/acpi/tables", b"of four")];
    }));
    let other = td(&launched(|launch| {
        launch.memory = Memory::new(3 << 30).unwrap()
    }));
    let output = files.measured_set("--tee tdx --format launch");
    let launches: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for (shape, (vcpus, td)) in launches.iter().zip([(2, &two), (4, &four)]) {
        assert_eq!(shape["vcpus"], vcpus);
        assert_eq!(shape["rtmr_0"], hex::encode(td.body.rtmr[0]));
    }
    done(&files.publish_set(&deployment, "set", &[]));
    for td in [&two, &four] {
        assert_eq!(measured_td::appraised(&deployment, td).await.1, [4, 2, 2]);
    }
    assert_eq!(
        measured_td::appraised(&deployment, &other).await.1,
        [33, 2, 2]
    );
}

#[test]
fn the_first_rtmr_0_waits_for_those_of_other_tds_that_are_good() {
    let files = Files::new();
    let deployment = measured_td::broker();
    let shapes = files.td_shapes();
    files.image("set", "6.12.1", &tdvf::kernel(0));
    files.key("owner.pem");
    done(&files.add(&shapes));
    done(&files.image_set(&["sign", "set", "--key", "owner.pem"]));
    let known = deployment.write(
        "old.json",
        format!(r#"{{"rtmr_1": ["{}"]}}"#, "aa".repeat(48)),
    );
    deployment.own(&["reference", "import", &known]);
    let said = told(&files.publish_set(&deployment, "set", &[]));
    assert!(said.contains("none by rtmr_0"), "{said}");
    let known = deployment.write(
        "old.json",
        format!(r#"{{"rtmr_0": ["{}"]}}"#, "bb".repeat(48)),
    );
    deployment.own(&["reference", "import", &known, "--add"]);
    done(&files.publish_set(&deployment, "set", &[]));
}
