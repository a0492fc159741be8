//! Tests of the emulated device: products, graphs, guards.

use super::noise::Noise;
use super::reference;
use super::{GPUS, U32, close, get, noise, put, stored};
use models::cuda::kernels::{Map, MapOp, Source};
use models::cuda::{Dtype, MatMul, Region, matmul};

#[test]
fn products_apply_alpha_bias_beta_and_strides() {
    let gpu = &GPUS[0];
    let (m, n, k, xs_row, out_row) = (5, 7, 9, 11, 8);
    for dtype in Dtype::ALL {
        for (out_dtype, beta) in [(dtype, 0.0), (dtype, 0.5), (Dtype::F32, 1.0)] {
            let mut random = Noise::new(3);
            let xs = noise(&mut random, dtype, m * xs_row, 1.0);
            let weight = noise(&mut random, dtype, n * k, 1.0);
            let bias = noise(&mut random, out_dtype, n, 1.0);
            let before = noise(&mut random, out_dtype, m * out_row, 1.0);
            // If beta is 0, the previous content must not be read.
            let there = if beta > 0.0 { before.clone() } else { vec![f64::NAN; m * out_row] };
            let out = put(gpu, out_dtype, &there);
            let spec = MatMul { m, n, k, xs_row, out_row, dtype, out_dtype, alpha: 2.0, beta };
            let [xs_at, weight_at] = [&xs, &weight].map(|values| put(gpu, dtype, values));
            matmul(&spec, &xs_at, &weight_at, Some(&put(gpu, out_dtype, &bias)), &out).unwrap();
            let got = get(&out, out_dtype, m * out_row);
            for i in 0..m {
                let (y, size) = reference::linear(&xs[i * xs_row..][..k], &weight, k, None);
                let old = |j: usize| if beta > 0.0 { f64::from(beta) * before[i * out_row + j] } else { 0.0 };
                let want: Vec<f64> = (0..n).map(|j| 2.0 * y[j] + bias[j] + old(j)).collect();
                close("product", &got[i * out_row..][..n], &want, |j| {
                    2.0 * (k as f64 + 4.0) * U32 * (size[j] + 2.0) + stored(out_dtype, want[j])
                });
            }
        }
    }
}

#[test]
fn a_captured_graph_runs_again_on_new_inputs() {
    let gpu = &GPUS[0];
    let xs = put(gpu, Dtype::F32, &[1.0, 2.0, 3.0]);
    let doubled =
        || Map { dtype: Dtype::F32, op: MapOp::Scale(2.0), len: 3, xs: &xs, other: None, out: &xs }.launch();
    let graph = gpu.record(&mut || doubled()).unwrap();
    assert_eq!(xs.download::<f32>(3).unwrap(), [1.0, 2.0, 3.0], "recorded, not run");
    graph.replay().unwrap();
    xs.upload(&[5.0_f32]).unwrap();
    graph.replay().unwrap();
    assert_eq!(xs.download::<f32>(3).unwrap(), [10.0, 8.0, 12.0]);
    let error = gpu.record(&mut || xs.upload(&[1.0_f32])).unwrap_err().to_string();
    assert!(error.contains("an upload while a pass is recorded"), "{error}");
    doubled().unwrap();
}

#[test]
fn regions_stay_inside_their_buffers() {
    let gpu = &GPUS[0];
    let room = Region::room(gpu, Dtype::F32, 4).unwrap();
    assert!(
        room.upload(&[0.0_f32; 5]).unwrap_err().to_string().contains("upload needs 5 elements of 4 bytes")
    );
    assert!(room.download::<f32>(5).is_err());
    let part = room.part(8, 8);
    part.upload(&[7_u32, 8]).unwrap();
    assert_eq!(room.download::<u32>(4).unwrap()[2..], [7, 8]);
    assert!(room.part(2, 8).download::<f32>(1).unwrap_err().to_string().contains("not aligned"));
    assert!(room.copy_to(&part).is_err(), "too short and overlapping");
    part.copy_to(&room).unwrap();
    assert_eq!(room.download::<u32>(2).unwrap(), [7, 8]);
}

#[test]
fn kernel_names_are_unique_and_in_their_source() {
    let mut names: Vec<&str> =
        Source::ALL.into_iter().flat_map(Source::kernels).map(|kernel| kernel.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for source in Source::ALL {
        assert!(source.kernels().next().is_some(), "{} has no kernels", source.name());
        // The source contains the full name, or a macro builds it from stem and type.
        for kernel in source.kernels() {
            let text = source.text(&[kernel.dtype]);
            let stem = kernel.name.trim_end_matches(kernel.dtype.suffix());
            let stem = stem.trim_start_matches("decode_").trim_start_matches(|c: char| c.is_ascii_digit());
            assert!(text.contains(stem), "{} is not in {}", kernel.name, source.name());
        }
    }
}
