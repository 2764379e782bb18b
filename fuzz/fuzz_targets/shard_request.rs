//! See `fuzz::shard_request`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::shard_request::check(data);
});
