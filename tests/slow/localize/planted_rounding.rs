//! Plants changes that affect rounding only in an editable fork of transformers: attention's sum over keys in another order,
//! and in bf16. The verdict must never be *diverged*.

use super::forks::{Fork, NEWEST, verdict};
use super::plants::{NONE, Plant};
use crate::support::{Sandbox, stderr};

/// Modeling file, synthetic checkpoint, and the name of the values tensor in its eager attention.
const FILES: [(&str, &str, &str); 24] = [
    ("bert", "bert", "value"),
    ("cohere", "cohere", "value_states"),
    ("distilbert", "distilbert", "value"),
    ("gemma", "gemma", "value_states"),
    ("gemma2", "gemma2", "value_states"),
    ("gemma3", "gemma3_text", "value_states"),
    ("gpt2", "gpt2", "value"),
    ("gpt_neox", "gpt_neox", "value"),
    ("granite", "granite", "value_states"),
    ("llama", "llama:tiny", "value_states"),
    ("mistral", "mistral", "value_states"),
    ("mixtral", "mixtral", "value_states"),
    ("modernbert", "modernbert", "value"),
    ("olmo2", "olmo2", "value_states"),
    ("phi", "phi", "value_states"),
    ("phi3", "phi3", "value_states"),
    ("qwen2", "qwen2", "value_states"),
    ("qwen3", "qwen3", "value_states"),
    ("qwen3_moe", "qwen3_moe", "value_states"),
    ("roberta", "roberta", "value"),
    ("smollm3", "smollm3", "value_states"),
    ("stablelm", "stablelm", "value_states"),
    ("starcoder2", "starcoder2", "value_states"),
    ("xlm_roberta", "xlm-roberta", "value"),
];

/// Python code of the sum over keys in reverse order.
fn reversed(value: &str) -> String {
    format!("torch.matmul(attn_weights.flip(-1), {value}.flip(-2))")
}

/// Python code of the sum in bf16, as `torch.set_float32_matmul_precision("medium")` allows it; float64 is unchanged.
fn coarse(value: &str) -> String {
    let [wide, narrow] = ["", ".bfloat16()"].map(|to| format!("torch.matmul(attn_weights{to}, {value}{to})"));
    format!("{wide} if {value}.dtype == torch.float64 else {narrow}.to({value}.dtype)")
}

/// Plants `sum` into every file, runs the release and the fork, and returns the verdicts on each checkpoint in f32 and in
/// bf16, with their evidence.
fn verdicts(fork: &Fork, sum: fn(&str) -> String) -> Vec<[(String, String); 2]> {
    let plants: Vec<Plant> = FILES
        .iter()
        .map(|(file, checkpoint, value)| {
            let edit = (format!("torch.matmul(attn_weights, {value})"), sum(value));
            // `Plant` holds static strings, so the test leaks these few.
            let edits = vec![(&*edit.0.leak(), &*edit.1.leak())].leak();
            Plant { class: file, checkpoint, file, edits, ..NONE }
        })
        .collect();
    fork.plant(&plants);
    let sandbox = Sandbox::new();
    let checkpoint = |plant: &Plant| {
        format!("[[checkpoints]]\nname = \"{}\"\nsource = \"synthetic:{}\"\n", plant.class, plant.checkpoint)
    };
    let config = format!(
        "{}[inputs]\nlengths = [40]\nbatch = [2]\npadding = [\"left\"]\n\
         [[versions]]\nname = \"{NEWEST}\"\nsource = \"transformers=={NEWEST}\"\n\
         [[versions]]\nname = \"fork\"\nsource = \"-e {}\"\n\
         [candle]\nmodes = []\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\ndtypes = [\"f32\", \"bf16\"]\noracle = true\nrounds = 0\n\
         trace = false\nnoise = false\nthreads = 1\n",
        plants.iter().map(checkpoint).collect::<String>(),
        fork.0.display(),
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    let cases = summary["cases"].as_array().unwrap();
    assert_eq!(cases.len(), FILES.len());
    for case in cases {
        for pair in case["verdicts"].as_array().unwrap() {
            let known =
                ["identical", "same_mathematics", "worse_rounding"].map(|word| pair["verdict"] == word);
            assert!(known.contains(&true), "{}: {pair}", case["name"]);
        }
    }
    let of = |case, dtype| {
        verdict(case, &format!("{NEWEST}_eager_eager_{dtype}"), &format!("fork_eager_eager_{dtype}"))
    };
    cases.iter().map(|case| ["f32", "bf16"].map(|dtype| of(case, dtype))).collect()
}

/// Architectures whose eager attention sums over keys in an expression that [`FILES`] does not match.
const ELSEWHERE: [&str; 1] = ["falcon"];

#[test]
fn every_architecture_has_a_file_or_is_listed_without_one() {
    let has_file = |model_type: &str| {
        FILES.iter().any(|(_, checkpoint, _)| checkpoint.split(':').next() == Some(model_type))
    };
    for model_type in models::model_types() {
        assert!(has_file(model_type) != ELSEWHERE.contains(&model_type), "{model_type}");
    }
}

#[test]
fn sums_in_another_order_and_in_bf16_never_diverge() {
    let fork = Fork::new("rounding");
    let is = |verdict: &(String, String), word: &str| verdict.0 == word;
    let turned = verdicts(&fork, reversed);
    let same = turned.iter().filter(|[f32, _]| is(f32, "same_mathematics")).count();
    assert!(same >= 20, "{same} sums in another order round otherwise, and are one mathematics: {turned:?}");
    let coarse = verdicts(&fork, coarse);
    fork.reset();
    // In f32 the coarser sum is reported as worse rounding; in bf16 it changes nothing.
    let worse = coarse.iter().filter(|[f32, _]| is(f32, "worse_rounding")).count();
    assert!(worse >= 20, "{worse} sums in bf16 round worse: {coarse:?}");
    assert!(coarse.iter().all(|[_, bf16]| is(bf16, "identical")), "{coarse:?}");
}
