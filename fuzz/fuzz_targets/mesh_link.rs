//! See `fuzz::mesh_link`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::mesh_link::check(data);
});
