//! See `fuzz::mesh_handshake`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::mesh_handshake::check(data);
});
