//! `[hypervisor.<vmm>]`: the virtual machine. Here is what it sets; `confidential` has the
//! keys of SEV-SNP and TDX guests, `other` those that set nothing.

mod confidential;
mod other;

use std::path::PathBuf;

use hypervisor::Machine;
use hypervisor::growth::MAX_SLOTS;
use hypervisor::spec::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use toml::Value;

use super::own::{path_value, words_value};
use super::{Honoured, Keys, Set};
use crate::config::{SharedFs, VirtioFsCache, allow, kernel_words};

/// The table.
pub(super) static KEYS: Keys = Keys {
    honoured: HONOURED,
    moot: other::MOOT,
    only: other::ONLY,
};

const HONOURED: &[Honoured] = &[
    Honoured {
        name: "path",
        set: Set::Text(|config, path| {
            if !path.is_empty() {
                config.vm.qemu = PathBuf::from(path);
            }
            Ok(())
        }),
        get: |config| path_value(Some(&config.vm.qemu)),
    },
    Honoured {
        name: "kernel",
        set: Set::Text(|config, path| {
            if !path.is_empty() {
                config.vm.kernel = PathBuf::from(path);
            }
            Ok(())
        }),
        get: |config| path_value(Some(&config.vm.kernel)),
    },
    Honoured {
        name: "initrd",
        set: Set::Text(|config, path| {
            if !path.is_empty() {
                config.vm.initrd = Some(PathBuf::from(path));
            }
            Ok(())
        }),
        get: |config| path_value(config.vm.initrd.as_deref()),
    },
    Honoured {
        name: "firmware",
        set: Set::Text(|config, path| {
            config.vm.firmware = Some(PathBuf::from(path)).filter(|_| !path.is_empty());
            Ok(())
        }),
        get: |config| path_value(config.vm.firmware.as_deref()),
    },
    Honoured {
        name: "igvm",
        set: Set::Text(|config, path| {
            config.vm.igvm = Some(PathBuf::from(path)).filter(|_| !path.is_empty());
            Ok(())
        }),
        get: |config| path_value(config.vm.igvm.as_deref()),
    },
    Honoured {
        name: "machine_type",
        set: Set::Text(|config, name| {
            config.vm.machine = match name {
                "" | "q35" => Machine::Q35,
                "microvm" => Machine::Microvm,
                other => return Err(format!("{other:?} is not one of \"q35\", \"microvm\"")),
            };
            Ok(())
        }),
        get: |config| {
            Value::from(match config.vm.machine {
                Machine::Q35 => "q35",
                Machine::Microvm => "microvm",
            })
        },
    },
    confidential::GUEST,
    confidential::SNP,
    confidential::POLICY,
    confidential::ID_BLOCK,
    confidential::ID_AUTH,
    confidential::QUOTE_PORT,
    Honoured {
        name: "default_vcpus",
        set: Set::Fraction(|config, number| {
            if let Some(vcpus) = processors(number)? {
                config.vm.vcpus = vcpus;
            }
            Ok(())
        }),
        get: |config| Value::from(config.vm.vcpus),
    },
    Honoured {
        name: "default_maxvcpus",
        set: Set::Number(|config, number| {
            // Kata's files for machines of any size have more than QEMU takes here.
            let most = u32::try_from(number).map_or(MAX_VCPUS, |most| most.min(MAX_VCPUS));
            config.vm.max_vcpus = Some(most).filter(|most| *most > 0);
            Ok(())
        }),
        get: |config| Value::from(config.vm.max_vcpus.unwrap_or_default()),
    },
    Honoured {
        name: "overhead_vcpus",
        set: Set::Fraction(|config, number| {
            config.vm.overhead_millicpus = Some(millicpus(number)?);
            Ok(())
        }),
        get: |config| {
            let overhead = config.vm.overhead_millicpus;
            Value::from(overhead.map_or(0.0, |milli| f64::from(milli) / 1000.0))
        },
    },
    Honoured {
        name: "default_memory",
        set: Set::Number(|config, mib| {
            if let Some(mib) = memory(mib)? {
                config.vm.memory_mib = mib;
            }
            Ok(())
        }),
        get: |config| Value::from(config.vm.memory_mib),
    },
    Honoured {
        name: "default_maxmemory",
        set: Set::Number(|config, mib| {
            config.vm.max_memory_mib = memory(mib)?;
            Ok(())
        }),
        get: |config| Value::from(config.vm.max_memory_mib.unwrap_or_default()),
    },
    Honoured {
        name: "overhead_memory",
        set: Set::Number(|config, mib| {
            let mib = u32::try_from(mib).ok().filter(|mib| *mib <= MAX_MEMORY_MIB);
            config.vm.overhead_mib = Some(mib.ok_or(format!("use at most {MAX_MEMORY_MIB} MiB"))?);
            Ok(())
        }),
        get: |config| Value::from(config.vm.overhead_mib.unwrap_or_default()),
    },
    Honoured {
        name: "memory_slots",
        set: Set::Number(|config, slots| {
            let slots = u32::try_from(slots).ok();
            let slots = slots.filter(|slots| *slots <= MAX_SLOTS);
            match slots.ok_or(format!("use at most {MAX_SLOTS}"))? {
                0 => {}
                slots => config.vm.memory_slots = slots,
            }
            Ok(())
        }),
        get: |config| Value::from(config.vm.memory_slots),
    },
    Honoured {
        name: "reclaim_guest_freed_memory",
        set: Set::Switch(|config, on| config.vm.reclaims = on),
        get: |config| Value::from(config.vm.reclaims),
    },
    // As Kata's Go runtime calls it.
    Honoured {
        name: "enable_balloon_f_reporting",
        set: Set::Switch(|config, on| config.vm.reclaims = on),
        get: |config| Value::from(config.vm.reclaims),
    },
    Honoured {
        name: "disable_block_device_use",
        set: Set::Switch(|config, on| config.vm.disable_block_devices = on),
        get: |config| Value::from(config.vm.disable_block_devices),
    },
    Honoured {
        name: "disable_vhost_net",
        set: Set::Switch(|config, on| config.vm.vhost_net = !on),
        get: |config| Value::from(!config.vm.vhost_net),
    },
    Honoured {
        name: "kernel_params",
        set: Set::Text(|config, text| {
            add_words(&mut config.vm.kernel_params, kernel_words(text)?);
            Ok(())
        }),
        get: |config| Value::from(config.vm.kernel_params.join(" ")),
    },
    Honoured {
        name: "enable_annotations",
        set: Set::Words(|config, patterns| {
            allow::check_patterns(&patterns)?;
            config.enable_annotations = patterns;
            Ok(())
        }),
        get: |config| words_value(&config.enable_annotations),
    },
    Honoured {
        name: "valid_hypervisor_paths",
        set: Set::Words(|config, globs| {
            allow::check_globs(&globs)?;
            config.valid_hypervisor_paths = globs;
            Ok(())
        }),
        get: |config| words_value(&config.valid_hypervisor_paths),
    },
    Honoured {
        name: "valid_virtio_fs_daemon_paths",
        set: Set::Words(|config, globs| {
            allow::check_globs(&globs)?;
            config.valid_virtio_fs_daemon_paths = globs;
            Ok(())
        }),
        get: |config| words_value(&config.valid_virtio_fs_daemon_paths),
    },
    Honoured {
        name: "shared_fs",
        set: Set::Text(|config, name| {
            config.vm.shared_fs = match name {
                "virtio-fs" => SharedFs::VirtioFs,
                "none" => SharedFs::None,
                other => return Err(format!("{other:?} is not one of \"virtio-fs\", \"none\"")),
            };
            Ok(())
        }),
        get: |config| {
            Value::from(match config.vm.shared_fs {
                SharedFs::VirtioFs => "virtio-fs",
                SharedFs::None => "none",
            })
        },
    },
    Honoured {
        name: "virtio_fs_daemon",
        set: Set::Text(|config, path| {
            config.vm.virtio_fs_daemon = Some(PathBuf::from(path)).filter(|_| !path.is_empty());
            Ok(())
        }),
        get: |config| path_value(config.vm.virtio_fs_daemon.as_deref()),
    },
    Honoured {
        name: "virtio_fs_cache",
        set: Set::Text(|config, name| {
            config.vm.virtio_fs_cache = VirtioFsCache::parse(name)?;
            Ok(())
        }),
        get: |config| Value::from(config.vm.virtio_fs_cache.name()),
    },
    Honoured {
        name: "virtio_fs_extra_args",
        set: Set::Words(|config, args| {
            config.vm.virtio_fs_extra_args = args;
            Ok(())
        }),
        get: |config| words_value(&config.vm.virtio_fs_extra_args),
    },
];

/// Whole processors: Kata takes fractions, and below zero means all of the host's. Zero is the
/// default.
fn processors(number: f64) -> Result<Option<u32>, String> {
    if number < 0.0 {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        return Ok(Some(
            u32::try_from(all).map_or(MAX_VCPUS, |all| all.min(MAX_VCPUS)),
        ));
    }
    let milli = millicpus(number)?;
    match milli.div_ceil(1000) {
        0 => Ok(None),
        vcpus => Ok(Some(vcpus)),
    }
}

/// Thousandths of a processor.
fn millicpus(number: f64) -> Result<u32, String> {
    if !(0.0..=f64::from(MAX_VCPUS)).contains(&number) {
        return Err(format!("use at most {MAX_VCPUS}"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked above"
    )]
    let milli = (number * 1000.0).ceil() as u32;
    Ok(milli)
}

fn memory(mib: u64) -> Result<Option<u32>, String> {
    if mib == 0 {
        return Ok(None);
    }
    let mib = u32::try_from(mib).ok();
    let fits = mib.filter(|mib| (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(mib));
    match fits {
        Some(mib) => Ok(Some(mib)),
        None => Err(format!("use {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB")),
    }
}

/// Adds words to a command line, in place of those with their keys.
fn add_words(words: &mut Vec<String>, more: Vec<String>) {
    fn key(word: &str) -> &str {
        word.split_once('=').map_or(word, |(key, _)| key)
    }
    words.retain(|old| more.iter().all(|new| key(new) != key(old)));
    words.extend(more);
}
