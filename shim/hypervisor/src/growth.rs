//! How far a VM may grow while it runs, and how it is made to: processors and memory that are plugged in
//! over the control socket. Only a plain q35 does: what a TEE measures at launch must not change later.
//!
//! | | boots with | grows by |
//! |---|---|---|
//! | processors under KVM | `-smp 1,maxcpus=4` | `device_add` |
//! | processors under emulation | `-smp 4` and the kernel's `maxcpus=1` | nothing: the guest takes them into use |
//! | memory | `-m 512M,slots=10,maxmem=4096M` | `object_add`, `device_add pc-dimm` |
//!
//! An emulator is no hypervisor to Linux, which then counts no processor that firmware does not call
//! present. One that nobody uses costs an emulator nothing, so all of them are.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::accel::Resolved;
use crate::qmp::{Qmp, QmpError};
use crate::spec::{MAX_MEMORY_MIB, MAX_VCPUS, Machine, VmSpec};

/// The most memory modules that can be plugged into one VM (QEMU's `ACPI_MAX_RAM_SLOTS`).
pub const MAX_SLOTS: u32 = 256;
/// The least memory module, in MiB: Linux takes memory into use in such blocks or larger ones.
pub const MIN_BLOCK_MIB: u32 = 128;
/// As large as Linux makes them on x86-64, on a machine with much memory.
const MAX_BLOCK_MIB: u32 = 2048;

/// How far a VM may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// The most processors.
    pub max_vcpus: u32,
    /// The most memory, in MiB.
    pub max_memory_mib: u32,
    /// How often memory may be added.
    pub memory_slots: u32,
}

/// Why a VM may not grow as it is said to.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GrowthError {
    /// The machine cannot.
    #[error("a microvm does not grow: use q35, or give the VM its size at the start")]
    Machine,
    /// Less than at the start, or more than there can be.
    #[error(
        "growth to {vcpus} processors and {memory_mib} MiB in {slots} slots: use at least what the VM starts with, at most {MAX_VCPUS}, {MAX_MEMORY_MIB} and {MAX_SLOTS}"
    )]
    Bounds {
        /// Processors.
        vcpus: u32,
        /// Memory.
        memory_mib: u32,
        /// Slots.
        slots: u32,
    },
}

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Processors.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
}

/// Plugs processors and memory into a running VM. Cheap to clone; growths of all clones take turns.
#[derive(Debug, Clone)]
pub struct Hotplug {
    qmp: Qmp,
    accel: Resolved,
    is_shared: bool,
    most: Growth,
    grown: Arc<Mutex<Grown>>,
}

#[derive(Debug)]
struct Grown {
    size: Size,
    modules: u32,
}

/// A processor that QEMU has or could have.
#[derive(Deserialize)]
struct Slot {
    #[serde(rename = "type")]
    kind: String,
    props: Map<String, Value>,
    #[serde(rename = "qom-path")]
    path: Option<String>,
}

pub(crate) fn check(spec: &VmSpec) -> Result<(), GrowthError> {
    let Some(growth) = spec.growth else {
        return Ok(());
    };
    if spec.machine == Machine::Microvm {
        return Err(GrowthError::Machine);
    }
    let fits = (spec.vcpus..=MAX_VCPUS).contains(&growth.max_vcpus)
        && (spec.memory_mib..=MAX_MEMORY_MIB).contains(&growth.max_memory_mib)
        && (1..=MAX_SLOTS).contains(&growth.memory_slots);
    match fits {
        true => Ok(()),
        false => Err(GrowthError::Bounds {
            vcpus: growth.max_vcpus,
            memory_mib: growth.max_memory_mib,
            slots: growth.memory_slots,
        }),
    }
}

/// The value of `-smp`.
pub(crate) fn processors(spec: &VmSpec, accel: Resolved) -> String {
    let vcpus = spec.vcpus;
    match (spec.growth.map(|growth| growth.max_vcpus), accel) {
        (Some(most), Resolved::Tcg) => most.to_string(),
        // A socket for each: Linux takes no processor into use whose package has one already.
        (Some(most), Resolved::Kvm) if most > vcpus => {
            format!("{vcpus},maxcpus={most},sockets={most},cores=1,threads=1")
        }
        _ => vcpus.to_string(),
    }
}

/// What the kernel is told: to start no more processors than the VM is to have, and to keep no 64 MiB for
/// devices that cannot reach memory beyond 4 GiB, because there may be some one day: ours can.
pub(crate) fn kernel_words(spec: &VmSpec, accel: Resolved) -> Vec<String> {
    let Some(growth) = spec.growth else {
        return Vec::new();
    };
    let mut words = Vec::new();
    if accel == Resolved::Tcg && growth.max_vcpus > spec.vcpus {
        words.push(format!("maxcpus={}", spec.vcpus));
    }
    if growth.max_memory_mib > spec.memory_mib {
        words.push("swiotlb=noforce".to_owned());
    }
    words
}

/// The value of `-m`.
pub(crate) fn memory(spec: &VmSpec) -> String {
    let mib = spec.memory_mib;
    match spec.growth.filter(|growth| growth.max_memory_mib > mib) {
        Some(growth) => format!(
            "{mib}M,slots={},maxmem={}M",
            growth.memory_slots, growth.max_memory_mib
        ),
        None => format!("{mib}M"),
    }
}

impl Hotplug {
    pub(crate) fn new(qmp: Qmp, spec: &VmSpec, accel: Resolved, is_shared: bool) -> Option<Self> {
        let size = Size {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
        };
        Some(Self {
            qmp,
            accel,
            is_shared,
            most: spec.growth?,
            grown: Arc::new(Mutex::new(Grown { size, modules: 0 })),
        })
    }

    /// The size that it has.
    pub async fn size(&self) -> Size {
        self.grown.lock().await.size
    }

    /// Grows to at least a size, as far as the VM may; memory in whole blocks of `block_mib`. Answers what
    /// was added, which the guest has to take into use.
    ///
    /// # Errors
    /// [`QmpError`]. What was added before it stays.
    pub async fn grow_to(&self, wanted: Size, block_mib: u32) -> Result<Size, QmpError> {
        let mut grown = self.grown.lock().await;
        let before = grown.size;
        let vcpus = wanted.vcpus.min(self.most.max_vcpus);
        if vcpus > before.vcpus {
            if self.accel == Resolved::Kvm {
                self.add_processors(vcpus - before.vcpus).await?;
            }
            grown.size.vcpus = vcpus;
        }
        let mib = module(before.memory_mib, wanted.memory_mib, self.most, block_mib);
        if mib > 0 && grown.modules < self.most.memory_slots {
            self.add_memory(grown.modules, mib).await?;
            grown.modules += 1;
            grown.size.memory_mib += mib;
        }
        let (size, most) = (grown.size, self.most);
        if size.vcpus < wanted.vcpus || size.memory_mib < wanted.memory_mib {
            warn!(?wanted, ?size, ?most, "the VM does not grow further");
        }
        let added = Size {
            vcpus: size.vcpus - before.vcpus,
            memory_mib: size.memory_mib - before.memory_mib,
        };
        if added.vcpus > 0 || added.memory_mib > 0 {
            info!(?added, ?size, "the VM has grown");
        }
        Ok(added)
    }

    async fn add_processors(&self, count: u32) -> Result<(), QmpError> {
        let reply = self.qmp.ask("query-hotpluggable-cpus", json!({})).await?;
        let slots: Vec<Slot> = serde_json::from_value(reply)
            .map_err(|error| QmpError::Unknown(format!("query-hotpluggable-cpus: {error}")))?;
        // QEMU names the last first.
        let free = slots.into_iter().rev().filter(|slot| slot.path.is_none());
        let mut left = count;
        for slot in free.take(usize::try_from(count).unwrap_or(usize::MAX)) {
            let mut arguments = slot.props;
            arguments.insert("driver".to_owned(), slot.kind.into());
            self.qmp.ask("device_add", arguments.into()).await?;
            left -= 1;
        }
        match left {
            0 => Ok(()),
            _ => Err(QmpError::Unknown(format!(
                "query-hotpluggable-cpus: {left} processors too few"
            ))),
        }
    }

    async fn add_memory(&self, number: u32, mib: u32) -> Result<(), QmpError> {
        let id = format!("module{number}");
        let bytes = u64::from(mib) << 20;
        let backend = match self.is_shared {
            true => {
                json!({"qom-type": "memory-backend-memfd", "id": id, "size": bytes, "share": true})
            }
            false => json!({"qom-type": "memory-backend-ram", "id": id, "size": bytes}),
        };
        self.qmp.ask("object-add", backend).await?;
        let device = json!({"driver": "pc-dimm", "id": format!("dimm{number}"), "memdev": id});
        let plugged = self.qmp.ask("device_add", device).await;
        if plugged.is_err() {
            // Its memory would be held for nothing.
            let _ = self.qmp.ask("object-del", json!({ "id": id })).await;
        }
        plugged.map(drop)
    }
}

/// How large the next memory module is: whole blocks, and no more than the VM may have.
fn module(now: u32, wanted: u32, most: Growth, block_mib: u32) -> u32 {
    // The guest says how large they are.
    let block = block_mib.clamp(MIN_BLOCK_MIB, MAX_BLOCK_MIB);
    let missing = wanted.min(most.max_memory_mib).saturating_sub(now);
    let room = most.max_memory_mib.saturating_sub(now) / block;
    missing.div_ceil(block).min(room).saturating_mul(block)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn growing(max_vcpus: u32, max_memory_mib: u32) -> VmSpec {
        VmSpec {
            growth: Some(Growth {
                max_vcpus,
                max_memory_mib,
                memory_slots: 10,
            }),
            ..VmSpec::new("vm", Path::new("/k"), Path::new("/"))
        }
    }

    #[test]
    fn memory_comes_in_blocks_and_not_beyond_the_most() {
        let most = growing(1, 1000).growth.unwrap();
        assert_eq!(module(512, 512, most, 128), 0);
        assert_eq!(module(512, 513, most, 128), 128);
        assert_eq!(module(512, 900, most, 128), 384);
        assert_eq!(module(512, 5000, most, 128), 384);
        assert_eq!(module(512, 600, most, 2048), 0);
        assert_eq!(module(512, 600, most, 0), 128);
        assert_eq!(module(5000, 600, most, 128), 0);
        let large = growing(1, 100_000).growth.unwrap();
        assert_eq!(module(512, 513, large, u32::MAX), MAX_BLOCK_MIB);
    }

    #[test]
    fn bounds_hold_at_both_ends() {
        assert_eq!(check(&growing(1, 256)), Ok(()));
        for (vcpus, mib) in [
            (0, 256),
            (MAX_VCPUS + 1, 256),
            (1, 255),
            (1, MAX_MEMORY_MIB + 1),
        ] {
            let refused = check(&growing(vcpus, mib));
            assert!(matches!(refused, Err(GrowthError::Bounds { .. })));
        }
        let microvm = VmSpec {
            machine: Machine::Microvm,
            ..growing(2, 512)
        };
        assert_eq!(check(&microvm), Err(GrowthError::Machine));
    }

    #[test]
    fn processors_that_come_later_are_told_to_who_has_to_know() {
        let spec = growing(4, 4096);
        assert_eq!(
            processors(&spec, Resolved::Kvm),
            "1,maxcpus=4,sockets=4,cores=1,threads=1"
        );
        assert_eq!(kernel_words(&spec, Resolved::Kvm), ["swiotlb=noforce"]);
        assert_eq!(processors(&spec, Resolved::Tcg), "4");
        assert_eq!(
            kernel_words(&spec, Resolved::Tcg),
            ["maxcpus=1", "swiotlb=noforce"]
        );
        assert_eq!(memory(&spec), "256M,slots=10,maxmem=4096M");
        let still = growing(1, 256);
        for accel in [Resolved::Kvm, Resolved::Tcg] {
            assert_eq!(processors(&still, accel), "1");
            assert!(kernel_words(&still, accel).is_empty());
        }
        assert_eq!(memory(&still), "256M");
    }
}
