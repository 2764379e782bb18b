//! See `fuzz::shard_response`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::shard_response::check(data);
});
