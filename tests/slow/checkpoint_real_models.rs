//! Imports real GGUF files; the expected values are what transformers 5.23 reads from them (`gguf_file=`).

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]
#![expect(clippy::unreadable_literal, reason = "token ids and fingerprints as Python prints them")]

use std::path::{Path, PathBuf};

use tfcheck::spec::checkpoint::{self, Checkpoint, Settings};
use tfcheck::spec::inputs::{self, Fill, Message, Prompt, Spec};

/// Texts whose token ids change with a wrong normaliser, pre-tokenizer or merge order.
const TEXTS: [&str; 6] = [
    "Hello, world! It's 2026.",
    "def f(x):\n    return x ** 2  # naïve\n\n\n\treturn",
    "Zürich — 東京 🦀👩‍🚀 <b>&amp;</b>",
    "   three leading spaces and trailing  ",
    "e\u{301}\u{200b}\u{a0}x",
    "AAAAaaaa 1234567890 0.5e-3",
];

fn resolve(path: &Path) -> Checkpoint {
    let settings = Settings::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("real_models"));
    checkpoint::resolve(path.to_str().unwrap(), &settings, &mut |_| ()).unwrap()
}

fn file(part: &str) -> PathBuf {
    let entries = std::fs::read_dir(crate::support::real_models()).unwrap();
    let found = entries
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().to_lowercase().contains(part));
    found.unwrap_or_else(|| panic!("no file is named like `{part}`"))
}

/// What transformers reads: token ids of [`TEXTS`], and the shape and fingerprint of a few weights.
struct Expected {
    ids: [&'static [i64]; 6],
    weights: &'static [(&'static str, [usize; 2], u64)],
}

/// Wrapping sum of every value's bits times its place, so that a changed value or order changes the sum.
fn fingerprint(bytes: &[u8]) -> u64 {
    let (chunks, _) = bytes.as_chunks::<4>();
    let place =
        |(i, chunk): (usize, &[u8; 4])| u64::from(u32::from_le_bytes(*chunk)).wrapping_mul(i as u64 + 1);
    chunks.iter().enumerate().map(place).fold(0, u64::wrapping_add)
}

fn check(part: &str, expected: &Expected) {
    let path = file(part);
    let checkpoint = resolve(&path);
    for (text, expected) in TEXTS.iter().zip(expected.ids) {
        let spec = Spec::Prompts {
            prompts: vec![Prompt::Text((*text).to_owned())],
            fill: Fill::AsNeeded,
            choices: Vec::new(),
        };
        assert_eq!(inputs::make(&spec, &checkpoint).unwrap()[0].input_ids, expected, "{text:?}");
    }
    let bytes = std::fs::read(&checkpoint.weights[0]).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, shape, expected) in expected.weights {
        let tensor = tensors.tensor(name).unwrap();
        let shape: Vec<_> = shape.iter().copied().filter(|size| *size > 0).collect();
        assert_eq!(tensor.shape(), shape, "{name}");
        assert_eq!(fingerprint(tensor.data()), *expected, "{name}");
    }
}

#[test]
fn smollm2_imports_as_transformers_reads_it() {
    check(
        "smollm2-135m",
        &Expected {
            ids: [
                &[19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 38, 30],
                &[
                    1604, 275, 24, 104, 727, 472, 1003, 1792, 1903, 216, 34, 216, 907, 15486, 46494, 16506,
                    197, 5406,
                ],
                &[
                    74, 7170, 5130, 1841, 17097, 247, 126, 16736, 122, 15107, 116, 218, 10813, 235, 119, 321,
                    231, 10813, 244, 218, 2067, 82, 46, 22, 1613, 43, 9617, 82, 46,
                ],
                &[256, 1296, 2899, 5600, 284, 35079, 256],
                &[85, 151, 219, 321, 229, 15442, 104],
                &[26024, 46880, 216, 33, 34, 35, 36, 37, 38, 39, 40, 41, 32, 216, 32, 30, 37, 85, 29, 35],
            ],
            weights: &[
                ("model.embed_tokens.weight", [49152, 576], 0x779fe7cb39c5bf80),
                ("model.layers.0.self_attn.q_proj.weight", [576, 576], 0x498bfdc8aef21a00),
                ("model.layers.1.self_attn.k_proj.weight", [192, 576], 0xb39fc331159fa000),
                ("model.layers.1.mlp.down_proj.weight", [576, 1536], 0xb9a44f2d06eb3600),
                ("model.layers.2.input_layernorm.weight", [576, 0], 0x00009eacf49a0000),
                ("model.norm.weight", [576, 0], 0x0000a28ba9da0000),
            ],
        },
    );
}

#[test]
fn gemma_3_imports_as_transformers_reads_it() {
    check(
        "gemma-3-270m",
        &Expected {
            ids: [
                &[
                    2, 9259, 236764, 1902, 236888, 1030, 236789, 236751, 236743, 236778, 236771, 236778,
                    236825, 236761,
                ],
                &[
                    2, 2063, 517, 236769, 236781, 1473, 107, 140, 2060, 1123, 5213, 236743, 236778, 138,
                    236865, 120362, 109, 255968, 2060,
                ],
                &[
                    2, 236953, 105214, 2192, 86459, 236743, 248714, 243767, 237243, 242015, 236743, 200,
                    236880, 1414, 236793, 209,
                ],
                &[2, 139, 19891, 5830, 9952, 532, 45330, 138],
                &[2, 236744, 238288, 237141, 432, 398, 236781],
                &[
                    2, 34754, 50354, 236743, 236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828,
                    236819, 236771, 236743, 236771, 236761, 236810, 236744, 236772, 236800,
                ],
            ],
            weights: &[
                ("model.embed_tokens.weight", [262144, 640], 0x4347bd0ec4cb3fc0),
                ("model.layers.0.self_attn.q_proj.weight", [1024, 640], 0x89bfb55789085000),
                ("model.layers.1.self_attn.k_proj.weight", [256, 640], 0x7954d9cd12342000),
                ("model.layers.1.mlp.down_proj.weight", [640, 2048], 0x8fe93a80892d4024),
                ("model.layers.2.input_layernorm.weight", [640, 0], 0x0000ce84f3cb0000),
                ("model.norm.weight", [640, 0], 0x0000cc7008d60000),
                ("model.layers.3.self_attn.q_norm.weight", [256, 0], 0x000029277df10000),
            ],
        },
    );
}

#[test]
fn smollm2_chats_by_its_own_template() {
    let path = file("smollm2-135m");
    let checkpoint = resolve(&path);
    let message = Message { role: "user".to_owned(), content: "Hi".to_owned() };
    let spec = Spec::Prompts {
        prompts: vec![Prompt::Chat(vec![message])],
        fill: Fill::AsNeeded,
        choices: vec![" yes".to_owned()],
    };
    let inputs = inputs::make(&spec, &checkpoint).unwrap().remove(0);
    // `apply_chat_template(..., add_generation_prompt=True)` of transformers 5.23.
    let expected = [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712,
        8182, 2, 198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198,
    ];
    assert_eq!(inputs.input_ids, expected);
    assert_eq!((inputs.choices[0].id, inputs.choices[0].tokens), (9805, 1));
}
