//! What must not stand in the tree, and what must. The forbidden words are put together at run
//! time, so that this file does not trip over itself.

use std::path::Path;

use tidy::{source, tree};

/// Places of one machine or one build farm.
fn machine_paths() -> Vec<String> {
    let mut paths: Vec<String> = ["main", "steering", ".library", ".mirror", "shared"]
        .iter()
        .map(|end| format!("/{}/{end}", "work"))
        .collect();
    paths.push(format!("/{}/", "farm"));
    paths.push(format!("/{}/{}", "tmp", "bash_jobs"));
    paths.push(format!("/{}/w/", "tmp"));
    paths
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let mut broken = Vec::new();
    for file in tree::files().unwrap() {
        let Ok(text) = tree::read(&file) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if machine_paths()
                .iter()
                .any(|path| line.contains(path.as_str()))
            {
                broken.push(format!("{}:{}: {line}", file.display(), number + 1));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    let in_code = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["db", "g!("].concat(),
    ];
    let in_text = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["for", " now"].concat(),
        ["not yet ", "implemented"].concat(),
        ["#[ig", "nore"].concat(),
    ];
    let mut broken = Vec::new();
    for (file, text) in tree::rust_files().unwrap() {
        let code = source::masked(&text);
        for (number, (line, code)) in text.lines().zip(code.lines()).enumerate() {
            let unfinished = in_code.iter().any(|word| code.contains(word.as_str()))
                || in_text.iter().any(|word| line.contains(word.as_str()));
            if unfinished {
                broken.push(format!(
                    "{}:{}: {}",
                    file.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "finish it or take it out:\n{}",
        broken.join("\n")
    );
}

#[test]
fn the_readme_gives_the_two_commands() {
    let readme = tree::read(Path::new("README.md")).unwrap();
    for command in ["make demo", "make test"] {
        assert!(
            readme.contains(command),
            "README.md does not name `{command}`"
        );
    }
}

#[test]
fn the_usual_files_are_there() {
    for file in [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "docs/decisions.md",
        ".ci/run",
    ] {
        assert!(tree::top().join(file).is_file(), "{file} is missing");
    }
    let licence = tree::read(Path::new("LICENSE")).unwrap();
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
}
