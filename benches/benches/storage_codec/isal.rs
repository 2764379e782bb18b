//! ISA-L, as the crate `isal-sys` builds it: version 2.31.0 (git 496255c), with nasm.
//!
//! The crate declares only the compression half of the library; these are two functions of the other
//! half, from `isa-l/include/erasure_code.h`.
#![expect(unsafe_code, reason = "calls of a C library")]

use std::ffi::{c_int, c_uchar};

// Links the library, though nothing of the crate's own is called.
use isal_sys as _;

unsafe extern "C" {
    fn ec_init_tables(k: c_int, rows: c_int, matrix: *const c_uchar, tables: *mut c_uchar);
    fn ec_encode_data(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *const c_uchar,
        sources: *const *const c_uchar,
        outputs: *const *mut c_uchar,
    );
}

/// The bytes of ISA-L's tables per cell of a matrix.
const TABLE_BYTES: usize = 32;

/// A matrix made ready for ISA-L.
pub(crate) struct Tables {
    rows: usize,
    columns: usize,
    tables: Vec<u8>,
}

impl Tables {
    /// From cells row after row.
    pub(crate) fn new(rows: usize, columns: usize, cells: &[u8]) -> Self {
        assert_eq!(cells.len(), rows * columns, "a cell for each row and column");
        let mut tables = vec![0; TABLE_BYTES * rows * columns];
        // SAFETY: `cells` has k * rows bytes and `tables` the 32 for each that the header asks for.
        unsafe {
            let (k, rows) = (columns as c_int, rows as c_int);
            ec_init_tables(k, rows, cells.as_ptr(), tables.as_mut_ptr());
        }
        Self { rows, columns, tables }
    }

    /// Whether the library has chosen its GFNI kernels: only their tables are bit matrices, and
    /// that of 1 is this one.
    pub(crate) fn are_for_gfni() -> bool {
        Self::new(1, 1, &[1]).tables.starts_with(&0x0102_0408_1020_4080_u64.to_le_bytes())
    }

    /// Writes the matrix's product with `sources` to `outputs`.
    pub(crate) fn multiply(&self, sources: &[Vec<u8>], outputs: &mut [Vec<u8>]) {
        assert_eq!((sources.len(), outputs.len()), (self.columns, self.rows), "the matrix's shape");
        let len = sources[0].len();
        let equal =
            sources.iter().all(|s| s.len() == len) && outputs.iter().all(|o| o.len() == len);
        assert!(equal, "shards of one length");
        let sources: Vec<*const u8> = sources.iter().map(|source| source.as_ptr()).collect();
        let outputs: Vec<*mut u8> = outputs.iter_mut().map(|output| output.as_mut_ptr()).collect();
        // SAFETY: there are k sources and `rows` outputs, each of `len` bytes, and tables for them.
        unsafe {
            ec_encode_data(
                len as c_int,
                self.columns as c_int,
                self.rows as c_int,
                self.tables.as_ptr(),
                sources.as_ptr(),
                outputs.as_ptr(),
            );
        }
    }
}
