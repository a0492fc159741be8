//! Laws of dual encoders on every synthetic checkpoint: a pair gives the same whatever other images and texts there are,
//! padding and what follows the end of a text do not matter, and inputs that do not fit are refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{DType, Device, IndexOp, Tensor};
use models::{Backend, Cache, Inputs, Kind, Loaded};

use super::laws::{EXACT, Trace, assert_row_same, each, token};

/// Lengths of the texts; fewer images than texts.
const TEXTS: [usize; 3] = [24, 17, 9];
const IMAGES: usize = 2;
/// The last token of each text: `eos_token_id` of the default checkpoint, and the largest id of its vocabulary but two.
const END: u32 = 285;

fn each_dual_encoder(dtype: DType, backend: Backend, law: impl Fn(&str, Loaded)) {
    each(|kind| kind == Kind::DualEncoder, dtype, backend, law);
}

/// `[1, length + after]`: a text that ends with [`END`], followed by `filler`.
fn text(row: usize, after: usize, filler: u32) -> Tensor {
    let ids = (0..TEXTS[row] - 1).map(|column| token(row, column)).chain([END]);
    let ids: Vec<u32> = ids.chain(std::iter::repeat_n(filler, after)).collect();
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

/// `[1, 3, 12, 12]`.
fn image(index: usize) -> Tensor {
    let value = |i: usize| (f64::from(token(index, i)) / 140.0 - 1.0) as f32;
    Tensor::from_iter((0..3 * 12 * 12).map(value), &Device::Cpu).unwrap().reshape((1, 3, 12, 12)).unwrap()
}

fn images() -> Tensor {
    Tensor::cat(&(0..IMAGES).map(image).collect::<Vec<_>>(), 0).unwrap()
}

/// All texts, padded on the right, and all images.
fn batch() -> Inputs {
    let rows: Vec<Tensor> = (0..TEXTS.len()).map(|row| text(row, TEXTS[0] - TEXTS[row], 1)).collect();
    let mask = TEXTS.iter().flat_map(|length| (0..TEXTS[0]).map(move |column| i64::from(column < *length)));
    let mask = Tensor::from_iter(mask, &Device::Cpu).unwrap().reshape((TEXTS.len(), TEXTS[0])).unwrap();
    let inputs = Inputs { attention_mask: Some(mask), ..Inputs::new(Tensor::cat(&rows, 0).unwrap()) };
    inputs.with("pixel_values", images())
}

#[test]
fn a_pair_gives_the_same_alone_and_with_other_images_and_texts() {
    for (dtype, backend, bound) in EXACT {
        each_dual_encoder(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch()).unwrap();
            assert_eq!(whole.dims(), [IMAGES, TEXTS.len()], "{name}");
            for row in 0..TEXTS.len() {
                let column = whole.i((.., row..=row)).unwrap();
                // Without a mask, and with other tokens after the end, which attention is too early to see.
                for ids in [text(row, 0, 0), text(row, 4, 1), text(row, 3, 100)] {
                    let pairs = loaded.forward(&Inputs::new(ids).with("pixel_values", images())).unwrap();
                    assert_row_same(&format!("{name} text {row}"), &pairs, &column, bound);
                }
            }
            for index in 0..IMAGES {
                let row = loaded.forward(&batch().with("pixel_values", image(index))).unwrap();
                assert_row_same(
                    &format!("{name} image {index}"),
                    &row,
                    &whole.i(index..=index).unwrap(),
                    bound,
                );
            }
        });
    }
}

#[test]
fn a_probe_changes_nothing_and_sees_embeddings_of_transformers_shapes() {
    for (dtype, backend) in [
        (DType::F64, Backend::Eager),
        (DType::BF16, Backend::Eager),
        (DType::F32, Backend::Fused),
        (DType::BF16, Backend::Fused),
    ] {
        each_dual_encoder(dtype, backend, |name, mut loaded| {
            let mut trace = Trace::default();
            let plain = loaded.forward(&batch()).unwrap();
            let probed = loaded.forward_with(&batch(), None, Some(&mut trace)).unwrap();
            let values = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
            assert_eq!(values(&plain), values(&probed), "{name} {dtype:?}");
            // The fused backend keeps a dimension for the one position of a pooled value.
            let shapes: Vec<(String, Vec<usize>)> = (trace.outputs.into_iter())
                .map(|(path, dims)| (path, dims.into_iter().filter(|size| *size != 1).collect()))
                .collect();
            for (path, shape) in [
                ("text_projection", vec![TEXTS.len(), 40]),
                ("visual_projection", vec![IMAGES, 40]),
                ("vision_model.embeddings.patch_embedding", vec![IMAGES, 64, 3, 3]),
                ("vision_model.embeddings", vec![IMAGES, 10, 64]),
            ] {
                assert!(shapes.contains(&(path.to_owned(), shape)), "{name}: {path} in {shapes:?}");
            }
        });
    }
}

#[test]
fn inputs_that_do_not_fit_and_a_cache_are_refused() {
    each_dual_encoder(DType::F32, Backend::Eager, |name, mut loaded| {
        let text = Inputs::new(text(0, 0, 0));
        for (inputs, expected) in [
            (text.clone(), "inputs: the model needs pixel_values"),
            (
                text.clone().with("pixel_values", image(0).i(0).unwrap()),
                "where [images, 3, 12, 12] is needed",
            ),
            (text.clone().with("pixel_values", images().narrow(0, 0, 0).unwrap()), "pixel_values is empty"),
            (text.clone().with("decoder_input_ids", image(0)), "clip takes no decoder_input_ids"),
        ] {
            let error = loaded.forward(&inputs).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let error = loaded.forward_with(&batch(), Some(&mut Cache::new()), None).unwrap_err();
        assert!(error.to_string().contains("KV cache"), "{name}: {error}");
    });
}
