//! Programs that tests run.

#![allow(unreachable_pub, reason = "each test binary uses it in another place")]

use std::process::Command;

/// Whether a program is there; where nothing may be skipped, its absence is a failure.
pub fn need_tool(name: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
    });
    assert!(
        found || std::env::var_os("CLOISTER_NO_SKIP").is_none(),
        "{name} is needed and absent"
    );
    if !found {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// Runs a program that must succeed.
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
}
