//! Reed-Solomon over shards: any k of k + m bring back the others.
//!
//! The code is systematic over GF(2^8) mod 0x11D with the matrix `V * inv(V_top)`, V\[r\]\[c\] = r^c,
//! as `reed-solomon-erasure` 6 computes it; code id 1 of the formats means exactly this, and the
//! tests hold every kernel to that crate. Which kernel works is decided once, by what the CPU has.

mod field;
#[cfg(target_arch = "x86_64")]
mod gfni256;
#[cfg(target_arch = "x86_64")]
mod gfni512;
mod kernel;
mod plan;
mod portable;
#[cfg(target_arch = "x86_64")]
mod shuffle256;

use std::sync::{Arc, Mutex, PoisonError};

use field::Matrix;
pub use kernel::Kernel;
use plan::Plan;

/// The most shards of a code, k + m.
pub const CODE_SHARDS_MAX: usize = 32;

/// The erasure sets whose matrices a codec keeps; the one used longest ago goes first.
const PLANS_MAX: usize = 64;

/// Why shards can't be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer or more sources than data shards.
    #[error("{found} shards to rebuild from: it takes exactly {needed}")]
    Sources {
        /// How many were given.
        found: usize,
        /// The code's k.
        needed: usize,
    },
    /// An index behind the code's last shard, or one that is given twice.
    #[error("shard {shard} is not one of the code's {shards}, or is named twice")]
    Shard {
        /// The index.
        shard: u8,
        /// The code's k + m.
        shards: usize,
    },
    /// Buffers of different lengths.
    #[error("shard {shard} has {found} bytes where the first one has {needed}")]
    Length {
        /// Whose buffer.
        shard: u8,
        /// Its length in bytes.
        found: usize,
        /// The first source's length in bytes.
        needed: usize,
    },
}

/// Encodes data shards to parity shards, and brings back shards that are lost.
///
/// Shards may have any length and alignment. Several threads may use one codec: they share the
/// matrices of the losses that were met.
pub struct Codec {
    data_shards: usize,
    /// k + m rows of k.
    matrix: Matrix,
    kernel: Kernel,
    encode: Plan,
    decode: Mutex<Vec<Decode>>,
}

/// What brings back one set of shards from another.
struct Decode {
    /// A bit per shard.
    sources: u32,
    wanted: u32,
    plan: Arc<Plan>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Codec({}+{}, {:?})", self.data_shards, self.parity_shards(), self.kernel)
    }
}

impl Codec {
    /// A code of k data and m parity shards.
    ///
    /// # Panics
    /// Unless 1 <= k and k + m <= [`CODE_SHARDS_MAX`]; a shape from outside is checked where it is
    /// read.
    #[must_use]
    pub fn new(data_shards: u8, parity_shards: u8) -> Self {
        Self::with_kernel(data_shards, parity_shards, Kernel::best())
    }

    /// As [`Codec::new`], with a kernel of one's choice.
    ///
    /// # Panics
    /// As [`Codec::new`].
    #[must_use]
    pub fn with_kernel(data_shards: u8, parity_shards: u8, kernel: Kernel) -> Self {
        let data_shards = usize::from(data_shards);
        let shards = data_shards + usize::from(parity_shards);
        assert!(data_shards > 0 && shards <= CODE_SHARDS_MAX, "1 to 32 shards, one of data");
        let matrix = Matrix::of_code(data_shards, shards);
        let parity: Vec<usize> = (data_shards..shards).collect();
        let encode = Plan::new(&matrix.rows(&parity), kernel);
        Self { data_shards, matrix, kernel, encode, decode: Mutex::default() }
    }

    /// k.
    #[must_use]
    pub fn data_shards(&self) -> usize {
        self.data_shards
    }

    /// m.
    #[must_use]
    pub fn parity_shards(&self) -> usize {
        self.shards() - self.data_shards
    }

    /// What computes.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    fn shards(&self) -> usize {
        self.matrix.row_count()
    }

    /// Computes the parity shards from the data shards.
    ///
    /// # Panics
    /// Unless there are k of `data` and m of `parity`, all of one length.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.encode.run(data, parity);
    }

    /// Brings back the shards `wanted` from any k others; each with its index, 0 to k + m - 1.
    ///
    /// # Errors
    /// Unless `sources` are k different shards of the code, `wanted` are different shards of it, and
    /// all buffers have one length. Then nothing is written.
    pub fn reconstruct(
        &self,
        sources: &[(u8, &[u8])],
        wanted: &mut [(u8, &mut [u8])],
    ) -> Result<(), CodecError> {
        if sources.len() != self.data_shards {
            return Err(CodecError::Sources { found: sources.len(), needed: self.data_shards });
        }
        let needed = sources.first().map_or(0, |(_, bytes)| bytes.len());
        let lengths = |(shard, bytes): (u8, usize)| {
            let error = CodecError::Length { shard, found: bytes, needed };
            if bytes == needed { Ok(()) } else { Err(error) }
        };
        sources.iter().map(|(shard, bytes)| (*shard, bytes.len())).try_for_each(lengths)?;
        wanted.iter().map(|(shard, bytes)| (*shard, bytes.len())).try_for_each(lengths)?;
        let source_set = self.set(sources.iter().map(|(shard, _)| *shard))?;
        let wanted_set = self.set(wanted.iter().map(|(shard, _)| *shard))?;

        // The plans are for shards in ascending order.
        let rank = |set: u32, shard: u8| (set & ((1 << shard) - 1)).count_ones() as usize;
        let mut ordered: [&[u8]; CODE_SHARDS_MAX] = [&[]; CODE_SHARDS_MAX];
        for (shard, bytes) in sources {
            ordered[rank(source_set, *shard)] = bytes;
        }
        let count = wanted.len();
        let mut outputs: [&mut [u8]; CODE_SHARDS_MAX] = std::array::from_fn(|_| &mut [][..]);
        for (shard, bytes) in wanted.iter_mut() {
            outputs[rank(wanted_set, *shard)] = bytes;
        }
        let plan = self.decode_plan(source_set, wanted_set);
        plan.run(&ordered[..sources.len()], &mut outputs[..count]);
        Ok(())
    }

    /// A bit per shard; each is one of the code and comes once.
    fn set(&self, mut shards: impl Iterator<Item = u8>) -> Result<u32, CodecError> {
        shards.try_fold(0, |set: u32, shard| {
            if usize::from(shard) < self.shards() && set >> shard & 1 == 0 {
                Ok(set | 1 << shard)
            } else {
                Err(CodecError::Shard { shard, shards: self.shards() })
            }
        })
    }

    /// The plan for an erasure set, from the cache or new. `sources` has k bits.
    fn decode_plan(&self, sources: u32, wanted: u32) -> Arc<Plan> {
        let mut cache = self.decode.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cache.iter().position(|d| (d.sources, d.wanted) == (sources, wanted));
        let decode = match found {
            Some(index) => cache.remove(index),
            None => {
                let plan = Arc::new(self.plan_decode(sources, wanted));
                if cache.len() == PLANS_MAX {
                    cache.remove(0);
                }
                Decode { sources, wanted, plan }
            }
        };
        let plan = Arc::clone(&decode.plan);
        cache.push(decode);
        plan
    }

    fn plan_decode(&self, sources: u32, wanted: u32) -> Plan {
        let members = |set: u32| -> Vec<usize> {
            (0..self.shards()).filter(|shard| set >> shard & 1 == 1).collect()
        };
        let Some(inverse) = self.matrix.rows(&members(sources)).inverse() else {
            unreachable!("any k rows of the code's matrix are invertible");
        };
        Plan::new(&self.matrix.rows(&members(wanted)).times(&inverse), self.kernel)
    }
}

#[cfg(test)]
mod tests;
