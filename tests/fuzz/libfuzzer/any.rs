//! libFuzzer's entry: runs the target that `CLOISTER_TARGET` names.
#![no_main]

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<String> = OnceLock::new();
    let name = TARGET.get_or_init(|| {
        std::env::var("CLOISTER_TARGET").unwrap_or_else(|_| {
            let names: Vec<_> = fuzz::targets().iter().map(|target| target.name).collect();
            panic!("set CLOISTER_TARGET to one of {}", names.join(" "))
        })
    });
    fuzz::run(name, data);
});
