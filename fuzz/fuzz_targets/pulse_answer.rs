//! See `fuzz::pulse_answer`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::pulse_answer::check(data);
});
