//! Fixed layouts, written and read field by field in the order in which the format draws them.

/// Fills a buffer from its start.
pub(crate) struct Writer<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Self { rest: buffer }
    }

    /// Appends `field`. The layouts here are constant, so one that doesn't fit is a bug.
    pub(crate) fn put(&mut self, field: &[u8]) -> &mut Self {
        let rest = std::mem::take(&mut self.rest);
        assert!(field.len() <= rest.len(), "a field lies behind the end of its layout");
        let (target, rest) = rest.split_at_mut(field.len());
        target.copy_from_slice(field);
        self.rest = rest;
        self
    }
}

/// Reads a buffer from its start; every read says whether there was enough.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buffer: &'a [u8]) -> Self {
        Self { rest: buffer }
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*field)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

/// The little-endian `u32` at `offset`, if it is there.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

/// Whether all of `bytes` are zero: nothing was ever written there.
pub(crate) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
