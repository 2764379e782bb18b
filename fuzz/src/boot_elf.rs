//! The boot loader against any file at all.
//!
//! Of an image that it takes, every segment must lie inside guest RAM and inside the file, none may
//! be both writable and executable, no two may share a page, and the entry point must be in an
//! executable one: the VMM maps and loads by what [`ElfImage`] says.

use abi::layout::RAM_BASE;
use vmm::boot::RamPlan;
use vmm::elf::{ElfImage, HEADERS_MAX};

use crate::bytes::Input;

/// Parses a file. Byte 0: guest RAM in units of 64 KiB; the rest: the file. True for a guest that
/// would boot.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let ram_len = u64::from(input.byte()) << 16;
    let file = input.0;
    let headers = file.get(..HEADERS_MAX).unwrap_or(file);
    let image = match ElfImage::parse(headers, file.len() as u64, ram_len) {
        Ok(image) => image,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let ram_end = RAM_BASE + ram_len;
    let mut end = RAM_BASE;
    for segment in &image.segments {
        let segment_end = segment.address.checked_add(segment.len);
        assert!(segment_end.is_some_and(|end| end <= ram_end), "outside RAM: {segment:?}");
        assert!(segment.page_start() >= end, "shares a page: {segment:?}");
        assert!(!(segment.write && segment.execute), "writable text: {segment:?}");
        let is_writable_part = segment.page_start() >= image.writable_start;
        assert_eq!(segment.write, is_writable_part, "in the wrong part: {segment:?}");
        end = segment.page_end();
    }
    assert!(image.end >= end);
    let has_entry = image.segments.iter().any(|segment| {
        segment.execute && (segment.address..segment.address + segment.len).contains(&image.entry)
    });
    assert!(has_entry, "the entry point {:#x} is not in a text segment", image.entry);
    let plan = RamPlan::new(&image, ram_len, [256, 64]);
    plan.is_ok_and(|plan| {
        assert!(plan.stack_guard >= end && plan.heap_base <= plan.ram_end);
        true
    })
}
