//! See `fuzz::mesh_router`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::mesh_router::check(data);
});
