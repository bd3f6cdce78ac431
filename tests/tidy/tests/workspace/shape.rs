//! How big things may be, and how a file begins. The budget is the number of exceptions that
//! stand today: it may fall, and a change that raises it says why in its commit.

use tidy::{source, tree};

/// Body lines (without inline tests) above which a file counts against the budget.
const FILE_SOFT: usize = 400;
/// Lines, tests included, that no file may pass.
const FILE_HARD: usize = 700;
/// Files that may be above [`FILE_SOFT`].
const FILE_BUDGET: usize = 2;
/// Lines that no function may pass.
const FUNCTION_HARD: usize = 100;
/// Methods of a trait.
const METHODS: usize = 8;

#[test]
fn files_stay_small() {
    let mut soft = Vec::new();
    let mut hard = Vec::new();
    for (file, text) in tree::rust_files().unwrap() {
        let (all, body) = (text.lines().count(), source::body_lines(&text));
        if all > FILE_HARD {
            hard.push(format!("{} {all}", file.display()));
        }
        if body > FILE_SOFT {
            soft.push(format!("{} {body}", file.display()));
        }
    }
    for file in &soft {
        println!("over {FILE_SOFT} body lines: {file}");
    }
    assert!(
        hard.is_empty(),
        "over {FILE_HARD} lines, tests included:\n{}",
        hard.join("\n")
    );
    assert!(
        soft.len() <= FILE_BUDGET,
        "{} files over {FILE_SOFT} body lines, the budget is {FILE_BUDGET}:\n{}",
        soft.len(),
        soft.join("\n")
    );
}

#[test]
fn functions_stay_small() {
    let mut long = Vec::new();
    for (file, text) in tree::rust_files().unwrap() {
        for function in source::functions(&text) {
            if function.lines > FUNCTION_HARD {
                long.push(format!(
                    "{}:{} {} {}",
                    file.display(),
                    function.line,
                    function.name,
                    function.lines
                ));
            }
        }
    }
    assert!(
        long.is_empty(),
        "functions over {FUNCTION_HARD} lines:\n{}",
        long.join("\n")
    );
}

#[test]
fn traits_have_few_methods() {
    for (file, text) in tree::rust_files().unwrap() {
        for (name, methods) in source::traits(&text) {
            assert!(
                methods <= METHODS,
                "{}: trait {name} has {methods} methods",
                file.display()
            );
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = tree::rust_files()
        .unwrap()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(file, _)| file.display().to_string())
        .collect();
    assert!(
        silent.is_empty(),
        "begin with `//!`:\n{}",
        silent.join("\n")
    );
}

/// Names that say where code ended up rather than what it is.
const VAGUE: &[&str] = &[
    "common", "core", "helper", "helpers", "handler", "handlers", "impl", "inner", "manager",
    "misc", "types", "util", "utils",
];

#[test]
fn modules_are_named_for_what_they_are() {
    for (file, _) in tree::rust_files().unwrap() {
        let vague = file.components().find(|part| {
            let stem = part.as_os_str().to_string_lossy();
            VAGUE.contains(&stem.trim_end_matches(".rs"))
        });
        assert!(
            vague.is_none(),
            "{}: name it for what it is",
            file.display()
        );
    }
}
