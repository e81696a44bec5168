//! The two loops of a search: how many signs differ, and the product of two vectors. One text, compiled for several
//! instruction sets and chosen at run time; the compiler vectorises it.

/// Vectors whose signs lie together: for each 64 dimensions, a word of each.
pub(super) const BLOCK: usize = 8;
/// The signs of [`BLOCK`] vectors in 64 dimensions.
pub(super) type Words = [u64; BLOCK];
const LANES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The instructions that an index uses. Made only by what the processor has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels(Isa);

impl Kernels {
    pub(super) fn detect() -> Self {
        Self::available().pop().unwrap_or(Kernels(Isa::Portable))
    }

    /// All that the processor has, the fastest last.
    pub(super) fn available() -> Vec<Self> {
        let mut all = vec![Kernels(Isa::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt");
            if avx2 {
                all.push(Kernels(Isa::Avx2));
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vpopcntdq");
            if avx2 && avx512 {
                all.push(Kernels(Isa::Avx512));
            }
        }
        all
    }

    /// For each vector, in how many dimensions its sign is not the query's. `blocks` has `query.len()` words for every
    /// 8 of them; what `out` has above their number is of no meaning.
    pub(super) fn differing_signs(self, query: &[u64], blocks: &[Words], out: &mut Vec<u16>) {
        out.resize(blocks.len() / query.len() * BLOCK, 0);
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: it was made of what the processor has.
            Isa::Avx2 => unsafe { differing_signs_avx2(query, blocks, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { differing_signs_avx512(query, blocks, out) },
            Isa::Portable => differing_signs(query, blocks, out),
        }
    }

    /// The sum of products. Both are of the same length.
    pub(super) fn product(self, a: &[f32], b: &[f32]) -> f32 {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: it was made of what the processor has.
            Isa::Avx2 => unsafe { product_avx2(a, b) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { product_avx512(a, b) },
            Isa::Portable => product(a, b, |a, b, sum| a * b + sum),
        }
    }
}

#[inline(always)]
fn differing_signs(query: &[u64], blocks: &[Words], out: &mut [u16]) {
    for (block, out) in blocks.chunks_exact(query.len()).zip(out.chunks_exact_mut(BLOCK)) {
        let mut counts = [0u64; BLOCK];
        for (query, words) in query.iter().zip(block) {
            for (count, word) in counts.iter_mut().zip(words) {
                *count += u64::from((query ^ word).count_ones());
            }
        }
        for (out, count) in out.iter_mut().zip(counts) {
            *out = count as u16;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn differing_signs_avx2(query: &[u64], blocks: &[Words], out: &mut [u16]) {
    differing_signs(query, blocks, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")]
fn differing_signs_avx512(query: &[u64], blocks: &[Words], out: &mut [u16]) {
    differing_signs(query, blocks, out);
}

/// In 32 sums, which are added in one order on every processor.
#[inline(always)]
fn product(a: &[f32], b: &[f32], fused: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [[0f32; LANES]; 2];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.chunks(2).zip(b.chunks(2)) {
        for ((sums, a), b) in sums.iter_mut().zip(a).zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum = fused(*a, *b, *sum);
            }
        }
    }
    for ((sum, a), b) in sums[0].iter_mut().zip(a_rest).zip(b_rest) {
        *sum = fused(*a, *b, *sum);
    }
    let [first, second] = sums;
    first.iter().zip(second).map(|(a, b)| a + b).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn product_avx2(a: &[f32], b: &[f32]) -> f32 {
    product(a, b, f32::mul_add)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,fma")]
fn product_avx512(a: &[f32], b: &[f32]) -> f32 {
    product(a, b, f32::mul_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instruction_sets_agree() {
        let mut random = fastrand::Rng::with_seed(1);
        for words in [1, 2, 6, 16] {
            for count in [0, 1, 3, 50] {
                let query: Vec<u64> = (0..words).map(|_| random.u64(..)).collect();
                let blocks: Vec<Words> =
                    (0..words * count).map(|_| std::array::from_fn(|_| random.u64(..))).collect();
                let exact: Vec<u16> = (0..count * BLOCK)
                    .map(|at| {
                        let word = |w: usize| blocks[at / BLOCK * words + w][at % BLOCK];
                        (0..words).map(|w| (query[w] ^ word(w)).count_ones() as u16).sum()
                    })
                    .collect();
                for kernels in Kernels::available() {
                    let mut out = vec![9; 1000];
                    kernels.differing_signs(&query, &blocks, &mut out);
                    assert_eq!(out, exact, "{kernels:?}");
                }
            }
        }
        for length in (0..70).chain([384, 1000]) {
            let (a, b): (Vec<f32>, Vec<f32>) =
                (0..length).map(|_| (random.f32() - 0.5, random.f32() - 0.5)).unzip();
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            for kernels in Kernels::available() {
                assert!((f64::from(kernels.product(&a, &b)) - exact).abs() < 1e-5, "{kernels:?} {length}");
            }
        }
    }
}
