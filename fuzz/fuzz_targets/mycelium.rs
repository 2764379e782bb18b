//! See `fuzz::mycelium`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::mycelium::check(data);
});
