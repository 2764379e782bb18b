//! See `fuzz::nat`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::nat::check(data);
});
