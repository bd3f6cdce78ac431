//! What the host shows of a pod: processes, mounts, sockets, files, and whether a secret is in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process whose command line names our directory, or who descends from one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line, words joined by blanks.
    pub command: String,
}

/// Processes that belong to `base`: it is in their command line or working directory, or an
/// ancestor of theirs has it. The test itself and its ancestors are never among them.
#[must_use]
pub fn processes_of(base: &Path) -> BTreeSet<Process> {
    let all = table();
    let own = ancestors(&all, i32::try_from(std::process::id()).unwrap_or(0));
    let mut found: BTreeSet<i32> = all
        .iter()
        .filter(|p| !own.contains(&p.pid) && p.names(base))
        .map(|p| p.pid)
        .collect();
    loop {
        let more: Vec<_> = all
            .iter()
            .filter(|p| found.contains(&p.parent) && !found.contains(&p.pid))
            .map(|p| p.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    all.into_iter()
        .filter(|p| found.contains(&p.pid) && p.state != 'Z')
        .map(|p| Process {
            pid: p.pid,
            command: p.command,
        })
        .collect()
}

/// Ends what [`processes_of`] finds, children included.
pub fn end_processes_of(base: &Path) {
    for process in processes_of(base) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    let since = Instant::now();
    while !processes_of(base).is_empty() && since.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Row {
    pid: i32,
    parent: i32,
    state: char,
    command: String,
    dir: PathBuf,
}

impl Row {
    fn read(pid: i32) -> Option<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let bytes = fs::read(proc.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
        let dir = fs::read_link(proc.join("cwd")).unwrap_or_default();
        Some(Self {
            pid,
            parent,
            state,
            command,
            dir,
        })
    }

    fn names(&self, base: &Path) -> bool {
        self.dir.starts_with(base) || self.command.contains(&*base.to_string_lossy())
    }
}

fn table() -> Vec<Row> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Row::read)
        .collect()
}

fn ancestors(all: &[Row], mut pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    while pid > 0 && found.insert(pid) {
        pid = all.iter().find(|p| p.pid == pid).map_or(0, |p| p.parent);
    }
    found
}

/// Mount points at or below `base`, deepest first.
#[must_use]
pub fn mounts_below(base: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(base))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// Detaches every mount below `base`.
pub fn unmount_below(base: &Path) {
    for path in mounts_below(base) {
        let _ = umount2(&path, MntFlags::MNT_DETACH);
    }
}

/// What a pod can leave behind, for comparing before and after.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes of the test's directory, without the daemons that are meant to run.
    pub processes: BTreeSet<Process>,
    /// Mounts below it.
    pub mounts: BTreeSet<PathBuf>,
    /// Entries of the directories in which shims keep their state, and the shims' sockets.
    pub files: BTreeSet<PathBuf>,
}

/// Takes stock: processes and mounts of `base`, entries of `dirs`, and those of `sockets` that exist.
#[must_use]
pub fn leftovers(base: &Path, dirs: &[PathBuf], sockets: &[PathBuf]) -> Leftovers {
    let daemons = ["containerd --config", "docker-registry serve", "/kbs "];
    let processes = processes_of(base)
        .into_iter()
        .filter(|p| !daemons.iter().any(|name| p.command.contains(name)))
        .collect();
    let mut files: BTreeSet<_> = sockets
        .iter()
        .filter(|path| path.exists())
        .cloned()
        .collect();
    for dir in dirs {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        files.extend(entries.map(|entry| entry.path()));
    }
    Leftovers {
        processes,
        mounts: mounts_below(base).into_iter().collect(),
        files,
    }
}

impl Leftovers {
    /// What is here now and was not `before`; empty when nothing stayed behind.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let processes = self.processes.difference(&before.processes);
        let mounts = self.mounts.difference(&before.mounts);
        let files = self.files.difference(&before.files);
        processes
            .map(|p| format!("process {} {}", p.pid, p.command))
            .chain(mounts.map(|m| format!("mount {}", m.display())))
            .chain(files.map(|f| format!("file {}", f.display())))
            .collect()
    }
}

/// The files without a name that the processes of `base` have open in a directory.
#[must_use]
pub fn nameless(base: &Path, directory: &Path) -> Vec<fs::File> {
    let is_in = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|path| path.starts_with(directory));
    processes_of(base)
        .into_iter()
        .filter_map(|process| fs::read_dir(format!("/proc/{}/fd", process.pid)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(is_in)
        .filter_map(|fd| fs::File::options().read(true).write(true).open(fd).ok())
        .collect()
}

/// Files at or below `dirs` that contain one of `needles`. Symbolic links are not followed.
///
/// # Errors
/// When a directory cannot be listed. A file that vanishes meanwhile is none.
pub fn files_with(dirs: &[PathBuf], needles: &[&[u8]]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = dirs.to_vec();
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            open.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        } else if meta.is_file() {
            let Ok(bytes) = fs::read(&path) else { continue };
            if needles.iter().any(|needle| contains(&bytes, needle)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// KiB of memory that a process has for itself. Pages of files are none of it: the kernel takes those of an idle process
/// away and brings them back as it likes, so that a process may seem to grow which does not.
///
/// # Errors
/// When there is no such process.
pub fn own_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let own = |line: &str| {
        let kib = line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?;
        kib.trim().parse().ok()
    };
    { status.lines().find_map(own) }.context("the kernel does not say how much memory it has")
}

/// Whether `needle`, which is not empty, stands in `bytes`.
#[must_use]
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    // The first byte decides most positions; a window comparison of every position is too slow for
    // a debug build over a whole image store.
    let Some((first, rest)) = needle.split_first() else {
        return false;
    };
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| b == first) {
        let after = from + at + 1;
        if bytes[after..].starts_with(rest) {
            return true;
        }
        from = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_needle_is_found_wherever_it_stands() {
        assert!(contains(b"aab", b"ab"));
        assert!(contains(b"ab", b"ab"));
        assert!(!contains(b"aaa", b"ab"));
        assert!(!contains(b"", b"a"));
    }

    #[test]
    fn a_child_with_our_directory_in_its_words_is_ours_and_we_are_not() -> Result<()> {
        let state = crate::State::new()?;
        // It speaks first: between exec's new memory and its words, a process shows none.
        let mut child = Command::new("sh")
            .args(["-c", "echo here; read end", "sh"])
            .arg(state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = [0; 4];
        child
            .stdout
            .take()
            .context("no output")?
            .read_exact(&mut said)?;
        let pid = i32::try_from(child.id())?;
        let found = processes_of(state.path());
        assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}
