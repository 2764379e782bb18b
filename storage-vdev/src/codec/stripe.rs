//! Reed-Solomon over the units of a stripe: any k of k + m bring back the others.
//!
//! The code is systematic over GF(2^8) mod 0x11D with the matrix `V * inv(V_top)`, as
//! `reed-solomon-erasure` computes it; format code 1 means exactly this.

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::geometry::{Geometry, UNIT_BYTES};

/// Encodes and decodes stripes that lie in one buffer, unit after unit.
pub(crate) struct Codec {
    data_shards: usize,
    shards: usize,
    /// `None` without parity shards.
    code: Option<ReedSolomon>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Codec({}+{})", self.data_shards, self.shards - self.data_shards)
    }
}

impl Codec {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let data_shards = usize::from(geometry.data_shards());
        let parity_shards = usize::from(geometry.parity_shards());
        let code = match ReedSolomon::new(data_shards, parity_shards) {
            Ok(code) => Some(code),
            Err(_) if parity_shards == 0 => None,
            Err(_) => unreachable!("a geometry has 1 to 32 shards and the code takes 256"),
        };
        Self { data_shards, shards: geometry.shards(), code }
    }

    /// The bytes of a stripe's units.
    pub(crate) fn stripe_bytes(&self) -> usize {
        self.shards * UNIT_BYTES
    }

    /// Computes the parity units from the data units of `stripe`.
    pub(crate) fn encode(&self, stripe: &mut [u8]) {
        let Some(code) = &self.code else { return };
        let mut units: Vec<&mut [u8]> = stripe.chunks_exact_mut(UNIT_BYTES).collect();
        let encoded = code.encode(&mut units);
        assert!(encoded.is_ok(), "a stripe buffer has k + m whole units");
    }

    /// Brings back the units that are not in the mask `good`; false if fewer than k are.
    /// With `data_only` parity units are left as they are.
    #[must_use]
    pub(crate) fn reconstruct(&self, stripe: &mut [u8], good: u32, data_only: bool) -> bool {
        if (good.count_ones() as usize) < self.data_shards {
            return false;
        }
        let Some(code) = &self.code else { return true };
        let mut units: Vec<(&mut [u8], bool)> = stripe
            .chunks_exact_mut(UNIT_BYTES)
            .enumerate()
            .map(|(shard, unit)| (unit, good >> shard & 1 == 1))
            .collect();
        if data_only { code.reconstruct_data(&mut units) } else { code.reconstruct(&mut units) }
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_k_units_bring_back_the_others(
            data in 1u8..6, parity in 0u8..4, seed: u64, order in any::<u64>(),
        ) {
            let geometry = Geometry::new(data, parity, 1 << 20).unwrap();
            let codec = Codec::new(&geometry);
            let mut stripe: Vec<u8> = (0..codec.stripe_bytes() as u64)
                .map(|i| (seed.wrapping_mul(i | 1) >> 32) as u8)
                .collect();
            codec.encode(&mut stripe);
            let mut good = geometry.all_shards();
            let mut order = order;
            while good.count_ones() > u32::from(data) {
                good &= !(1 << (order % geometry.shards() as u64));
                order = order.rotate_right(7).wrapping_mul(5).wrapping_add(1);
            }
            let mut damaged = stripe.clone();
            for (shard, unit) in damaged.chunks_exact_mut(UNIT_BYTES).enumerate() {
                if good >> shard & 1 == 0 {
                    unit.fill(0xee);
                }
            }
            prop_assert!(codec.reconstruct(&mut damaged, good, false));
            prop_assert_eq!(&damaged, &stripe);
            let one_less = good & (good - 1);
            prop_assert!(!codec.reconstruct(&mut damaged, one_less, false));
        }
    }
}
