//! See `fuzz::map_pages`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::map_pages::check(data);
});
