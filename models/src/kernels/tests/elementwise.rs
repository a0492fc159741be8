use super::super::{
    Element, Embedding, PackedLinear, TokenOutOfRange, add, embed, multiply, scale, softcap, softmax,
};
use super::{Noise, U32, both, close, most, pools, roundoff, shapes, wide};
use half::bf16;
use proptest::prelude::*;

fn check<T: Element>(rows: usize, n: usize, seed: u64) {
    let mut noise = Noise::new(seed);
    let (x, y) = (noise.take::<T>(rows * n, 8.0), noise.take::<T>(rows * n, 8.0));
    let u = roundoff::<T>();
    for pool in pools() {
        let mut out = x.clone();
        softmax(&pool, &mut out, n);
        let want: Vec<f64> = wide(&x)
            .chunks_exact(n)
            .flat_map(|row| {
                let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = row.iter().map(|v| (v - top).exp()).sum();
                row.iter().map(|v| (v - top).exp() / total).collect::<Vec<_>>()
            })
            .collect();
        // exp is good to 2.5e-7 plus the rounding of a difference of up to 16, the sum to n roundoffs.
        close("softmax", &out, &want, |i| (1e-6 + 20.0 * U32 + n as f64 * U32 + u) * want[i]);

        out.copy_from_slice(&x);
        softcap(&pool, &mut out, 5.0);
        let want: Vec<f64> = wide(&x).iter().map(|x| 5.0 * (x / 5.0).tanh()).collect();
        close("softcap", &out, &want, |i| (6e-7 + u) * want[i].abs());

        out.copy_from_slice(&x);
        add(&pool, &mut out, &y, 0.5);
        let want: Vec<f64> = wide(&x).iter().zip(wide(&y)).map(|(x, y)| x + 0.5 * y).collect();
        close("add", &out, &want, |i| u * want[i].abs());

        out.copy_from_slice(&x);
        multiply(&pool, &mut out, &y);
        let want: Vec<f64> = wide(&x).iter().zip(wide(&y)).map(|(x, y)| x * y).collect();
        close("multiply", &out, &want, |i| u * want[i].abs());

        out.copy_from_slice(&x);
        scale(&pool, &mut out, 0.75);
        let want: Vec<f64> = wide(&x).iter().map(|x| x * 0.75).collect();
        close("scale", &out, &want, |i| u * want[i].abs());

        let head = PackedLinear::new(&pool, &[&x], n, None);
        let ids: Vec<u32> = (0..9).map(|i| (i * 5 % rows) as u32).collect();
        for from in [Embedding::Table(&x), Embedding::Tied(&head)] {
            let mut out = vec![T::default(); 9 * n];
            embed(&pool, from, &ids, Some(2.0), &mut out).expect("ids are rows");
            let want: Vec<f64> =
                ids.iter().flat_map(|id| wide(&x[*id as usize * n..][..n])).map(|x| 2.0 * x).collect();
            close("embedding", &out, &want, |_| 0.0);
            let outside = embed(&pool, from, &[rows as u32], None, &mut out[..n]);
            assert_eq!(outside, Err(TokenOutOfRange { id: rows as u32, vocab: rows }));
        }
    }
}

proptest! {
    #![proptest_config(shapes(24))]

    #[test]
    fn elementwise_kernels_match_f64(rows in 1..most(30, 4), n in 1..most(200, 40), seed: u64) {
        both!(check(rows, n, seed));
    }
}

#[test]
fn softmax_of_a_fully_masked_row_is_zero() {
    for pool in pools() {
        let mut row = [f32::NEG_INFINITY; 21];
        softmax(&pool, &mut row, 21);
        close("nothing", &row, &[0.0; 21], |_| 0.0);
    }
}
