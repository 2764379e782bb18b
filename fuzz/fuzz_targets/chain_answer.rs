//! See `fuzz::chain_answer`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::chain_answer::check(data);
});
