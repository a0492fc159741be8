use super::super::{Activation, Element, Epilogue, PackedGateUp, PackedLinear, Packing};
use super::{Noise, U32, both, close, most, pools, reference, roundoff, shapes, wide};
use half::bf16;
use proptest::prelude::*;

/// Bound on a sum of k products in f32 in any order, including the bias and the addition of chunks: `(k + 4) u
/// sum|a||b|` (Higham 2002, 3.1).
fn sum_bound(k: usize, size: f64) -> f64 {
    (k as f64 + 4.0) * U32 * size
}

fn check_epilogues<T: Element>(m: usize, n: usize, k: usize, seed: u64) {
    let mut noise = Noise::new(seed);
    let (x, w) = (noise.take::<T>(m * k, 1.0), noise.take::<T>(n * k, 1.0));
    let bias = noise.take::<f32>(n, 1.0);
    let before = noise.take::<T>(m * n, 1.0);
    let (y, size) = reference::linear(&wide(&x), &wide(&w), k, Some(&wide(&bias)));
    let u = roundoff::<T>();
    for pool in pools() {
        let cut = n / 3 * k;
        let packed = PackedLinear::new(&pool, &[&w[..cut], &w[cut..]], k, Some(&bias));
        let mut out = before.clone();
        packed.forward(&pool, &x, m, &mut out, Epilogue::Store);
        let label = format!("{:?} m {m} n {n} k {k}", pool.isa());
        close(&label, &out, &y, |i| sum_bound(k, size[i]) + u * y[i].abs());

        // Factors are powers of two, so scaling is exact. The residual adds one operation.
        out.copy_from_slice(&before);
        packed.forward(&pool, &x, m, &mut out, Epilogue::Add(0.5));
        let want: Vec<f64> = y.iter().zip(&before).map(|(y, b)| f64::from(b.to_f32()) + y / 2.0).collect();
        close("add", &out, &want, |i| sum_bound(k, size[i]) + 2.0 * u * (want[i].abs() + U32));

        packed.forward(&pool, &x, m, &mut out, Epilogue::Activate(Activation::Silu));
        let want: Vec<f64> = y.iter().map(|y| reference::silu(*y)).collect();
        // |silu'| <= 1.1; silu has a relative error of 5e-7.
        close("silu", &out, &want, |i| 1.1 * sum_bound(k, size[i]) + (2.0 * u + 5e-7) * want[i].abs());

        let mut capped = vec![0.0_f32; m * n];
        packed.forward(&pool, &x, m, &mut capped, Epilogue::SoftCap(3.0));
        let want: Vec<f64> = y.iter().map(|y| 3.0 * (y / 3.0).tanh()).collect();
        close("softcap", &capped, &want, |i| sum_bound(k, size[i]) + 6e-7 * want[i].abs());

        // The same weight packed by rows, with the bias added later, written to new memory.
        let mut packing = Packing::linear(n, k);
        let at_once = n.div_ceil(3);
        for (block, rows) in w.chunks(at_once * k).enumerate() {
            packing.fill(&pool, block * at_once, rows);
        }
        let late = packing.into_linear(None).with_bias(&bias);
        packed.forward(&pool, &x, m, &mut out, Epilogue::Scale(0.5));
        assert_eq!(late.forward_new::<T>(&pool, &x, m, Epilogue::Scale(0.5)), out, "the same arithmetic");

        let mut row = vec![T::default(); k];
        packed.row(n - 1, &mut row);
        assert_eq!(row, &w[(n - 1) * k..], "a row comes back as it was packed");
    }
}

fn check_gate<T: Element>(m: usize, n: usize, k: usize, seed: u64) {
    let mut noise = Noise::new(seed);
    let x = noise.take::<T>(m * k, 1.0);
    let (gate, up) = (noise.take::<T>(n * k, 1.0), noise.take::<T>(n * k, 1.0));
    let (gate_bias, up_bias) = (noise.take::<f32>(n, 1.0), noise.take::<f32>(n, 1.0));
    let (g, g_size) = reference::linear(&wide(&x), &wide(&gate), k, Some(&wide(&gate_bias)));
    let (v, v_size) = reference::linear(&wide(&x), &wide(&up), k, Some(&wide(&up_bias)));
    let want: Vec<f64> = g.iter().zip(&v).map(|(g, v)| reference::gelu_tanh(*g) * v).collect();
    for pool in pools() {
        let packed = PackedGateUp::new(&pool, &gate, &up, k, Some((&gate_bias, &up_bias)));
        let mut out = vec![T::default(); m * n];
        packed.forward(&pool, &x, m, &mut out, Activation::GeluTanh);
        let (mut one, mut two) = (out.clone(), out.clone());
        packed.parts(&pool, &x, m, &mut one, &mut two);
        for (part, want, size) in [(&one, &g, &g_size), (&two, &v, &v_size)] {
            let bound = |i: usize| sum_bound(k, size[i]) + roundoff::<T>() * want[i].abs() + 1e-12;
            close(&format!("a part, {:?} m {m} n {n} k {k}", pool.isa()), part, want, bound);
        }
        // |gelu'| <= 1.13; the product of the two errors is negligible.
        close(&format!("{:?} m {m} n {n} k {k}", pool.isa()), &out, &want, |i| {
            1.2 * sum_bound(k, g_size[i]) * v[i].abs()
                + 1.2 * sum_bound(k, v_size[i]) * g[i].abs()
                + (roundoff::<T>() + 2e-6) * want[i].abs()
                + 1e-12
        });
    }
}

proptest! {
    #![proptest_config(shapes(24))]

    #[test]
    fn a_linear_layer_is_the_sum_of_products(m in 1..most(40, 4), n in 1..most(100, 40), k in 1..most(90, 12), seed: u64) {
        both!(check_epilogues(m, n, k, seed));
    }

    #[test]
    fn a_gated_layer_is_activation_times_up(m in 1..most(20, 4), n in 1..most(70, 40), k in 1..most(50, 12), seed: u64) {
        both!(check_gate(m, n, k, seed));
    }
}

#[test]
fn sums_longer_than_a_chunk_match_f64() {
    for m in [1, 3, 5, 29] {
        both!(check_epilogues(m, 33, 1537, 7));
    }
}

/// A row is so long that a part has 16 rows, the fewest, and in bf16 ends in half a unit.
#[test]
fn more_rows_than_one_part_match_f64() {
    both!(check_epilogues(41, 33, 25_001, 7));
}

/// Each addition to a sum of 1 rounds away 0.4 units in its last place, always in the same direction.
fn check_large_product<T: Element>(m: usize, additions: f64) {
    let (n, k) = (40, 1536);
    let small = T::from_f32(0.4 * f32::EPSILON);
    let mut x = vec![small; m * k];
    x.iter_mut().step_by(k).for_each(|x| *x = T::from_f32(1.0));
    let w = vec![T::from_f32(1.0); n * k];
    let want = vec![1.0 + (k - 1) as f64 * f64::from(small.to_f32()); m * n];
    for pool in pools() {
        let mut out = vec![0.0_f32; m * n];
        PackedLinear::new(&pool, &[&w], k, None).forward(&pool, &x, m, &mut out, Epilogue::Store);
        // The unit in the last place of 1 is twice the unit roundoff, and an addition errs by half of it.
        close(&format!("{:?} m {m}", pool.isa()), &out, &want, |_| additions * U32);
    }
}

/// A chunk of 32 units in at least one sum of registers (four for up to two rows at the levels with 16 lanes), of one product each in
/// f32 and of two in bf16; the combination of the sums, the error of the compensated total and its rounding.
#[test]
fn a_large_product_of_few_rows_loses_the_products_of_its_short_chunk_at_most() {
    for m in 1..=4 {
        check_large_product::<f32>(m, 32.0 + 4.0);
        check_large_product::<bf16>(m, 64.0 + 4.0);
    }
}

/// A chunk of 128 f32 values, and twelve chunks. At the levels that multiply pairs of bf16 a chunk has 256 values, and six
/// chunks.
#[test]
fn a_large_product_of_many_rows_loses_the_products_of_its_chunk_at_most() {
    for m in [5, 14, 29] {
        check_large_product::<f32>(m, 128.0 + 12.0);
        check_large_product::<bf16>(m, 256.0 + 6.0);
    }
}

#[test]
fn every_tile_height_matches_f64() {
    for m in 1..=29 {
        both!(check_epilogues(m, 40, 37, m as u64));
    }
}

/// The head of a bf16 model can give f32 logits that were never rounded to bf16.
#[test]
fn bf16_weights_produce_unrounded_f32_outputs() {
    let mut noise = Noise::new(3);
    let (x, w) = (noise.take::<bf16>(6 * 64, 1.0), noise.take::<bf16>(48 * 64, 1.0));
    let (y, size) = reference::linear(&wide(&x), &wide(&w), 64, None);
    for pool in pools() {
        let mut out = vec![0.0_f32; 6 * 48];
        PackedLinear::new(&pool, &[&w], 64, None).forward(&pool, &x, 6, &mut out, Epilogue::Store);
        close("f32 logits", &out, &y, |i| sum_bound(64, size[i]));
    }
}

#[test]
fn empty_rows_and_columns_are_accepted() {
    for pool in pools() {
        PackedLinear::new(&pool, &[&[1.0_f32; 8]], 4, None).forward(
            &pool,
            &[],
            0,
            &mut [0.0_f32; 0],
            Epilogue::Store,
        );
        PackedLinear::<f32>::new(&pool, &[&[]], 4, None).forward(
            &pool,
            &[0.0; 4],
            1,
            &mut [0.0_f32; 0],
            Epilogue::Store,
        );
    }
}
