//! See `fuzz::chain_transaction`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::chain_transaction::check(data);
});
