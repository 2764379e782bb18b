//! See `fuzz::boot_elf`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::boot_elf::check(data);
});
