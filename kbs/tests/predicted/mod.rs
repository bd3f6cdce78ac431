//! The files of a TD, what `cloister measure` says of them, and the simulated launch of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use evidence::sim::tdx::LogBuilder;
use measure::tdx::{Dialect, Event, Firmware, Launch, Prediction, RuntimeEvent, Vmm};
use support::product;

use crate::{
    deployment::succeed,
    platform::td::{TD_ROOT, Td},
    tdvf,
};

/// XFAM of [`Td::new`].
pub(crate) const XFAM: &str = "e702060000000000";

/// A guest's files, as the launches of [`tdvf::launch`] have them.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("OVMF.fd", &tdvf::small());
        files.put("vmlinuz", &tdvf::kernel(0));
        files.put("initramfs.cpio", b"initramfs");
        files.put("etc/table-loader", &tdvf::loader());
        files.put("DMI", tdvf::SMBIOS);
        for (name, content) in tdvf::TABLES {
            files.put(&format!("{name}/raw"), content);
        }
        files
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// `cloister measure` of these files, with what else is said.
    pub(crate) fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::new(product::bin("cloister").unwrap());
        let files = "measure --tee tdx --firmware OVMF.fd --kernel vmlinuz --initrd initramfs.cpio";
        command.current_dir(self.0.path()).args(files.split(' '));
        command.args(more).output().unwrap()
    }

    /// The same of a firmware and a shape.
    pub(crate) fn measure(&self, more: &[&str]) -> Output {
        let usual = "--append console=ttyS0 --dialect edk2-202508 --memory 2G --acpi .";
        let usual: Vec<_> = usual.split(' ').collect();
        self.run(&[&usual, more].concat())
    }

    /// The same, which has to succeed.
    pub(crate) fn measured(&self, more: &[&str]) -> Vec<u8> {
        let output = self.measure(more);
        succeed(&output);
        output.stdout
    }

    /// What `--explain` says of evidence, and whether it is of a predicted launch.
    pub(crate) fn explain(&self, evidence: &[u8], more: &[&str]) -> (bool, String) {
        self.put("evidence", evidence);
        let output = self.measure(&[&["--explain", "evidence"], more].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }
}

/// What the launch with these changes leads to.
pub(crate) fn launched(change: impl FnOnce(&mut Launch<'_>)) -> Prediction {
    let (image, loader, kernel) = (tdvf::small(), tdvf::loader(), tdvf::kernel(0));
    let firmware = Firmware::parse(&image, Vmm::Qemu).unwrap();
    let dialect = Dialect::edk2_202508();
    let mut launch = tdvf::launch(&firmware, &dialect, &loader, &kernel);
    launch.runtime = &[RuntimeEvent {
        domain: "coco.com",
        operation: "pull",
        content: "busybox",
    }];
    change(&mut launch);
    launch.predict().unwrap()
}

/// A TD whose hardware and firmware say what the launch led to.
pub(crate) fn td(launched: &Prediction) -> Td {
    let put =
        |log: LogBuilder, event: &Event| log.measured(event.index, event.kind, &[], &event.digest);
    let log = launched.events.iter().fold(LogBuilder::new(), put);
    assert_eq!(log.registers(), launched.rtmrs);
    let mut td = Td::new();
    td.body.mr_td = launched.mrtd;
    td.body.rtmr = log.registers();
    td.log = Some(log);
    td
}

/// The evidence that a TD makes.
pub(crate) fn evidence(td: &Td) -> Vec<u8> {
    let key = TD_ROOT.platform(&td.platform).unwrap();
    let enclave = key.enclave(&td.enclave).unwrap();
    let log = td.log.as_ref().map(LogBuilder::finish);
    let evidence = enclave.evidence(td.header, td.body.clone(), log);
    serde_json::to_vec(&evidence.unwrap()).unwrap()
}
