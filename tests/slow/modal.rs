//! Models that are not text alone, in real releases: encoder-decoders, pictures, speech.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tfcheck::app::cache_folder;

use crate::fork::NEWEST;
use crate::support::{Sandbox, stderr, stdout};

/// Runs the checkpoints in 5.0.0, the newest release and natively, with these inputs.
fn run(sandbox: &Sandbox, checkpoints: &[&str], inputs: &str) -> (Value, String) {
    let checkpoint = |source: &&str| format!("[[checkpoints]]\nsource = \"{source}\"\n");
    let version =
        |name: &str| format!("[[versions]]\nname = \"{name}\"\nsource = \"transformers=={name}\"\n");
    let config = format!(
        "{}{}{}[inputs]\n{inputs}\n[run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\noracle = true\n\
         rounds = 0\ntrace = false\nnoise = false\n",
        checkpoints.iter().map(checkpoint).collect::<String>(),
        version("5.0.0"),
        version(NEWEST),
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    (sandbox.only_run().json("summary.json"), stdout(&output))
}

/// The letter of each variant's group in a case.
fn letters<'a>(summary: &'a Value, case: &str) -> BTreeMap<&'a str, &'a str> {
    let cases = summary["cases"].as_array().unwrap();
    let case = cases.iter().find(|known| known["name"] == case).unwrap();
    let groups = case["groups"]["groups"].as_array().unwrap().iter();
    let members = groups.flat_map(|group| {
        let letter = group["letter"].as_str().unwrap();
        group["members"].as_array().unwrap().iter().map(move |name| (name.as_str().unwrap(), letter))
    });
    members.collect()
}

#[test]
fn encoder_decoders_and_models_of_pictures_agree_except_where_a_release_is_wrong() {
    let sandbox = Sandbox::new();
    let checkpoints = [
        "synthetic:t5:gated-untied",
        "synthetic:clip",
        "synthetic:vit",
        "synthetic:qwen2_vl:window",
        "synthetic:qwen3_vl",
    ];
    let (summary, text) = run(&sandbox, &checkpoints, "lengths = [24]\nbatch = [2]");
    let newest = format!("{NEWEST}_eager_eager");
    // 5.0.0 scales the logits of T5 1.1, whose head is not tied.
    let t5 = letters(&summary, "t5-gated-untied-b2-24");
    assert_eq!((t5[&*newest], t5["5.0.0_eager_eager"], t5["candle_fused"]), ("A", "B", "A"), "{text}");
    for case in ["clip-b2-24", "vit-b2-24", "qwen2_vl-window-b2-24", "qwen3_vl-b2-24"] {
        let found = letters(&summary, case);
        assert!(found.len() >= 2 && found.values().all(|letter| *letter == "A"), "{case}: {text}");
    }
    for case in ["clip-b2-24", "qwen2_vl-window-b2-24"] {
        assert!(letters(&summary, case).contains_key("candle_eager"), "{case}: {text}");
    }
    let outputs = |case: &str| -> Vec<String> {
        let cases = summary["cases"].as_array().unwrap();
        let case = cases.iter().find(|known| known["name"] == case).unwrap();
        let outputs = case["outputs"].as_array().unwrap().iter();
        outputs.map(|output| output["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(outputs("t5-gated-untied-b2-24"), ["encoder_last_hidden_state"]);
    for name in ["logits_per_text", "text_embeds", "image_embeds"] {
        assert!(outputs("clip-b2-24").iter().any(|known| known == name), "{name}");
    }
}

#[test]
fn a_sound_goes_through_the_checkpoint_s_processor_once_and_each_release_s_own_agrees() {
    let sandbox = Sandbox::new();
    // Makes the checkpoint, which has no processor of its own.
    let config = "versions = []\n[[checkpoints]]\nsource = \"synthetic:whisper:mel80\"\n[inputs]\nlengths = [4]\n\
                  [candle]\nmodes = [\"eager\"]\n[run]\nrounds = 0\ntrace = false\nnoise = false\n";
    let output = sandbox.run(&sandbox.write("make.toml", config), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let made = cache_folder().unwrap().join("synthetic");
    let mut folders = std::fs::read_dir(made).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &std::path::PathBuf| path.to_string_lossy().contains("whisper-mel80-0-");
    let made = folders.find(is_it).unwrap();
    let folder = sandbox.path().join("whisper");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(made).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let processor = serde_json::json!({
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16000,
        "hop_length": 160, "chunk_length": 30, "n_fft": 400, "padding_value": 0.0, "return_attention_mask": false,
    });
    std::fs::write(folder.join("preprocessor_config.json"), processor.to_string()).unwrap();
    std::fs::remove_dir_all(sandbox.results()).unwrap();
    let (summary, text) = run(&sandbox, &["./whisper"], "audio = [\"built-in\"]");
    let found = letters(&summary, "whisper");
    assert!(found.len() >= 4 && found.values().all(|letter| *letter == "A"), "{text}");
    let inputs = summary["cases"][0]["inputs"].as_str().unwrap();
    assert_eq!(inputs, "batch 1, decoder_input_ids i64 1 × 1, input_features f32 1 × 80 × 3000");
    let notes = summary["cases"][0]["cells"].to_string();
    assert!(!notes.contains("makes another"), "{notes}");
    let compared = sandbox.only_run().cells().into_iter().filter_map(|cell| {
        let processor = cell.completed()?.processor.clone()?;
        Some((processor.class, processor.compared.len()))
    });
    let compared: Vec<_> = compared.collect();
    assert_eq!(compared, [("WhisperProcessor".to_owned(), 1), ("WhisperProcessor".to_owned(), 1)]);
}

/// Tokens of Qwen2-VL's synthetic checkpoint that are no bytes.
const SPECIAL: [(&str, u32); 7] = [
    ("<|image_pad|>", 280),
    ("<|video_pad|>", 281),
    ("<|vision_start|>", 282),
    ("<|vision_end|>", 283),
    ("<|im_start|>", 284),
    ("<|im_end|>", 285),
    ("<|endoftext|>", 286),
];

const CHAT: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}\
    {% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
    {% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Qwen2-VL's synthetic checkpoint with a tokenizer of single bytes and the processor of the published ones.
fn qwen2_vl_with_a_processor(folder: &Path) {
    models::synthetic::write("qwen2_vl", "", 0, folder).unwrap();
    // The byte-level alphabet (GPT-2): printable bytes stand for themselves, the others for characters from U+0100 on.
    let is_printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(|byte| !is_printable(byte)).zip(256..);
    let alphabet = (0..256).filter(is_printable).map(|byte| (byte, byte)).chain(others);
    let letters = alphabet.map(|(byte, letter)| (char::from_u32(letter).unwrap().to_string(), json!(byte)));
    let special = SPECIAL.map(|(token, id)| (token.to_owned(), json!(id)));
    let vocab: serde_json::Map<String, Value> = letters.chain(special).collect();
    let added = SPECIAL.map(|(token, id)| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    });
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let files = [
        (
            "tokenizer.json",
            json!({
                "version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
                "model": {"type": "BPE", "vocab": vocab, "merges": []},
            }),
        ),
        (
            "tokenizer_config.json",
            json!({
                "tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>",
                "chat_template": CHAT,
            }),
        ),
        ("chat_template.json", json!({"chat_template": CHAT})),
        (
            "preprocessor_config.json",
            json!({
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
                "min_pixels": 256, "max_pixels": 2048, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2,
                "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
            }),
        ),
        ("vocab.json", Value::Object(vocab.clone())),
    ];
    for (name, content) in files {
        std::fs::write(folder.join(name), content.to_string()).unwrap();
    }
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\n").unwrap();
}

#[test]
fn a_question_about_a_picture_has_one_answer_in_two_releases_and_natively() {
    let sandbox = Sandbox::new();
    qwen2_vl_with_a_processor(&sandbox.path().join("qwen2_vl"));
    let version =
        |name: &str| format!("[[versions]]\nname = \"{name}\"\nsource = \"transformers=={name}\"\n");
    let config = format!(
        "[[checkpoints]]\nsource = \"./qwen2_vl\"\n{}{}[inputs]\nimages = [\"built-in\"]\n\
         prompts = [\"Is the disc yellow (A) or blue (B)?\"]\nchat = true\nchoices = [\"A\", \"B\"]\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\noracle = true\nrounds = 1\ndecode = 2\n\
         trace = false\nnoise = false\n",
        version("4.57.6"),
        version(NEWEST),
    );
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &config), &[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    let found = letters(&summary, "qwen2_vl");
    let newest = format!("{NEWEST}_eager_eager");
    for name in ["4.57.6_eager_eager", "candle_eager", "candle_fused", &*newest] {
        assert_eq!(found.get(name), Some(&"A"), "{name}: {text}");
    }
    for cell in summary["cases"][0]["cells"].as_array().unwrap() {
        let timed = !cell["timing"].is_null();
        assert_eq!(timed, !cell["decode"].is_null(), "{cell}");
    }
}
