//! See `fuzz::register`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::register::check(data);
});
