//! See `fuzz::participant`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::participant::check(data);
});
