//! See `fuzz::spec_json`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::spec_json::check(data);
});
