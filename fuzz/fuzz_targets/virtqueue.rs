//! See `fuzz::virtqueue`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::virtqueue::check(data);
});
