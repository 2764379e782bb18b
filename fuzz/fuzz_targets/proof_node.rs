//! See `fuzz::proof_node`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::proof_node::check(data);
});
