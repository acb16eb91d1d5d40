//! One program for all targets: `METERD_FUZZ_TARGET` names the one that libFuzzer feeds.
//! A panic (overflows among them), an abort, a leak of memory past the limit and a hang are crashes.

#![no_main]

#[path = "../targets.rs"]
mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<targets::Parse> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("METERD_FUZZ_TARGET").expect("METERD_FUZZ_TARGET names a target");
        targets::named(&name).unwrap_or_else(|| panic!("no target is called {name}"))
    });
    target(data);
});
