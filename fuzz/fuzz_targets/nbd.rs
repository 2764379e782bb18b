//! See `fuzz::nbd`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::nbd::check(data);
});
