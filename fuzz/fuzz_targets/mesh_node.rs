//! See `fuzz::mesh_node`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::mesh_node::check(data);
});
