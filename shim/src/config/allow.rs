//! What the operator lets a pod choose: the names of annotations by regular expressions, the paths
//! that they may name by patterns as a shell has them. Both as Kata reads them.

use std::path::{Component, Path};

use regex_lite::{Regex, RegexBuilder};

/// Entries of one list, and bytes of one entry.
const MAX_ENTRIES: usize = 128;
const MAX_ENTRY: usize = 256;
/// Bytes that a compiled expression may take.
const MAX_COMPILED: usize = 256 * 1024;

/// Whether the expressions are such.
///
/// # Errors
/// Names the first that is not.
pub(super) fn check_patterns(patterns: &[String]) -> Result<(), String> {
    check_sizes(patterns)?;
    let mut compiled = patterns.iter().map(|pattern| compile(pattern));
    compiled.try_for_each(|result| result.map(drop))
}

/// Whether the patterns of paths are such.
///
/// # Errors
/// Names the first that is not.
pub(super) fn check_globs(globs: &[String]) -> Result<(), String> {
    check_sizes(globs)
}

/// Whether an annotation of the hypervisor's family is enabled. As for Kata an expression need not
/// match the whole name: `kernel` enables `kernel_params` too.
pub(super) fn enables(patterns: &[String], name: &str) -> bool {
    let mut compiled = patterns.iter().filter_map(|pattern| compile(pattern).ok());
    compiled.any(|pattern| pattern.is_match(name))
}

/// Whether an annotation of another family is enabled, which is named with its family. Kata asks
/// nobody there, so no list of Kata's means it: the expression must match all of the name.
pub(super) fn enables_whole(patterns: &[String], name: &str) -> bool {
    let mut whole = patterns
        .iter()
        .filter_map(|pattern| compile(&format!("^(?:{pattern})$")).ok());
    whole.any(|pattern| pattern.is_match(name))
}

/// Whether a path matches one of the patterns.
pub(super) fn admits(globs: &[String], path: &Path) -> bool {
    // `/usr/bin/*` must not admit /usr/bin/.. and what is behind it.
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let Some(text) = path.to_str() else {
        return false;
    };
    path.is_absolute()
        && path.components().all(plain)
        && globs.iter().any(|glob| matches(glob, text))
}

fn check_sizes(list: &[String]) -> Result<(), String> {
    if list.len() > MAX_ENTRIES {
        return Err(format!("has more than {MAX_ENTRIES} entries"));
    }
    match list.iter().find(|entry| entry.len() > MAX_ENTRY) {
        Some(_) => Err(format!("has an entry of more than {MAX_ENTRY} bytes")),
        None => Ok(()),
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    // An empty one would match every name.
    if pattern.is_empty() {
        return Err("an empty entry enables nothing: remove it".to_owned());
    }
    RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| format!("{pattern:?} is not a regular expression: {error}"))
}

/// Part by part: a `*` does not reach over a slash.
fn matches(glob: &str, path: &str) -> bool {
    let (mut globs, mut parts) = (glob.split('/'), path.split('/'));
    loop {
        match (globs.next(), parts.next()) {
            (None, None) => return true,
            (Some(glob), Some(part)) if matches_part(glob.as_bytes(), part.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// `*`, `?` and `[a-z]`; a backslash takes the next character as it is.
fn matches_part(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // Where the last star stood, and what it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if glob.get(g) == Some(&b'*') {
            star = Some((g + 1, t));
            g += 1;
        } else if let Some(used) = matches_one(&glob[g..], text[t]) {
            g += used;
            t += 1;
        } else if let Some((after, taken)) = star {
            g = after;
            t = taken + 1;
            star = Some((after, t));
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

/// How many bytes of the pattern stand for this one byte of the text, if they do.
fn matches_one(glob: &[u8], byte: u8) -> Option<usize> {
    match glob {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', set @ ..] => {
            let end = set.iter().skip(1).position(|b| *b == b']')? + 1;
            let (not, members) = match set.get(..end)? {
                [b'^' | b'!', members @ ..] => (true, members),
                members => (false, members),
            };
            (in_set(members, byte) != not).then_some(end + 2)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

fn in_set(members: &[u8], byte: u8) -> bool {
    match members {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn expressions_are_found_anywhere_in_a_name_of_the_hypervisor() {
        assert!(enables(&list(&["default_.*"]), "default_vcpus"));
        assert!(enables(&list(&["kernel"]), "kernel_params"));
        assert!(!enables(&list(&["^kernel$"]), "kernel_params"));
        assert!(!enables(&list(&[]), "default_vcpus"));
    }

    #[test]
    fn names_of_other_families_are_matched_whole() {
        assert!(enables_whole(
            &list(&["runtime.vfio_mode"]),
            "runtime.vfio_mode"
        ));
        assert!(enables_whole(&list(&[".*"]), "runtime.vfio_mode"));
        assert!(!enables_whole(&list(&["vfio_mode"]), "runtime.vfio_mode"));
        assert!(!enables_whole(&list(&["a|runtime"]), "runtime.vfio_mode"));
    }

    #[test]
    fn what_is_no_expression_is_named() {
        assert!(check_patterns(&list(&["default_.*", "a|b"])).is_ok());
        for bad in ["(", "", "a{9999999}"] {
            assert!(check_patterns(&list(&[bad])).is_err(), "{bad}");
        }
        assert!(check_patterns(&vec!["a".to_owned(); MAX_ENTRIES + 1]).is_err());
    }

    #[test]
    fn a_pattern_of_paths_does_not_reach_over_a_slash() {
        let admitted = |glob: &str, path: &str| admits(&list(&[glob]), Path::new(path));
        assert!(admitted("/usr/bin/qemu-*", "/usr/bin/qemu-system-x86_64"));
        assert!(admitted("/usr/*/virtiofs[a-d]", "/usr/libexec/virtiofsd"));
        assert!(admitted("/a/?\\*[^x]", "/a/b*c"));
        assert!(admitted("/a/*b*c", "/a/xbybzc"));
        for (glob, path) in [
            ("/usr/*", "/usr/bin/qemu"),
            ("/usr/bin/*", "/usr/bin/../../tmp/evil"),
            ("/usr/bin/*", "/usr/bin/.."),
            ("*", "qemu"),
            ("/a/[^x]", "/a/x"),
            ("/a/[", "/a/["),
            ("/a", "/a/b"),
            ("", "/a"),
        ] {
            assert!(!admitted(glob, path), "{glob} admits {path}");
        }
    }
}
