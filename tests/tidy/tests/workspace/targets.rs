//! What cargo builds for the tests: each program that is made for them costs a link, and each library that
//! is searched for examples a compilation, so there is one where there is something to run, and only there.

use std::path::{Path, PathBuf};

use tidy::{graph, tree};

/// The sources that make up a target: all beside and below its root file, without the roots of others.
fn sources(root: &Path, roots: &[PathBuf], all: &[(PathBuf, String)]) -> Vec<String> {
    let alone = roots.iter().filter(|one| one.parent() == root.parent());
    let alone = alone.count() > 1 && !root.ends_with("lib.rs");
    let belongs = |file: &Path| {
        let below = !alone && file.starts_with(root.parent().unwrap());
        file == root || below && !roots.iter().any(|one| one == file)
    };
    let texts = all.iter().filter(|(file, _)| belongs(file));
    texts.map(|(_, text)| text.clone()).collect()
}

#[test]
fn a_target_is_built_for_the_tests_where_it_has_some() {
    let all = tree::rust_files().unwrap();
    let targets = graph::targets().unwrap();
    let roots: Vec<_> = targets.iter().map(|one| one.root.clone()).collect();
    for target in &targets {
        let texts = sources(&target.root, &roots, &all);
        assert!(!texts.is_empty(), "{}", target.root.display());
        let has = texts
            .iter()
            .any(|text| text.contains("#[test]") || text.contains("#[tokio::test"));
        let written = if has { "has tests" } else { "has no test" };
        assert_eq!(target.test, has, "{} {written}", target.root.display());
    }
}

#[test]
fn no_example_is_written_that_is_not_run() {
    assert!(graph::targets().unwrap().iter().all(|one| !one.doctest));
    for (file, text) in tree::rust_files().unwrap() {
        let mut inside = false;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let comment = line.strip_prefix("///").or(line.strip_prefix("//!"));
            let Some(kind) = comment.and_then(|text| text.trim_start().strip_prefix("```")) else {
                continue;
            };
            inside = !inside;
            assert!(
                !inside || kind == "text",
                "{}:{}: write it as a test, or as ```text",
                file.display(),
                number + 1
            );
        }
    }
}
