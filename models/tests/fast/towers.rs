//! Laws of encoders by themselves, a tower of CLIP or T5's encoder, on every synthetic checkpoint: a text or an image gives the
//! same whatever stands beside it and with padding, a probe changes nothing, and inputs that do not fit are refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{DType, Device, IndexOp, Tensor};
use models::{Backend, Cache, Inputs, Kind, Loaded};

use super::laws::{EXACT, Trace, assert_row_same, each, token};

const TEXTS: [usize; 3] = [24, 17, 9];
const IMAGES: usize = 3;

fn each_of(kind: Kind, dtype: DType, backend: Backend, law: impl Fn(&str, Loaded)) {
    each(|found| found == kind, dtype, backend, law);
}

/// `[1, length]`; the last token has the largest id, at which CLIP of early checkpoints pools a text, and the others pool at
/// the first token without their end token.
fn text(row: usize) -> Tensor {
    let ids: Vec<u32> = (0..TEXTS[row] - 1).map(|column| token(row, column)).chain([287]).collect();
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

/// All texts, padded on the right.
fn texts() -> Inputs {
    let seq = TEXTS[0];
    let padded = |row: usize| text(row).pad_with_zeros(1, 0, seq - TEXTS[row]).unwrap();
    let rows: Vec<Tensor> = (0..TEXTS.len()).map(padded).collect();
    let mask = TEXTS.iter().flat_map(|length| (0..seq).map(move |column| i64::from(column < *length)));
    let mask = Tensor::from_iter(mask, &Device::Cpu).unwrap().reshape((TEXTS.len(), seq)).unwrap();
    Inputs { attention_mask: Some(mask), ..Inputs::new(Tensor::cat(&rows, 0).unwrap()) }
}

/// `[1, 3, 12, 12]`.
fn image(index: usize) -> Tensor {
    let value = |i: usize| (f64::from(token(index, i)) / 140.0 - 1.0) as f32;
    Tensor::from_iter((0..3 * 12 * 12).map(value), &Device::Cpu).unwrap().reshape((1, 3, 12, 12)).unwrap()
}

/// These images; a model of images reads no tokens.
fn images(indices: &[usize]) -> Inputs {
    let pixels: Vec<Tensor> = indices.iter().map(|index| image(*index)).collect();
    Inputs::new(text(0)).with("pixel_values", Tensor::cat(&pixels, 0).unwrap())
}

#[test]
fn a_text_gives_the_same_alone_and_in_a_batch() {
    for (dtype, backend, bound) in EXACT {
        each_of(Kind::TextEncoder, dtype, backend, |name, mut loaded| {
            let whole = loaded.outputs(&texts()).unwrap();
            for (row, length) in TEXTS.into_iter().enumerate() {
                for ((output, alone), (_, whole)) in
                    loaded.outputs(&Inputs::new(text(row))).unwrap().into_iter().zip(&whole)
                {
                    let whole = if whole.rank() == 3 { whole.i((row, ..length)) } else { whole.i(row) };
                    let name = format!("{name} text {row} {output}");
                    assert_row_same(&name, &alone.i(0).unwrap(), &whole.unwrap(), bound);
                }
            }
        });
    }
}

#[test]
fn an_image_gives_the_same_alone_and_in_a_batch() {
    let all: Vec<usize> = (0..IMAGES).collect();
    for (dtype, backend, bound) in EXACT {
        each_of(Kind::ImageEncoder, dtype, backend, |name, mut loaded| {
            let whole = loaded.outputs(&images(&all)).unwrap();
            for index in 0..IMAGES {
                for ((output, alone), (_, whole)) in
                    loaded.outputs(&images(&[index])).unwrap().into_iter().zip(&whole)
                {
                    let name = format!("{name} image {index} {output}");
                    assert_row_same(&name, &alone.i(0).unwrap(), &whole.i(index).unwrap(), bound);
                }
            }
        });
    }
}

#[test]
fn a_probe_changes_nothing_and_sees_every_output() {
    for (dtype, backend) in
        [(DType::F64, Backend::Eager), (DType::F32, Backend::Fused), (DType::BF16, Backend::Fused)]
    {
        for (kind, inputs) in [(Kind::TextEncoder, texts()), (Kind::ImageEncoder, images(&[0, 1]))] {
            each_of(kind, dtype, backend, |name, mut loaded| {
                let mut trace = Trace::default();
                let plain = loaded.forward(&inputs).unwrap();
                let probed = loaded.forward_with(&inputs, None, Some(&mut trace)).unwrap();
                let values =
                    |xs: &Tensor| xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>();
                assert_eq!(values(&plain).unwrap(), values(&probed).unwrap(), "{name} {dtype:?}");
                assert!(trace.open.is_empty() && !trace.outputs.is_empty(), "{name}");
            });
        }
    }
}

#[test]
fn outputs_have_the_names_and_shapes_of_transformers() {
    let shapes = |loaded: &mut Loaded, inputs: &Inputs| -> Vec<(&'static str, Vec<usize>)> {
        let outputs = loaded.outputs(inputs).unwrap();
        outputs.into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec())).collect()
    };
    let (states, pooled) = ("last_hidden_state", "pooler_output");
    let (dtype, backend) = (DType::F32, Backend::Fused);
    each_of(Kind::TextEncoder, dtype, backend, |name, mut loaded| {
        let expected = match name.split(' ').next().unwrap() {
            "clip_text_model:" => vec![(states, vec![3, 24, 48]), (pooled, vec![3, 48])],
            "clip_text_model:projection" => vec![("text_embeds", vec![3, 40]), (states, vec![3, 24, 48])],
            _ => vec![(states, vec![3, 24, 64])],
        };
        assert_eq!(shapes(&mut loaded, &texts()), expected, "{name}");
    });
    each_of(Kind::ImageEncoder, dtype, backend, |name, mut loaded| {
        let expected = match name.split(' ').next().unwrap() {
            "clip_vision_model:" => vec![(states, vec![2, 10, 64]), (pooled, vec![2, 64])],
            _ => vec![("image_embeds", vec![2, 40]), (states, vec![2, 10, 64])],
        };
        assert_eq!(shapes(&mut loaded, &images(&[0, 1])), expected, "{name}");
    });
}

#[test]
fn a_cache_and_inputs_that_do_not_fit_are_refused() {
    let (dtype, backend) = (DType::F32, Backend::Eager);
    let check = |name: &str, loaded: &mut Loaded, inputs: &Inputs, expected: &str| {
        let error = loaded.forward(inputs).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    };
    for (kind, inputs) in [(Kind::TextEncoder, texts()), (Kind::ImageEncoder, images(&[0]))] {
        each_of(kind, dtype, backend, |name, mut loaded| {
            let error = loaded.forward_with(&inputs, Some(&mut Cache::new()), None).unwrap_err().to_string();
            assert!(error.contains("KV cache"), "{name}: {error}");
            check(name, &mut loaded, &inputs.clone().with("labels", image(0)), "takes no labels");
        });
    }
    each_of(Kind::ImageEncoder, dtype, backend, |name, mut loaded| {
        check(name, &mut loaded, &texts(), "the model needs pixel_values");
        let none = Inputs::new(text(0)).with("pixel_values", image(0).narrow(0, 0, 0).unwrap());
        check(name, &mut loaded, &none, "pixel_values is empty");
    });
    each_of(Kind::TextEncoder, dtype, backend, |name, mut loaded| {
        check(name, &mut loaded, &images(&[0]), "takes no pixel_values");
    });
}
