//! See `fuzz::shard_handshake`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::shard_handshake::check(data);
});
