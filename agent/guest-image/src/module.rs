//! Which kernel modules a guest needs, and in which order they load.
//!
//! Loading a module costs about 10 ms under emulation, so the list is split: what every guest needs
//! loads at boot, the rest when a pod first uses it. In the initramfs the two lists are files that
//! the agent reads:
//!
//! - `/modules/load`: one path per line, in load order. What the host waits for comes first.
//! - `/modules/demand`: one line per ability, `name path[,path...]`, the paths in load order and
//!   complete: a module that two abilities need stands in both, and one that is loaded already is
//!   to be passed over. An ability whose parts are all built into the kernel has no path. The
//!   drivers of the TEEs refuse to load on a machine that is not theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::elf::{Elf, ElfError};
use crate::kernel::{Flavour, Kernel};
use crate::signature;
use crate::unpack::{self, UnpackError};

/// What loads at boot: the way to the host, on the bus that it has in a microvm; then the devices
/// that a pod's start may need, and the file systems that every pod needs.
pub const BOOT: &[&str] = &[
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "virtio_blk",
    "virtio_net",
    "overlay",
    "configfs",
];

/// What loads on demand: the name of the ability, and its modules. A module is named in all the
/// ways that kernels since [`crate::debian::OLDEST`] have named it, parted by `|`.
pub const DEMAND: &[(&str, &[&str])] = &[
    ("virtio-rng", &["virtio_rng"]),
    ("erofs", &["erofs"]),
    ("loop", &["loop"]),
    ("dm-verity", &["dm_verity"]),
    // dm-crypt asks the kernel for its cipher by name, which no dependency shows. The tags of authenticated
    // encryption are dm-integrity's to keep, on a device in memory.
    (
        "encryption",
        &[
            "dm_crypt",
            "dm_integrity",
            "loop",
            "gcm",
            "xts",
            "aesni_intel",
        ],
    ),
    (
        "scratch",
        &["dm_crypt", "dm_integrity", "loop", "gcm", "aesni_intel"],
    ),
    ("balloon", &["virtio_balloon"]),
    ("scsi", &["virtio_scsi", "sd_mod"]),
    ("tsm", &["tsm|tsm_report"]),
    ("sev-guest", &["sev_guest"]),
    ("tdx-guest", &["tdx_guest"]),
];

/// Where modules are in the initramfs.
pub const DIR: &str = "modules";

/// Why the modules of a guest cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A module that is needed is neither there nor part of the kernel.
    #[error("the kernel has no module `{0}`, and it is not built in")]
    Missing(String),
    /// A module does not decompress.
    #[error("module `{name}` does not unpack")]
    Unpack {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// A module is not an ELF file.
    #[error("module `{name}` is damaged")]
    Elf {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// Modules need each other in a circle.
    #[error("module `{0}` depends on itself")]
    Circle(String),
}

/// The modules of a guest: their plain content by name, and the two lists.
#[derive(Debug, Default)]
pub struct Modules {
    /// Module name to `.ko` content.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Names in load order.
    pub load: Vec<String>,
    /// Abilities and their names in load order.
    pub demand: Vec<(String, Vec<String>)>,
}

impl Modules {
    /// Picks the modules that a guest needs out of a kernel's.
    ///
    /// # Errors
    /// [`ModuleError`], which names the module.
    pub fn pick(kernel: &Kernel) -> Result<Self, ModuleError> {
        let mut modules = Self::default();
        let mut tree = Tree::open(kernel)?;
        for wanted in BOOT {
            tree.add(wanted, &mut modules.load)?;
        }
        for (ability, wanted) in DEMAND {
            let mut order = Vec::new();
            for name in *wanted {
                tree.add(name, &mut order)?;
            }
            modules.demand.push(((*ability).to_owned(), order));
        }
        modules.files = tree.unpacked;
        Ok(modules)
    }

    /// The content of `/modules/load`.
    #[must_use]
    pub fn load_list(&self) -> String {
        self.load
            .iter()
            .map(|name| format!("{}\n", path(name)))
            .collect()
    }

    /// The content of `/modules/demand`.
    #[must_use]
    pub fn demand_list(&self) -> String {
        let line = |(ability, order): &(String, Vec<String>)| {
            let paths: Vec<_> = order.iter().map(|name| path(name)).collect();
            format!("{ability} {}", paths.join(","))
                .trim_end()
                .to_owned()
                + "\n"
        };
        self.demand.iter().map(line).collect()
    }
}

fn path(name: &str) -> String {
    format!("/{DIR}/{name}.ko")
}

/// A kernel's modules, by name with underscores, as the kernel itself has them.
struct Tree {
    packed: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    all_builtin: bool,
    unpacked: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    fn open(kernel: &Kernel) -> Result<Self, ModuleError> {
        let mut packed = BTreeMap::new();
        let all_builtin = kernel.record().flavour == Flavour::Own;
        let mut builtin = BTreeSet::new();
        if !all_builtin {
            list(&kernel.modules(), &mut packed)?;
            let path = kernel.builtin();
            let text =
                fs::read_to_string(&path).map_err(|source| ModuleError::File { path, source })?;
            builtin.extend(text.lines().filter_map(|line| module_name(Path::new(line))));
        }
        Ok(Self {
            packed,
            builtin,
            // Compiling refuses a configuration in which a line of the fragment did not take.
            all_builtin,
            unpacked: BTreeMap::new(),
        })
    }

    /// Appends a module after what it depends on, unless it stands there already.
    fn add(&mut self, wanted: &str, order: &mut Vec<String>) -> Result<(), ModuleError> {
        let name = wanted
            .split('|')
            .find(|name| self.packed.contains_key(*name) || self.builtin.contains(*name));
        match name {
            None if self.all_builtin => Ok(()),
            None => Err(ModuleError::Missing(wanted.replace('|', "` or `"))),
            Some(name) => self.visit(name, order, &mut Vec::new()),
        }
    }

    fn visit(
        &mut self,
        name: &str,
        order: &mut Vec<String>,
        above: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        if above.iter().any(|one| one == name) {
            return Err(ModuleError::Circle(name.to_owned()));
        }
        if order.iter().any(|one| one == name) || self.builtin.contains(name) {
            return Ok(());
        }
        self.unpack(name)?;
        above.push(name.to_owned());
        for needed in depends(name, &self.unpacked[name])? {
            self.visit(&needed, order, above)?;
        }
        above.pop();
        order.push(name.to_owned());
        Ok(())
    }

    fn unpack(&mut self, name: &str) -> Result<(), ModuleError> {
        if self.unpacked.contains_key(name) {
            return Ok(());
        }
        let path = self.packed.get(name);
        let path = path
            .ok_or_else(|| ModuleError::Missing(name.to_owned()))?
            .clone();
        let bytes = fs::read(&path).map_err(|source| ModuleError::File { path, source })?;
        let plain = unpack::by_magic(&bytes).map_err(|source| ModuleError::Unpack {
            name: name.to_owned(),
            source,
        })?;
        self.unpacked
            .insert(name.to_owned(), signature::strip(plain));
        Ok(())
    }
}

/// What a module says that it depends on. `depmod`'s list is made when a kernel is installed, and
/// this one is not; it is made from the same words.
fn depends(name: &str, module: &[u8]) -> Result<Vec<String>, ModuleError> {
    let damaged = |source| ModuleError::Elf {
        name: name.to_owned(),
        source,
    };
    let elf = Elf::parse(module).map_err(damaged)?;
    let info = elf
        .section(".modinfo")
        .map_err(damaged)?
        .unwrap_or_default();
    Ok(info
        .split(|byte| *byte == 0)
        .filter_map(|word| word.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|one| !one.is_empty())
        .map(|one| String::from_utf8_lossy(one).replace('-', "_"))
        .collect())
}

fn list(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let file = |source| ModuleError::File {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(file)? {
        let entry = entry.map_err(file)?;
        let path = entry.path();
        if entry.file_type().map_err(file)?.is_dir() {
            list(&path, found)?;
        } else if let Some(name) = module_name(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/fs/overlayfs/overlay.ko.xz` is `overlay`.
fn module_name(path: &Path) -> Option<String> {
    let (stem, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}
