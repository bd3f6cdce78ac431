//! Kernel modules: those that every guest needs load at once, the others when something needs them.
//!
//! The image has them with two lists (`guest_image::module` writes both). What may be needed later is
//! opened before the initramfs is emptied, because its files go with it; an open one stays until it is
//! loaded or dropped.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// One module file path per line, in the order of dependency.
const BOOT_LIST: &str = "/modules/load";
/// One ability per line: its name, a blank, and its modules' paths, parted by commas, in the order of
/// dependency.
const DEMAND_LIST: &str = "/modules/demand";
/// Where sysfs has virtio devices.
const VIRTIO: &str = "bus/virtio/devices";
/// A list, in bytes.
const MAX_LIST: u64 = 64 * 1024;

/// A list or a module that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("module {path}: {cause}")]
pub struct Error {
    path: String,
    cause: io::Error,
}

/// The modules of one ability, open and not loaded.
#[derive(Debug, Default)]
pub struct Ability(Vec<(String, File)>);

/// Loads the modules that every guest needs. An image whose kernel has everything built in has no list.
///
/// # Errors
///
/// Names the module.
pub fn load_boot() -> Result<(), Error> {
    for path in read(BOOT_LIST)?.lines().map(str::trim) {
        if !path.is_empty() {
            load(path, &open(path)?)?;
        }
    }
    Ok(())
}

impl Ability {
    /// Opens the modules of an ability. Where all of it is built in, or no list knows it, there are none.
    ///
    /// # Errors
    ///
    /// Names the module.
    pub fn open(name: &str) -> Result<Self, Error> {
        let list = read(DEMAND_LIST)?;
        let opened = paths(&list, name).map(|path| Ok((path.to_owned(), open(path)?)));
        opened.collect::<Result<_, _>>().map(Self)
    }

    /// The same for the driver of a virtio device, where `sys` shows one of this number.
    ///
    /// # Errors
    ///
    /// Names the module.
    pub fn of_device(sys: &Path, number: &str, name: &str) -> Result<Self, Error> {
        let devices = fs::read_dir(sys.join(VIRTIO))
            .into_iter()
            .flatten()
            .flatten();
        let mut numbers = devices.map(|device| fs::read_to_string(device.path().join("device")));
        match numbers.any(|found| found.is_ok_and(|found| found.trim() == number)) {
            true => Self::open(name),
            false => Ok(Self::default()),
        }
    }

    /// Loads them.
    ///
    /// # Errors
    ///
    /// Names the module.
    pub fn load(self) -> Result<(), Error> {
        self.0.iter().try_for_each(|(path, file)| load(path, file))
    }
}

fn paths<'a>(list: &'a str, ability: &str) -> impl Iterator<Item = &'a str> {
    let lines = list.lines().filter_map(|line| line.split_once(' '));
    let found = lines.into_iter().find(|(name, _)| *name == ability);
    let paths = found.map_or("", |(_, paths)| paths).split(',');
    paths.map(str::trim).filter(|path| !path.is_empty())
}

fn read(list: &str) -> Result<String, Error> {
    let mut text = String::new();
    let read =
        File::open(Path::new(list)).and_then(|file| file.take(MAX_LIST).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(list, error)),
        _ => Ok(text),
    }
}

fn open(path: &str) -> Result<File, Error> {
    File::open(path).map_err(|cause| failed(path, cause))
}

fn load(path: &str, file: &File) -> Result<(), Error> {
    match rustix::system::finit_module(file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(path, error.into())),
    }
}

fn failed(path: &str, cause: io::Error) -> Error {
    Error {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ability_has_the_paths_of_its_line_and_no_others() {
        let list =
            "erofs /modules/erofs.ko\nscratch /m/a.ko,/m/b.ko\nbuilt-in\nscratch-2 /m/c.ko\n";
        let of = |name| paths(list, name).collect::<Vec<_>>();
        assert_eq!(of("scratch"), ["/m/a.ko", "/m/b.ko"]);
        assert_eq!(of("built-in"), Vec::<&str>::new());
        assert_eq!(of("unknown"), Vec::<&str>::new());
    }
}
