//! Which instructions the arithmetic uses: chosen once, when a model is opened, from what the processor has.
//!
//! Products of matrices are written for each instruction set; all else is one portable text, compiled once per set
//! and vectorised by the compiler ([`per_isa!`]). Nothing but the `f32` products is fused or reordered, so that the
//! sets agree to the bit in everything else, and with `int8` weights altogether.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod elementwise;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use crate::error::{Error, ErrorKind, Result};

/// A set of instructions that the forward pass is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernels {
    /// No particular instructions; on every processor.
    Portable,
    /// AVX2 and FMA (x86-64, since 2013).
    Avx2,
    /// AVX-512 F, BW, DQ and VL. With `int8` weights as [`Avx2`](Self::Avx2).
    Avx512,
    /// AVX-512 with VNNI: `int8` products in hardware.
    Avx512Vnni,
    /// Advanced SIMD (64-bit ARM).
    Neon,
}

impl Kernels {
    /// All sets, the slowest first.
    pub const ALL: [Kernels; 5] =
        [Kernels::Portable, Kernels::Neon, Kernels::Avx2, Kernels::Avx512, Kernels::Avx512Vnni];

    /// The fastest that this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|kernels| kernels.is_available()).unwrap_or(Kernels::Portable)
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Kernels::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512 => {
                Kernels::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512Vnni => Kernels::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            Kernels::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }
}

/// Proof that the processor has a set of instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa(Kernels);

impl Isa {
    pub(crate) fn new(kernels: Kernels) -> Result<Self> {
        if !kernels.is_available() {
            let message = format!("kernels {kernels:?} are not to be had on this processor");
            return Err(Error::new(ErrorKind::Config, message));
        }
        Ok(Isa(kernels))
    }

    pub(crate) fn kernels(self) -> Kernels {
        self.0
    }
}

/// Defines functions whose text is compiled for each instruction set; the first argument chooses.
macro_rules! per_isa {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name(isa: $crate::kernels::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn portable($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) {
                portable($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) {
                portable($($arg),*);
            }

            use $crate::kernels::Kernels;
            match isa.kernels() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` is made only of what the processor has.
                Kernels::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Kernels::Avx512 | Kernels::Avx512Vnni => unsafe { avx512($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    )*};
}
pub(crate) use per_isa;

/// Columns of a panel: 16 outputs whose weights lie side by side.
pub(crate) const PANEL: usize = 16;

/// The weights of 16 outputs for one input.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [f32; PANEL]);

/// The `int8` weights of 16 outputs for 4 inputs each.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Quads(pub(crate) [[i8; 4]; PANEL]);

/// `out[r][c] = sum over k of x[r][k] * w[c][k]`, for rows of `inputs` and of `outputs` numbers.
///
/// `panels` has, for each 16 outputs, `inputs` [`Lanes`].
pub(crate) fn product_f32(
    isa: Isa,
    x: &[f32],
    inputs: usize,
    panels: &[Lanes],
    outputs: usize,
    out: &mut [f32],
) {
    let rows = out.len() / outputs;
    // The kernels go by pointers; all they touch is within these lengths.
    assert_eq!(out.len(), rows * outputs);
    assert_eq!(outputs % PANEL, 0);
    assert!(x.len() >= rows * inputs && panels.len() >= inputs * outputs / PANEL);
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the `Isa` proves the instructions; the assertions above are the kernel's conditions.
        Kernels::Avx512 | Kernels::Avx512Vnni => unsafe {
            avx512::product_f32(x, rows, inputs, panels, outputs, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kernels::Avx2 => unsafe { avx2::product_f32(x, rows, inputs, panels, outputs, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Kernels::Neon => unsafe { neon::product_f32(x, rows, inputs, panels, outputs, out) },
        _ => portable::product_f32(x, rows, inputs, panels, outputs, out),
    }
}

/// As [`product_f32`] for rows of `quads` times 4 unsigned bytes; the sums are exact.
pub(crate) fn product_i8(
    isa: Isa,
    x: &[[u8; 4]],
    quads: usize,
    panels: &[Quads],
    outputs: usize,
    out: &mut [i32],
) {
    let rows = out.len() / outputs;
    assert_eq!(out.len(), rows * outputs);
    assert_eq!(outputs % PANEL, 0);
    assert!(x.len() >= rows * quads && panels.len() >= quads * outputs / PANEL);
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the `Isa` proves the instructions; the assertions above are the kernel's conditions.
        Kernels::Avx512Vnni => unsafe { avx512::product_i8(x, rows, quads, panels, outputs, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; AVX-512 is never without AVX2 here.
        Kernels::Avx2 | Kernels::Avx512 => unsafe { avx2::product_i8(x, rows, quads, panels, outputs, out) },
        _ => portable::product_i8(x, rows, quads, panels, outputs, out),
    }
}

/// Splits `rows` into tiles of nearly the same height, none above `max`: calls `tile(first row, rows)`.
#[inline(always)]
fn tiles(rows: usize, max: usize, mut tile: impl FnMut(usize, usize)) {
    let count = rows.div_ceil(max);
    let mut begin = 0;
    for index in 0..count {
        let height = (rows - begin).div_ceil(count - index);
        tile(begin, height);
        begin += height;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn available() -> impl Iterator<Item = Isa> {
        Kernels::ALL.into_iter().filter_map(|kernels| Isa::new(kernels).ok())
    }

    /// Every number of rows, so that each height of a tile is met; odd panels and inputs, too.
    #[test]
    fn every_product_of_floats_is_right() {
        for (rows, inputs, outputs) in
            (1..30).map(|rows| (rows, 33, 48)).chain([(5, 384, 16), (40, 64, 64), (2, 1, 32)])
        {
            let x = numbers(rows * inputs, 1);
            let panels = numbers(inputs * outputs, 2);
            let panels: Vec<Lanes> =
                panels.chunks(PANEL).map(|lane| Lanes(lane.try_into().unwrap())).collect();
            for isa in available() {
                let mut out = vec![f32::NAN; rows * outputs];
                product_f32(isa, &x, inputs, &panels, outputs, &mut out);
                for (at, &got) in out.iter().enumerate() {
                    let (row, column) = (at / outputs, at % outputs);
                    let exact: f64 = (0..inputs)
                        .map(|k| {
                            let weight = panels[column / PANEL * inputs + k].0[column % PANEL];
                            f64::from(x[row * inputs + k]) * f64::from(weight)
                        })
                        .sum();
                    assert!(
                        (f64::from(got) - exact).abs() < 1e-5,
                        "{isa:?} {rows} {inputs} {outputs}: {got} {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_product_of_bytes_is_exact() {
        for (rows, quads, outputs) in (1..30).map(|rows| (rows, 9, 48)).chain([(5, 96, 16), (17, 1, 64)]) {
            // The extremes, too: a kernel that adds pairs in 16 bits would saturate on them.
            let byte = |n: f32| {
                if n > 0.7 {
                    255
                } else if n < -0.7 {
                    0
                } else {
                    (n * 127.0 + 128.0) as u8
                }
            };
            let x: Vec<[u8; 4]> = numbers(rows * quads * 4, 3)
                .chunks(4)
                .map(|q| [byte(q[0]), byte(q[1]), byte(q[2]), byte(q[3])])
                .collect();
            let weights = numbers(quads * 4 * outputs, 4);
            let weight = |n: f32| {
                if n > 0.7 {
                    127i8
                } else if n < -0.7 {
                    -127
                } else {
                    (n * 127.0) as i8
                }
            };
            let panels: Vec<Quads> = weights
                .chunks(4 * PANEL)
                .map(|panel| {
                    Quads(std::array::from_fn(|c| std::array::from_fn(|k| weight(panel[c * 4 + k]))))
                })
                .collect();
            for isa in available() {
                let mut out = vec![i32::MIN; rows * outputs];
                product_i8(isa, &x, quads, &panels, outputs, &mut out);
                for (at, &got) in out.iter().enumerate() {
                    let (row, column) = (at / outputs, at % outputs);
                    let exact: i32 = (0..quads * 4)
                        .map(|k| {
                            let weight = panels[column / PANEL * quads + k / 4].0[column % PANEL][k % 4];
                            i32::from(x[row * quads + k / 4][k % 4]) * i32::from(weight)
                        })
                        .sum();
                    assert_eq!(got, exact, "{isa:?} {rows} {quads} {outputs}");
                }
            }
        }
    }

    #[test]
    fn tiles_cover_all_rows_once() {
        for rows in 0..60 {
            let mut next = 0;
            tiles(rows, 12, |begin, height| {
                assert!(begin == next && (1..=12).contains(&height));
                next += height;
            });
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn kernels_that_the_processor_lacks_are_refused() {
        for kernels in Kernels::ALL {
            assert_eq!(Isa::new(kernels).is_ok(), kernels.is_available());
        }
        assert!(Kernels::detect().is_available());
    }
}
