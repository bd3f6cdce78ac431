//! A directory of keys that is there whole or not at all.
//!
//! Its configuration is written first, under a name by which nobody starts a broker, and takes its own
//! name when all else is on the disk. So what a kill leaves can be told from keys that are in use, and
//! the next run may begin anew in its place. Files stay in the directory itself throughout: it may be
//! a mounted volume, or one beside which nothing may be made.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, bail};
use zeroize::Zeroizing;

/// What is behind the configuration's name until the directory is whole.
const UNFINISHED: &str = ".unfinished";
/// Files that are named in an error.
const NAMED: usize = 5;
pub(super) const PRIVATE: u32 = 0o600;
pub(super) const PUBLIC: u32 = 0o644;

/// A file to be made.
pub(super) struct Made {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    pub(super) text: Zeroizing<String>,
}

/// Makes the files in a directory that is absent or empty, or that an earlier run did not finish. The
/// first file is the one that makes it whole.
///
/// # Errors
/// Says what is in the directory, or which file cannot be made; then the directory is as it was.
pub(super) fn make(dir: &Path, files: &[Made]) -> anyhow::Result<()> {
    let absent = !dir.exists();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make {}", dir.display()))?;
    let held = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    if let Err(error) = held.try_lock() {
        let place = dir.display();
        bail!("{place} cannot be locked, as while another `kbs init` is at work in it: {error}");
    }
    clear(dir, files)?;
    let made = fill(dir, &held, files);
    if made.is_err() {
        remove(dir, files);
        if absent {
            drop(fs::remove_dir(dir));
        }
    }
    made
}

/// Removes what an earlier run left, and nothing else.
fn clear(dir: &Path, files: &[Made]) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    if names.is_empty() {
        return Ok(());
    }
    names.sort();
    let Some(whole) = files.first().map(|first| first.name) else {
        return Ok(());
    };
    let place = dir.display();
    if names.iter().any(|name| name == whole) {
        let file = dir.join(whole);
        bail!(
            "{place} is a broker's already: `kbs serve --config {}` starts it, and keys are never \
             overwritten",
            file.display()
        );
    }
    let unfinished = format!("{whole}{UNFINISHED}");
    let ours = |name: &&String| **name == unfinished || files.iter().any(|one| one.name == **name);
    if !names.contains(&unfinished) {
        bail!(
            "{place} is not empty, and has no {whole}: it holds {}. Keys are never overwritten: name \
             another directory, or empty this one if nothing needs them",
            listed(&names)
        );
    }
    let others: Vec<String> = names.iter().filter(|name| !ours(name)).cloned().collect();
    if !others.is_empty() {
        bail!(
            "{place} is what a `kbs init` left that did not finish, and holds {} beside: move that \
             elsewhere and try again",
            listed(&others)
        );
    }
    remove(dir, files);
    Ok(())
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| name.escape_default().to_string())
        .collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn fill(dir: &Path, held: &File, files: &[Made]) -> anyhow::Result<()> {
    let Some((whole, others)) = files.split_first() else {
        return Ok(());
    };
    let unfinished = format!("{}{UNFINISHED}", whole.name);
    write(dir, &unfinished, whole)?;
    // It has to be there before any key is.
    held.sync_all().context("write the directory")?;
    for one in others {
        write(dir, one.name, one)?;
    }
    let name = dir.join(whole.name);
    fs::rename(dir.join(unfinished), &name)
        .and_then(|()| held.sync_all())
        .with_context(|| format!("write {}", name.display()))
}

/// The mark goes last: without it, the rest would pass for keys that are in use.
fn remove(dir: &Path, files: &[Made]) {
    for one in files {
        drop(fs::remove_file(dir.join(one.name)));
    }
    if let Some(whole) = files.first() {
        drop(fs::remove_file(
            dir.join(format!("{}{UNFINISHED}", whole.name)),
        ));
    }
}

fn write(dir: &Path, name: &str, made: &Made) -> anyhow::Result<()> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(made.mode)
            .open(&path)?;
        file.write_all(made.text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&'static str]) -> Vec<Made> {
        let made = |name: &&'static str| Made {
            name,
            mode: PRIVATE,
            text: Zeroizing::new((*name).to_owned()),
        };
        names.iter().map(made).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_fails_leaves_nothing_and_is_made_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("deep/broker");
        let broken = files(&["a.toml", "a.key", "absent/b.key"]);
        let error = make(&place, &broken).unwrap_err().to_string();
        assert!(error.contains("b.key"), "{error}");
        assert!(!place.exists());
        // An empty directory that was there stays.
        fs::create_dir(&place).unwrap();
        make(&place, &broken).unwrap_err();
        assert_eq!(names(&place), [""; 0]);
        make(&place, &files(&["a.toml", "a.key"])).unwrap();
        assert_eq!(names(&place), ["a.key", "a.toml"]);
    }

    #[test]
    fn only_what_a_run_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (place, all) = (dir.path(), files(&["a.toml", "a.key", "b.key"]));
        let put = |name: &str| fs::write(place.join(name), "old").unwrap();
        put("a.toml.unfinished");
        put("a.key");
        put("mine");
        let error = make(place, &all).unwrap_err().to_string();
        assert!(
            error.contains("did not finish") && error.contains("mine"),
            "{error}"
        );
        assert_eq!(names(place), ["a.key", "a.toml.unfinished", "mine"]);
        fs::remove_file(place.join("mine")).unwrap();
        make(place, &all).unwrap();
        assert_eq!(names(place), ["a.key", "a.toml", "b.key"]);
        assert_eq!(fs::read_to_string(place.join("a.key")).unwrap(), "a.key");
        // Whole: it is a broker's. Without its configuration: keys that may be in use.
        let error = make(place, &all).unwrap_err().to_string();
        assert!(error.contains("kbs serve --config"), "{error}");
        fs::remove_file(place.join("a.toml")).unwrap();
        let error = make(place, &all).unwrap_err().to_string();
        assert!(
            error.contains("never overwritten") && error.contains("b.key"),
            "{error}"
        );
        assert_eq!(names(place), ["a.key", "b.key"]);
    }

    #[test]
    fn two_runs_at_once_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::open(dir.path()).unwrap();
        held.lock().unwrap();
        let error = make(dir.path(), &files(&["a.toml"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("another"), "{error}");
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
