//! See `fuzz::chain_question`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::chain_question::check(data);
});
