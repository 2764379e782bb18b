//! What the VMM checks in a guest's ELF image before `linux-loader` copies it.
//!
//! The loader checks neither class, machine nor type, and knows nothing of protections. Here every
//! header field that is used is bounds-checked, and the segments must fall into two runs: first
//! those that the guest may not write, then those that it may. Devices reach only the second.

use abi::layout::{PAGE_BYTES, RAM_BASE};

/// The bytes at the start of the file that hold all headers that an image may have.
pub const HEADERS_MAX: usize = 4096;

const EHDR_LEN: usize = 64;
const PHDR_LEN: usize = 56;
const SEGMENTS_MAX: usize = 16;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const PF_W: u32 = 2;

/// Why an ELF image can't be a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file at all.
    #[error("not an ELF file")]
    Magic,
    /// Not for this kind of machine.
    #[error("expected a 64-bit little-endian x86-64 executable (ET_EXEC)")]
    Kind,
    /// A header or a segment lies outside the file or memory.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
    /// A dynamically linked program.
    #[error("the image is dynamically linked; a unikernel is static (-static -no-pie)")]
    Dynamic,
    /// Writable and executable at once.
    #[error("the segment at {0:#x} is writable and executable")]
    WriteExecute(u64),
    /// Segments overlap within a page, or a read-only one follows a writable one.
    #[error("the segment at {0:#x} is not above the one before it, page by page, read-only first")]
    Order(u64),
    /// No code, or nothing to write.
    #[error("the image has no {0} segment")]
    Missing(&'static str),
    /// The entry point is not in an executable segment.
    #[error("the entry point {0:#x} is not in an executable segment")]
    Entry(u64),
}

/// A loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its first address (guest-virtual and guest-physical).
    pub address: u64,
    /// Its bytes in memory.
    pub len: u64,
    /// Whether the guest may execute it.
    pub execute: bool,
    /// Whether the guest may write it.
    pub write: bool,
}

impl Segment {
    /// The first page of the segment.
    #[must_use]
    pub fn page_start(&self) -> u64 {
        self.address & !(PAGE_BYTES - 1)
    }

    /// The end of the segment's last page.
    #[must_use]
    pub fn page_end(&self) -> u64 {
        (self.address + self.len).next_multiple_of(PAGE_BYTES)
    }
}

/// The checked headers of a guest image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfImage {
    /// Where the vCPU starts.
    pub entry: u64,
    /// The loadable segments, ascending, read-only ones first.
    pub segments: Vec<Segment>,
    /// The first page that the guest may write.
    pub writable_start: u64,
    /// The end of the image in memory, page-aligned.
    pub end: u64,
}

impl ElfImage {
    /// Checks the first [`HEADERS_MAX`] bytes (or fewer) of a file of `file_len` bytes that is to
    /// be loaded into RAM of `ram_len` bytes at [`RAM_BASE`].
    ///
    /// # Errors
    /// The first rule that the image breaks.
    pub fn parse(headers: &[u8], file_len: u64, ram_len: u64) -> Result<Self, ElfError> {
        if headers.get(..4) != Some(b"\x7fELF") {
            return Err(ElfError::Magic);
        }
        let header = Fields(headers.get(..EHDR_LEN).ok_or(ElfError::Bounds("the ELF header"))?);
        // Class 64-bit, little-endian.
        let kind = (header.byte(4), header.byte(5), header.u16(16), header.u16(18));
        if kind != (2, 1, ET_EXEC, EM_X86_64) || usize::from(header.u16(54)) != PHDR_LEN {
            return Err(ElfError::Kind);
        }
        let entry = header.u64(24);
        let table_error = ElfError::Bounds("the program header table");
        let table_start = usize::try_from(header.u64(32)).map_err(|_| table_error.clone())?;
        let table = headers.get(table_start..).ok_or_else(|| table_error.clone())?;
        let count = usize::from(header.u16(56));
        if count > SEGMENTS_MAX || table.len() < count * PHDR_LEN {
            return Err(table_error);
        }
        let ram_end = RAM_BASE + ram_len;
        let mut segments = Vec::new();
        for bytes in table.chunks_exact(PHDR_LEN).take(count) {
            segments.extend(parse_segment(&Fields(bytes), file_len, ram_end)?);
        }
        Self::from_segments(entry, segments)
    }

    fn from_segments(entry: u64, segments: Vec<Segment>) -> Result<Self, ElfError> {
        let mut end = RAM_BASE;
        let mut writable_start = None;
        for segment in &segments {
            let follows_writable = writable_start.is_some() && !segment.write;
            if segment.page_start() < end || follows_writable {
                return Err(ElfError::Order(segment.address));
            }
            if segment.write {
                writable_start.get_or_insert(segment.page_start());
            }
            end = segment.page_end();
        }
        let in_segment =
            |segment: &Segment| entry >= segment.address && entry < segment.address + segment.len;
        match segments.iter().find(|segment| segment.execute) {
            None => return Err(ElfError::Missing("executable")),
            Some(_) if segments.iter().any(|s| s.execute && in_segment(s)) => {}
            Some(_) => return Err(ElfError::Entry(entry)),
        }
        // An image without data has its writable part right behind it.
        Ok(Self { entry, segments, writable_start: writable_start.unwrap_or(end), end })
    }
}

/// The segment of one program header, if it is loadable.
fn parse_segment(
    header: &Fields<'_>,
    file_len: u64,
    ram_end: u64,
) -> Result<Option<Segment>, ElfError> {
    let (kind, flags) = (header.u32(0), header.u32(4));
    let (offset, address, physical) = (header.u64(8), header.u64(16), header.u64(24));
    let (bytes_in_file, len) = (header.u64(32), header.u64(40));
    match kind {
        PT_DYNAMIC | PT_INTERP => return Err(ElfError::Dynamic),
        PT_LOAD if len > 0 => {}
        // The loader reads notes whole, so their size is checked too.
        PT_NOTE if bytes_in_file > PAGE_BYTES || offset > file_len => {
            return Err(ElfError::Bounds("a note"));
        }
        _ => return Ok(None),
    }
    let file_end = offset.checked_add(bytes_in_file);
    if bytes_in_file > len || file_end.is_none_or(|end| end > file_len) {
        return Err(ElfError::Bounds("a segment's place in the file"));
    }
    let memory_end = address.checked_add(len);
    if address != physical || address < RAM_BASE || memory_end.is_none_or(|end| end > ram_end) {
        return Err(ElfError::Bounds("a segment's place in guest RAM"));
    }
    let segment = Segment { address, len, execute: flags & PF_X != 0, write: flags & PF_W != 0 };
    if segment.execute && segment.write {
        return Err(ElfError::WriteExecute(address));
    }
    Ok(Some(segment))
}

/// Little-endian fields at fixed offsets; a field outside reads as 0, which every check refuses.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Segment = Segment { address: 0x20_1000, len: 0x100, execute: true, write: false };
    const DATA: Segment = Segment { address: 0x20_3000, len: 0x10, execute: false, write: true };

    /// An image with these program headers: (type, flags, address, bytes in memory).
    fn image(headers: &[(u32, u32, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0u8; EHDR_LEN];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
        bytes[24..32].copy_from_slice(&0x20_1000u64.to_le_bytes());
        bytes[32] = EHDR_LEN as u8;
        bytes[54] = PHDR_LEN as u8;
        bytes[56] = headers.len() as u8;
        for (kind, flags, address, len) in headers {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            for field in [0, *address, *address, 0, *len, 0x1000] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        bytes
    }

    fn parse(headers: &[(u32, u32, u64, u64)]) -> Result<ElfImage, ElfError> {
        let bytes = image(headers);
        ElfImage::parse(&bytes, bytes.len() as u64, 8 << 20)
    }

    #[test]
    fn text_and_data_are_kept_apart() {
        let image = parse(&[(1, 5, 0x20_1000, 0x100), (1, 6, 0x20_3000, 0x10)]).unwrap();
        assert_eq!(image.segments, [TEXT, DATA]);
        assert_eq!((image.writable_start, image.end), (0x20_3000, 0x20_4000));
    }

    #[test]
    fn an_image_that_breaks_a_rule_is_refused() {
        let text = (1, 5, 0x20_1000, 0x100);
        for (headers, error) in [
            (vec![text, (1, 7, 0x20_3000, 1)], ElfError::WriteExecute(0x20_3000)),
            (vec![text, (1, 6, 0x20_1fff, 1)], ElfError::Order(0x20_1fff)),
            (vec![text, (1, 6, 0x20_2000, 1), (1, 4, 0x20_3000, 1)], ElfError::Order(0x20_3000)),
            (vec![(1, 4, 0x20_1000, 1)], ElfError::Missing("executable")),
            (vec![(1, 5, 0x20_2000, 1)], ElfError::Entry(0x20_1000)),
            (vec![text, (3, 4, 0, 1)], ElfError::Dynamic),
            (vec![(1, 5, 0x1f_f000, 1)], ElfError::Bounds("a segment's place in guest RAM")),
            (vec![(1, 5, 0xa0_0000, 1)], ElfError::Bounds("a segment's place in guest RAM")),
            (vec![(1, 5, u64::MAX, 2)], ElfError::Bounds("a segment's place in guest RAM")),
        ] {
            assert_eq!(parse(&headers), Err(error), "{headers:x?}");
        }
    }

    #[test]
    fn a_file_that_is_no_executable_is_refused() {
        assert_eq!(ElfImage::parse(b"#!/bin/sh", 9, 8 << 20), Err(ElfError::Magic));
        assert_eq!(ElfImage::parse(b"", 0, 8 << 20), Err(ElfError::Magic));
        let mut bytes = image(&[(1, 5, 0x20_1000, 0x100)]);
        bytes[18] = 40;
        assert_eq!(ElfImage::parse(&bytes, 4096, 8 << 20), Err(ElfError::Kind));
    }

    #[test]
    fn truncated_headers_are_refused() {
        let bytes = image(&[(1, 5, 0x20_1000, 0x100)]);
        for len in 4..bytes.len() {
            assert!(ElfImage::parse(&bytes[..len], len as u64, 8 << 20).is_err(), "{len} bytes");
        }
    }
}
