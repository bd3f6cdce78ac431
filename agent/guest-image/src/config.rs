//! Kernel configuration: fragments, and whether a configuration says what a fragment asked for.
//! The kernel's own tools drop an option whose dependencies are missing without a word, which for
//! a guest means a missing ability or a missing protection.

use std::collections::BTreeMap;

/// What a line of a configuration sets: an option to a value, or, with `n`, to nothing.
fn setting(line: &str) -> Option<(&str, &str)> {
    if let Some(off) = line.strip_prefix("# CONFIG_") {
        return off.strip_suffix(" is not set").map(|name| (name, "n"));
    }
    line.strip_prefix("CONFIG_")?.split_once('=')
}

/// The lines of a fragment that are no comment, setting or blank, or set an option a second time:
/// mistakes of whoever wrote it.
#[must_use]
pub fn mistakes(fragment: &str) -> Vec<String> {
    let mut seen = BTreeMap::new();
    let mut wrong = Vec::new();
    for line in fragment.lines() {
        let known = setting(line);
        let blank = line.is_empty() || (line.starts_with('#') && !line.contains("CONFIG_"));
        let twice = known.is_some_and(|(name, _)| seen.insert(name, line).is_some());
        if twice || (known.is_none() && !blank) {
            wrong.push(line.to_owned());
        }
    }
    wrong
}

/// The settings of a fragment that a finished configuration does not have.
#[must_use]
pub fn not_taken(fragment: &str, config: &str) -> Vec<String> {
    let have: BTreeMap<_, _> = config.lines().filter_map(setting).collect();
    fragment
        .lines()
        .filter_map(setting)
        .filter(|(name, value)| have.get(name).copied().unwrap_or("n") != *value)
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_did_not_take_is_named() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\n\
                        CONFIG_E=\"x\"\n";
        let config = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\nCONFIG_E=\"x\"\n";
        assert_eq!(not_taken(fragment, config), ["B=y", "C=n"]);
    }

    #[test]
    fn a_line_that_the_kernel_would_pass_over_is_a_mistake() {
        let fragment = "# fine\n\nCONFIG_A=y\nCONFG_B=y\n#CONFIG_C is not set\nCONFIG_A=n\n";
        assert_eq!(
            mistakes(fragment),
            ["CONFG_B=y", "#CONFIG_C is not set", "CONFIG_A=n"]
        );
    }

    #[test]
    fn the_own_fragment_has_no_mistakes() {
        assert_eq!(mistakes(crate::compile::FRAGMENT), Vec::<String>::new());
    }
}
