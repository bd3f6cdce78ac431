//! The key or table that was perhaps meant by a misspelt one.

use super::tables;

/// The key that was perhaps meant: one of the same table, or the same key of another.
pub(in crate::config) fn key(path: &str) -> Option<String> {
    let (table_of, name) = path.rsplit_once('.').unwrap_or(("", path));
    let of_table = tables().find(|(known, _)| {
        path.strip_prefix(known.as_str())
            .is_some_and(|r| r.starts_with('.'))
    });
    if let Some((known, keys)) = of_table {
        let word = path.get(known.len() + 1..).unwrap_or(name);
        let names: Vec<&str> = keys.names().collect();
        if let Some(near) = nearest(word, &names) {
            return Some(format!("{known}.{near}"));
        }
    }
    let elsewhere = tables().find(|(_, keys)| keys.names().any(|known| known == name));
    if let Some((known, _)) = elsewhere {
        return Some(format!("{known}.{name}"));
    }
    // A table's own name is judged by itself.
    table_of.is_empty().then(|| table(path)).flatten()
}

/// The table that was perhaps meant.
pub(in crate::config) fn table(path: &str) -> Option<String> {
    let names: Vec<String> = tables().map(|(known, _)| known).collect();
    let candidates: Vec<&str> = names.iter().map(String::as_str).collect();
    nearest(path, &candidates)
}

/// The candidate that differs from `word` by the fewest edits, if they are few.
pub(in crate::config) fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    /// More edits than this are another word, not a misspelt one.
    const MOST_EDITS: usize = 3;
    /// No key is longer; the work grows with the square.
    const MAX_WORD: usize = 128;
    if word.len() > MAX_WORD {
        return None;
    }
    let (edits, best) = candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .min_by_key(|(edits, _)| *edits)?;
    (edits <= MOST_EDITS && edits < word.len()).then(|| best.to_owned())
}

/// Levenshtein's distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_gets_the_nearest_of_its_table() {
        let near = |path: &str| key(path).unwrap_or_default();
        assert_eq!(
            near("hypervisor.qemu.default_vcpu"),
            "hypervisor.qemu.default_vcpus"
        );
        assert_eq!(near("relay.alow"), "relay.allow");
        assert_eq!(near("relays.allow"), "relay.allow");
        assert_eq!(
            near("runtime.default_memory"),
            "hypervisor.qemu.default_memory"
        );
        assert_eq!(near("zzzzzzzz"), "");
        assert_eq!(near("runtime.zzzzzzzz"), "");
        assert_eq!(near("relays"), "relay");
        assert_eq!(table("hypervisor.quemu").unwrap(), "hypervisor.qemu");
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
