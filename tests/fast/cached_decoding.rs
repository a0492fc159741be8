//! Native encoder-decoders and decoders with images through a KV cache, as the worker runs them.

use candle_core::{DType, Device, Tensor};
use reference::protocol::{
    ATTENTION_MASK, DECODER_ATTENTION_MASK, DECODER_INPUT_IDS, Dtype, Forward, Generate, INPUT_IDS, LOGITS,
    Mode, POSITION_IDS,
};
use tfcheck::execute::worker::Engine;
use tfcheck::execute::worker::candle::CandleEngine;

use crate::setting::Setting;

/// Tokens to decode.
const TOKENS: usize = 4;

fn logits(engine: &mut CandleEngine, setting: &Setting, forward: impl Fn(Forward) -> Forward) -> Tensor {
    let path = setting.folder.path().join("logits.safetensors");
    engine.forward(&forward(Forward::new(path.clone()))).unwrap();
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()[LOGITS].clone()
}

/// A decoder padded on the left in its second row.
fn padded(setting: &Setting) -> std::path::PathBuf {
    setting.changed_inputs(|tensors| {
        let (rows, seq) = tensors[DECODER_INPUT_IDS].dims2().unwrap();
        let real = (0..rows * seq).map(|at| i64::from(at < seq || at % seq >= 5)).collect();
        let mask = Tensor::from_vec(real, (rows, seq), &Device::Cpu).unwrap();
        tensors.insert(DECODER_ATTENTION_MASK.to_owned(), mask);
    })
}

#[test]
fn an_encoder_decoder_generates_the_tokens_of_its_full_passes_and_counts_the_decoders_tokens() {
    for checkpoint in ["t5", "t5:gated-untied", "whisper"] {
        let setting = Setting::with_made_inputs(checkpoint);
        for inputs in [setting.inputs(), padded(&setting)] {
            let mut engine = CandleEngine::default();
            let load =
                reference::protocol::Load { inputs: inputs.clone(), ..setting.load(Mode::Eager, Dtype::F64) };
            engine.load(&load).unwrap();
            let whole = logits(&mut engine, &setting, |forward| forward);
            assert_eq!(whole.dims(), [2, 27, 288], "{checkpoint}");
            for (prefill, chunks) in [(Some(1), vec![]), (Some(26), vec![]), (None, vec![20, 7])] {
                let parts = logits(&mut engine, &setting, |forward| Forward {
                    prefill,
                    chunks: chunks.clone(),
                    ..forward
                });
                // Padding of the second row attends to nothing, so that its own logits are arbitrary.
                let real = |logits: &Tensor| logits.narrow(1, 5, 22).unwrap();
                let apart = (real(&parts) - real(&whole)).unwrap().abs().unwrap().max_all().unwrap();
                let apart = apart.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
                // Another order of summation changes float64 logits of up to 30 by about 1e-14.
                assert!(apart < 1e-11, "{checkpoint} {prefill:?} {chunks:?}: {apart:e}");
            }
            let generated = engine.generate(&Generate { tokens: TOKENS }).unwrap().ids;
            assert_eq!(engine.decode(TOKENS).unwrap().len(), TOKENS, "{checkpoint}");
            // The same tokens as the best ones of full passes over all tokens before them.
            let mut tensors = candle_core::safetensors::load(&inputs, &Device::Cpu).unwrap();
            let append = |tensors: &mut crate::setting::Tensors, name: &str, more: Vec<i64>| {
                if let Some(known) = tensors.get(name) {
                    let more = Tensor::from_vec(more, (2, TOKENS), &Device::Cpu).unwrap();
                    let longer = Tensor::cat(&[known, &more], 1).unwrap();
                    tensors.insert(name.to_owned(), longer);
                }
            };
            append(&mut tensors, DECODER_INPUT_IDS, generated.concat());
            append(&mut tensors, DECODER_ATTENTION_MASK, vec![1; 2 * TOKENS]);
            let longer = setting.folder.path().join("longer.safetensors");
            candle_core::safetensors::save(&tensors, &longer).unwrap();
            engine.load(&reference::protocol::Load { inputs: longer, ..load }).unwrap();
            let best = logits(&mut engine, &setting, |forward| forward).argmax(2).unwrap();
            let best = best.narrow(1, 26, TOKENS).unwrap().to_dtype(DType::I64).unwrap();
            assert_eq!(best.to_vec2::<i64>().unwrap(), generated, "{checkpoint}");
        }
    }
}

#[test]
fn a_model_of_texts_and_images_has_no_cache() {
    let setting = Setting::with_made_inputs("clip");
    let mut engine = CandleEngine::default();
    engine.load(&setting.load(Mode::Eager, Dtype::F32)).unwrap();
    let path = setting.folder.path().join("logits.safetensors");
    let failed = engine.forward(&Forward::prefilled(path, Some(8))).unwrap_err();
    assert!(failed.message.contains("KV cache"), "{}", failed.message);
    assert!(engine.decode(TOKENS).unwrap().is_empty());
}

#[test]
fn a_decoder_with_images_takes_them_in_the_first_pass_and_counts_on_from_their_positions() {
    for checkpoint in ["qwen2_vl", "qwen2_vl:window"] {
        let setting = Setting::with_made_inputs(checkpoint);
        let inputs = candle_core::safetensors::load(setting.inputs(), &Device::Cpu).unwrap();
        let mask = &inputs[ATTENTION_MASK];
        let (rows, seq) = mask.dims2().unwrap();
        let images: Vec<Vec<i64>> = inputs["mm_token_type_ids"].to_vec2().unwrap();
        let end = images.iter().filter_map(|row| row.iter().rposition(|kind| *kind != 0)).max().unwrap() + 1;
        assert!(rows == 2 && end + 4 < seq, "{checkpoint}: images up to {end} of {seq}");
        let mut engine = CandleEngine::default();
        let load = setting.load(Mode::Eager, Dtype::F64);
        engine.load(&load).unwrap();
        let whole = logits(&mut engine, &setting, |forward| forward);
        let real = mask.to_dtype(DType::F64).unwrap().unsqueeze(2).unwrap();
        for (prefill, chunks) in
            [(Some(end), vec![]), (Some(seq - 1), vec![]), (None, vec![end + 1, seq - end - 1])]
        {
            let parts = logits(&mut engine, &setting, |forward| Forward {
                prefill,
                chunks: chunks.clone(),
                ..forward
            });
            let apart = (parts - &whole).unwrap().broadcast_mul(&real).unwrap().abs().unwrap();
            let apart = apart.max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(apart < 1e-11, "{checkpoint} {prefill:?} {chunks:?}: {apart:e}");
        }
        // The first pass must have all tokens of an image.
        let path = setting.folder.path().join("logits.safetensors");
        let failed = engine.forward(&Forward::prefilled(path, Some(end - 1))).unwrap_err();
        assert!(failed.message.contains("image tokens"), "{}", failed.message);
        let generated = engine.generate(&Generate { tokens: TOKENS }).unwrap().ids;
        assert_eq!(engine.decode(TOKENS).unwrap().len(), TOKENS, "{checkpoint}");
        // The same tokens as the best ones of full passes over all tokens before them.
        let mut tensors = inputs.clone();
        for (name, more) in [
            (INPUT_IDS, generated.concat()),
            (ATTENTION_MASK, vec![1; rows * TOKENS]),
            (POSITION_IDS, vec![0; rows * TOKENS]),
            ("mm_token_type_ids", vec![0; rows * TOKENS]),
        ] {
            let more = Tensor::from_vec(more, (rows, TOKENS), &Device::Cpu).unwrap();
            tensors.insert(name.to_owned(), Tensor::cat(&[&inputs[name], &more], 1).unwrap());
        }
        let longer = setting.folder.path().join("longer.safetensors");
        candle_core::safetensors::save(&tensors, &longer).unwrap();
        engine.load(&reference::protocol::Load { inputs: longer, ..load }).unwrap();
        let best = logits(&mut engine, &setting, |forward| forward).argmax(2).unwrap();
        let best = best.narrow(1, seq - 1, TOKENS).unwrap().to_dtype(DType::I64).unwrap();
        assert_eq!(best.to_vec2::<i64>().unwrap(), generated, "{checkpoint}");
    }
}
