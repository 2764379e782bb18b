//! See `fuzz::sni`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::sni::check(data);
});
