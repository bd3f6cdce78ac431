//! What is taken of a guest's page. A label's value becomes a series in the node's database, and stays there: so
//! nothing in it is a guest's choice but names of disks and interfaces, which have a form, and of which there are
//! only so many in a pod's life.

use std::collections::BTreeSet;

use agent_api::metric;

use super::Sample;
use super::known::{self, Whose};
use super::parse::{Fault, Limits, parse};

const ITEM: &str = "item";
/// The label of all processors together, and the number behind the highest one.
const TOTAL: &str = "total";
const MAX_CPUS: u16 = 1024;
/// Letters of a disk's or an interface's name, and digits at its end.
const MAX_LETTERS: usize = 10;
const MAX_DIGITS: usize = 5;
/// Disks of a pod's life, and interfaces: twice what an agent tells at a time.
const MAX_NAMES: usize = 32;

/// Families of a row for each thing: the label that names it, and the items.
const TABLES: &[(&str, &str, &[&str])] = &[
    ("kata_guest_cpu_time", "cpu", metric::PROCESSOR),
    ("kata_guest_netdev_stat", "interface", metric::INTERFACE),
    ("kata_guest_diskstat", "disk", metric::DISK),
];

/// Whether an item is one of a family that has no other label; `None` where the family has no items.
fn is_item(family: &str, item: &str) -> Option<bool> {
    Some(match family {
        "kata_agent_proc_stat" => metric::STAT.iter().any(|(name, _)| *name == item),
        "kata_agent_proc_status" => {
            let mut names = metric::STATUS.iter();
            names.any(|name| name.to_ascii_lowercase() == item)
        }
        "kata_agent_io_stat" => metric::IO.contains(&item),
        "kata_guest_load" => metric::LOAD.contains(&item),
        "kata_guest_tasks" => metric::TASKS.contains(&item),
        "kata_guest_meminfo" => metric::MEMORY.iter().any(|(_, name)| *name == item),
        "kata_guest_vm_stat" => metric::VM.contains(&item),
        _ => return None,
    })
}

/// What was taken of one guest so far.
#[derive(Debug, Default)]
pub struct Guests {
    disks: BTreeSet<String>,
    interfaces: BTreeSet<String>,
}

/// What becomes of a sample.
enum Verdict {
    Taken,
    /// A thing whose name is not taken: the guest's owner may call things as he likes.
    LeftOut,
    Refused,
}

impl Guests {
    /// The samples of a guest's page, and how many were left out for the names in them.
    ///
    /// # Errors
    /// As [`super::parse`], and what is not a guest's to tell.
    pub fn take(&mut self, text: &str) -> Result<(Vec<Sample>, usize), Fault> {
        let samples = parse(text, &Limits::GUEST)?;
        let mut taken = Vec::with_capacity(samples.len());
        let mut left_out = 0;
        for (index, sample) in samples.into_iter().enumerate() {
            match self.judge(&sample) {
                Verdict::Taken => taken.push(sample),
                Verdict::LeftOut => left_out += 1,
                Verdict::Refused => {
                    return Err(Fault::Line {
                        line: index + 1,
                        what: "a sample that is not a guest's (comments are not counted)",
                    });
                }
            }
        }
        Ok((taken, left_out))
    }

    fn judge(&mut self, sample: &Sample) -> Verdict {
        let name = sample.name.as_str();
        let item = sample.label(ITEM);
        if let Some((_, label, items)) = TABLES.iter().find(|(family, ..)| *family == name) {
            let is_one_of_them = item.is_some_and(|item| items.contains(&item));
            return match sample.label(label) {
                Some(thing) if is_one_of_them && sample.labels.len() == 2 => {
                    self.judge_thing(label, thing)
                }
                _ => Verdict::Refused,
            };
        }
        let is_known = match is_item(name, item.unwrap_or_default()) {
            Some(is_one_of_them) => sample.labels.len() == 1 && is_one_of_them,
            None => {
                let family = known::of_sample(name);
                sample.labels.is_empty() && family.is_some_and(|it| it.whose == Whose::Guest)
            }
        };
        if is_known {
            Verdict::Taken
        } else {
            Verdict::Refused
        }
    }

    fn judge_thing(&mut self, label: &str, name: &str) -> Verdict {
        let names = match label {
            "disk" => &mut self.disks,
            "interface" => &mut self.interfaces,
            _ if is_cpu(name) => return Verdict::Taken,
            _ => return Verdict::Refused,
        };
        if names.contains(name) {
            return Verdict::Taken;
        }
        if names.len() >= MAX_NAMES || !is_thing(name) {
            return Verdict::LeftOut;
        }
        names.insert(name.to_owned());
        Verdict::Taken
    }
}

fn is_cpu(name: &str) -> bool {
    // As a number is written, so that none has two names.
    let number = name.parse::<u16>().ok();
    name == TOTAL || number.is_some_and(|it| it < MAX_CPUS && it.to_string() == name)
}

/// As the kernel and network plugins call things: `vda1`, `dm-0`, `nvme0n1`, `eth0`, `lo`.
fn is_thing(name: &str) -> bool {
    let stem = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let of_stem = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    stem.starts_with(|first: char| first.is_ascii_lowercase())
        && stem.len() <= MAX_LETTERS
        && name.len() - stem.len() <= MAX_DIGITS
        && stem.bytes().all(of_stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_guest(text: &str) -> Result<(Vec<Sample>, usize), Fault> {
        Guests::default().take(text)
    }

    #[test]
    fn a_guest_speaks_for_itself_alone() {
        for page in [
            "kata_guest_load{item=\"load1\"} 1\n",
            "kata_agent_threads 3\n",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} 1\n",
            "kata_guest_cpu_time{cpu=\"7\",item=\"user\"} 1\n",
            "kata_guest_diskstat{disk=\"nvme0n1\",item=\"reads\"} 1\n",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"recv_bytes\"} 1\n",
            // What it calls a family's type is not looked at.
            "# TYPE kata_guest_load histogram\nkata_guest_load{item=\"load5\"} 1\n",
        ] {
            let (samples, left_out) = of_guest(page).unwrap();
            assert_eq!((samples.len(), left_out), (1, 0), "{page}");
        }
        for page in [
            "kata_shim_threads 1",
            "kata_hypervisor_fds 1",
            "cloister_node_starts_total 1",
            "up 1",
            "kata_guest_load{sandbox_id=\"other\"} 1",
            "kata_guest_load{item=\"load1\",cri_name=\"other\"} 1",
            "kata_guest_load{item=\"<script>\"} 1",
            "kata_guest_load{item=\"load2\"} 1",
            "kata_guest_load{item=\"vmpeak\"} 1",
            "kata_guest_load{cpu=\"0\"} 1",
            "kata_guest_load 1",
            "kata_guest_load{item=\"load1\"} 1 99",
            "kata_agent_threads{item=\"x\"} 1",
            "kata_guest_cpu_time{item=\"user\"} 1",
            "kata_guest_cpu_time{cpu=\"00\",item=\"user\"} 1",
            "kata_guest_cpu_time{cpu=\"1024\",item=\"user\"} 1",
            "kata_guest_cpu_time{cpu=\"x\",item=\"user\"} 1",
            "kata_guest_diskstat{disk=\"vda\",item=\"user\"} 1",
        ] {
            assert!(of_guest(page).is_err(), "{page}");
        }
    }

    #[test]
    fn names_have_a_form_and_there_are_only_so_many_in_a_pods_life() {
        let mut guest = Guests::default();
        let page = |name: &str| format!("kata_guest_diskstat{{disk=\"{name}\",item=\"reads\"}} 1");
        for odd in ["a secret that leaks", "AAAA", "x/y", "vda123456", "-", "0"] {
            assert_eq!(guest.take(&page(odd)).unwrap(), (Vec::new(), 1), "{odd}");
        }
        let taken = (0..10 * MAX_NAMES).filter(|number| {
            let (samples, left_out) = guest.take(&page(&format!("vd{number}"))).unwrap();
            assert_eq!(samples.len() + left_out, 1);
            left_out == 0
        });
        assert_eq!(taken.count(), MAX_NAMES);
        // Those that are known go on.
        assert_eq!(guest.take(&page("vd0")).unwrap().1, 0);
        assert!(guest.interfaces.is_empty());
    }

    #[test]
    fn cuts_and_noise_never_panic() {
        let page = "kata_guest_diskstat{disk=\"vda\",item=\"reads\"} 0.5\n";
        for end in 0..page.len() {
            let _ = of_guest(&page[..end]);
            let mut noisy = page.as_bytes().to_vec();
            noisy[end] ^= 0x2f;
            let _ = of_guest(&String::from_utf8_lossy(&noisy));
        }
    }
}
