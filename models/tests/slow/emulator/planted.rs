//! Tests of these tests: each bug planted in the kernel sources must be detected.

use std::sync::Arc;

use super::attention::{Case, run, tolerance};
use super::{get, put};
use models::cuda::kernels::{Norm, NormForm};
use models::cuda::{Dtype, Emulator, Gpu, Order, Region};

/// The largest error of attention divided by its tolerance, after replacing `from` by `to` in the source.
fn worst(case: &Case, from: &str, to: &str) -> f64 {
    let gpu = Emulator::planted(from, to);
    let [got, want] = run(case, 9, |case| case(&gpu));
    let off = |(got, want): (&f64, &f64)| if got.is_nan() { f64::INFINITY } else { (got - want).abs() };
    got.iter().zip(&want).map(off).fold(0.0, f64::max) / tolerance(case)
}

#[test]
fn an_off_by_one_bound_is_detected_in_every_attention_kernel() {
    for dtype in Dtype::ALL {
        for tokens in [1, 40] {
            let case = Case { before: Some(11), ..Case::plain(dtype, tokens, 30, 2, 64) };
            let unchanged = worst(&case, "slot - p.before", "slot - p.before");
            assert!(unchanged <= 1.0, "{dtype:?}, {tokens} tokens, nothing planted: {unchanged}");
            // A window of W + 1 keys; a causal mask without the query's own key.
            for (from, to) in
                [("slot - p.before", "slot - p.before - 1"), ("slot + p.after + 1", "slot + p.after")]
            {
                let off = worst(&case, from, to);
                assert!(off > 2.0, "{dtype:?}, {tokens} tokens, {to}: {off}");
            }
        }
    }
}

#[test]
fn wrong_fragments_strides_and_stages_are_detected() {
    // Three tiles of keys; fifteen blocks on four multiprocessors.
    let case = Case::plain(Dtype::Bf16, 300, 0, 3, 64);
    let split = Case { room: 60, ..Case::plain(Dtype::F16, 1, 700, 3, 64) };
    let plants: [(&Case, &str, &str); 10] = [
        // Swapped halves of a fragment; the adjacent row of matrices; the wrong stage.
        (&case, "mma<T>(s[2 * n], a, b[0], b[1])", "mma<T>(s[2 * n], a, b[1], b[0])"),
        (&case, "lane % 8 + lane / 16 * 8", "lane % 16"),
        (&case, "stage = tile % 2", "stage = 0"),
        // A copy that is not waited for.
        (&case, "wait_copies<1>()", "wait_copies<2>()"),
        // The running output is not rescaled to the new maximum.
        (&case, "out[i][j] *= keep[j / 2]", "out[i][j] *= 1.0f"),
        // The second part uses the first part's key positions; its sums are not rescaled to the common maximum; a block
        // runs twice.
        (&case, "first_key += part * KEYS", "first_key += 0"),
        (&case, "sums[feature * STEP] * take", "sums[feature * STEP]"),
        (&case, "at = most - 1 - at", "at = most / 2"),
        // The last key of a part is omitted; one part is lost.
        (&split, "smaller(seen.end, start + part)", "smaller(seen.end, start + part - 1)"),
        (&split, "i < p.splits; ++i) {", "i < p.splits - 1; ++i) {"),
    ];
    for (case, from, to) in plants {
        let off = worst(case, from, to);
        assert!(off > 2.0, "{to}: {off}");
    }
}

fn norm(gpu: &Arc<dyn Gpu>) -> models::Result<Vec<f64>> {
    let xs: Vec<f64> = (0..2 * 640).map(|i| f64::from(i % 13) - 5.0).collect();
    let (xs, out) = (put(gpu, Dtype::F32, &xs), Region::room(gpu, Dtype::F32, 2 * 640)?);
    let norm = Norm {
        dtype: Dtype::F32,
        form: NormForm::Norm,
        centred: true,
        eps: 1e-5,
        rows: 2,
        heads: 1,
        size: 640,
        xs: &xs,
        xs_row: 640,
        residual: None,
        weight: None,
        weight_per_head: false,
        bias: None,
        out: &out,
        out_row: 640,
    };
    norm.launch()?;
    Ok(get(&out, Dtype::F32, 2 * 640))
}

#[test]
fn a_missing_barrier_changes_the_result() {
    let forward = norm(&Emulator::start(Order::Forward)).unwrap();
    // The block's sum is read before all warps have written theirs.
    let barrier = "block_barrier();\n    float total";
    let planted = norm(&Emulator::planted(barrier, "float total")).unwrap();
    assert!(forward.iter().zip(&planted).any(|(a, b)| a.to_bits() != b.to_bits()));
}

#[test]
fn writing_outside_of_memory_and_uneven_barriers_are_errors() {
    let outside = Emulator::planted("store8(out + i, x", "store8(out + i + 8, x");
    let error = norm(&outside).unwrap_err().to_string();
    assert!(error.contains("norm_f32 wrote outside of a buffer"), "{error}");
    let uneven = Emulator::planted(
        "float mean = 0.0f;\n    if (p.centred)",
        "float mean = 0.0f;\n    if (thread_index() == 0) return;\n    if (p.centred)",
    );
    let error = norm(&uneven).unwrap_err().to_string();
    assert!(error.contains("some lanes of a warp"), "{error}");
}

#[test]
fn a_struct_with_another_layout_than_in_rust_does_not_compile() {
    let other = Emulator::planted("int size, heads, xs_row, out_row;", "int heads, size, xs_row, out_row;");
    let error = norm(&other).unwrap_err().to_string();
    assert!(error.contains("NormParams::size"), "{error}");
}
