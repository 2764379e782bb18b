//! See `fuzz::disk`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::disk::check(data);
});
