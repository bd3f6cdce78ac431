//! Which crate of the workspace links which, as cargo itself resolves it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tree;

/// The workspace's crates with what each links in a product build.
#[derive(Debug)]
pub struct Graph {
    /// Crate name to its dependencies, ours and others', without dev- and build-dependencies.
    direct: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Asks cargo. Nothing is fetched: only the workspace's own manifests are read.
    ///
    /// # Errors
    /// When cargo fails or answers something that is not its metadata format 1.
    pub fn load() -> Result<Self> {
        let direct = packages()?.iter().map(package).collect::<Option<_>>();
        Ok(Self {
            direct: direct.context("a package without name or dependencies")?,
        })
    }

    /// Names of all crates of the workspace.
    pub fn crates(&self) -> impl Iterator<Item = &str> {
        self.direct.keys().map(String::as_str)
    }

    /// Everything that `name` names itself in its manifest.
    #[must_use]
    pub fn direct(&self, name: &str) -> BTreeSet<&str> {
        self.direct
            .get(name)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }

    /// Everything that `name` reaches through crates of the workspace, others' crates included.
    #[must_use]
    pub fn reach(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = self.direct(name);
        while let Some(next) = open.pop_first() {
            if seen.insert(next) {
                open.extend(self.direct(next));
            }
        }
        seen
    }
}

fn package(value: &Value) -> Option<(String, BTreeSet<String>)> {
    let name = value["name"].as_str()?.to_owned();
    let links = value["dependencies"]
        .as_array()?
        .iter()
        .filter(|dependency| dependency["kind"].is_null())
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
        .collect();
    Some((name, links))
}

/// A library or a program of the workspace.
#[derive(Debug)]
pub struct Target {
    /// Its first file, relative to the workspace.
    pub root: PathBuf,
    /// Whether it is built for the tests.
    pub test: bool,
    /// Whether its documentation's examples are run.
    pub doctest: bool,
}

/// All of them, without those that are tests themselves.
///
/// # Errors
/// As [`Graph::load`].
pub fn targets() -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for package in packages()? {
        let targets = package["targets"].as_array().context("no targets")?;
        for target in targets {
            let of = |kind: &str| {
                target["kind"]
                    .as_array()
                    .is_some_and(|all| all.contains(&kind.into()))
            };
            if !of("lib") && !of("bin") {
                continue;
            }
            let root = Path::new(target["src_path"].as_str().context("no src_path")?);
            found.push(Target {
                root: root.strip_prefix(tree::top())?.to_owned(),
                test: target["test"].as_bool().context("no test")?,
                doctest: target["doctest"].as_bool().context("no doctest")?,
            });
        }
    }
    Ok(found)
}

fn packages() -> Result<Vec<Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let answer = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(tree::top())
        .output()
        .context("run cargo metadata")?;
    ensure!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let metadata: Value = serde_json::from_slice(&answer.stdout).context("cargo metadata")?;
    metadata["packages"]
        .as_array()
        .cloned()
        .context("metadata without packages")
}
