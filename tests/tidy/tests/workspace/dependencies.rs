//! The workspace lists a dependency for as long as a crate uses it, and no longer.

use std::collections::BTreeSet;

use tidy::tree;

#[test]
fn each_dependency_of_the_workspace_has_a_user() {
    let mut used = BTreeSet::new();
    for file in tree::files().unwrap() {
        if file.file_name().is_none_or(|name| name != "Cargo.toml")
            || file.parent() == Some("".as_ref())
        {
            continue;
        }
        let manifest: toml::Table = tree::read(&file).unwrap().parse().unwrap();
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            if let Some(names) = manifest.get(table).and_then(toml::Value::as_table) {
                used.extend(names.keys().cloned());
            }
        }
    }
    let workspace: toml::Table = tree::read("Cargo.toml".as_ref()).unwrap().parse().unwrap();
    let listed = workspace["workspace"]["dependencies"].as_table().unwrap();
    let idle: Vec<_> = listed.keys().filter(|name| !used.contains(*name)).collect();
    assert!(
        idle.is_empty(),
        "no crate uses these dependencies of Cargo.toml: {idle:?}"
    );
}
