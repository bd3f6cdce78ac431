//! The image: a kernel, an initramfs with the agent in it, and the manifest of both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bzimage::{self, BzImageError};
use crate::cpio::{Archive, CpioError, Node};
use crate::elf::Elf;
use crate::kernel::{Kernel, KernelError};
use crate::lz4;
use crate::manifest::{self, Digest, Manifest};
use crate::module::{self, ModuleError, Modules};

/// The kernel's name in an image's directory.
pub const VMLINUX: &str = "vmlinux";
/// The bzImage's name in an image's directory.
pub const VMLINUZ: &str = "vmlinuz";
/// The initramfs's name in an image's directory: a cpio archive, packed by [`lz4`].
pub const INITRAMFS: &str = "initramfs.cpio";
/// The directories that the agent mounts on or writes to.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];
/// Largest agent, in bytes. All of it is in the guest's memory before the first process.
const AGENT_MAX: u64 = 128 << 20;

/// Why an image was not built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file cannot be read or written.
    #[error("cannot use `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The agent is no program that can run as the only one in a guest.
    #[error(
        "`{path}` is not a static program ({why}); build it with \
         RUSTFLAGS=\"-C target-feature=+crt-static\""
    )]
    Agent {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel directory is not complete.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel cannot be entered by a VMM.
    #[error("`{path}`")]
    Vmlinux {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BzImageError,
    },
    /// The modules cannot be put together.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The initramfs cannot be written.
    #[error("cannot write the initramfs")]
    Cpio(#[from] CpioError),
    /// The initramfs cannot be packed.
    #[error("cannot pack the initramfs")]
    Pack(#[source] io::Error),
    /// The manifest cannot be written.
    #[error("cannot write the manifest")]
    Manifest(#[from] serde_json::Error),
}

/// Builds an image into the directory `out`, which is made when it is not there. The manifest is
/// written last, so that a directory with a manifest is complete. `number` is its owner's, by which an
/// older image is known; 0 where images are not counted.
///
/// # Errors
/// [`ImageError`], which names the step that failed.
pub fn build(agent: &Path, kernel: &Path, out: &Path, number: u64) -> Result<Manifest, ImageError> {
    let kernel = Kernel::open(kernel)?;
    let program = read_agent(agent)?;
    let vmlinux = read(&kernel.vmlinux())?;
    bzimage::check_pvh(&vmlinux).map_err(|source| ImageError::Vmlinux {
        path: kernel.vmlinux(),
        source,
    })?;
    let vmlinuz = read(&kernel.vmlinuz())?;
    let modules = Modules::pick(&kernel)?;
    let digests = |files: &Modules| {
        let digest = |(name, bytes): (&String, &Vec<u8>)| Digest::new(name, bytes);
        files.files.iter().map(digest).collect()
    };
    let mut manifest = Manifest {
        version: manifest::VERSION,
        number,
        kernel: kernel.record().clone(),
        agent: Digest::new("cloister-agent", &program),
        modules: digests(&modules),
        outputs: vec![
            Digest::new(VMLINUX, &vmlinux),
            Digest::new(VMLINUZ, &vmlinuz),
        ],
        launches: Vec::new(),
    };
    // A fifth of the agent is symbols, and all that is here the guest unpacks and keeps in memory.
    let init = Elf::parse(&program).and_then(|elf| elf.loadable());
    let init = init.map_err(|error| ImageError::Agent {
        path: agent.to_owned(),
        why: error.to_string(),
    })?;
    let initramfs = lz4::pack(&initramfs(init, modules)?).map_err(ImageError::Pack)?;
    manifest.outputs.push(Digest::new(INITRAMFS, &initramfs));

    let text = manifest.to_bytes()?;
    let _turn = turn(out)?;
    let complete = out.join(manifest::FILE);
    match fs::remove_file(&complete) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file(&complete, error));
        }
        _ => {}
    }
    for (name, bytes) in [
        (VMLINUX, vmlinux),
        (VMLINUZ, vmlinuz),
        (INITRAMFS, initramfs),
        (manifest::FILE, text),
    ] {
        replace(&out.join(name), &bytes)?;
    }
    Ok(manifest)
}

/// The archive that the kernel unpacks: the agent as `/init`, and the modules with their lists.
fn initramfs(agent: Vec<u8>, modules: Modules) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::default();
    for (path, mode) in DIRECTORIES {
        archive.add(path, Node::Directory(*mode))?;
    }
    // The kernel opens it for the first process, before that could mount anything.
    archive.add("dev/console", Node::Character(0o600, 5, 1))?;
    archive.add("init", Node::File(0o755, agent))?;
    archive.add(module::DIR, Node::Directory(0o755))?;
    for (name, list) in [
        ("load", modules.load_list()),
        ("demand", modules.demand_list()),
    ] {
        let path = format!("{}/{name}", module::DIR);
        archive.add(&path, Node::File(0o444, list.into_bytes()))?;
    }
    for (name, bytes) in modules.files {
        let path = format!("{}/{name}.ko", module::DIR);
        archive.add(&path, Node::File(0o444, bytes))?;
    }
    archive.bytes()
}

/// Reads the agent and checks that it needs no loader and no library: the guest has none.
fn read_agent(path: &Path) -> Result<Vec<u8>, ImageError> {
    let not = |why: String| ImageError::Agent {
        path: path.to_owned(),
        why,
    };
    let size = fs::metadata(path)
        .map_err(|source| file(path, source))?
        .len();
    if size > AGENT_MAX {
        return Err(not(format!("{size} bytes, and 128 MiB is the most")));
    }
    let program = read(path)?;
    let elf = Elf::parse(&program).map_err(|error| not(error.to_string()))?;
    if elf
        .has_interpreter()
        .map_err(|error| not(error.to_string()))?
    {
        return Err(not("it asks for a dynamic loader".to_owned()));
    }
    Ok(program)
}

/// Writes a file beside its place and moves it there: a VM that boots meanwhile keeps the old one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).map_err(|source| file(&fresh, source))?;
    fs::rename(&fresh, path).map_err(|source| file(path, source))
}

/// Waits for the turn to write into a directory: two builds at once would mix their files.
fn turn(out: &Path) -> Result<fs::File, ImageError> {
    fs::create_dir_all(out).map_err(|source| file(out, source))?;
    let path = out.join(".lock");
    let lock = fs::File::create(&path).map_err(|source| file(&path, source))?;
    lock.lock().map_err(|source| file(&path, source))?;
    Ok(lock)
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> ImageError {
    ImageError::File {
        path: path.to_owned(),
        source,
    }
}
