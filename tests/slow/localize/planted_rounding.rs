//! Plants changes that affect rounding only in an editable fork of transformers: attention's sum over keys in another order,
//! and in bf16. The verdict must never be *diverged*.

use super::forks::verdict;
use crate::fork::{Fork, NEWEST};
use crate::plants::fork::{NONE, Plant};
use crate::support::{Sandbox, stderr};

/// What is planted for one architecture.
struct Sum {
    /// Name of its modeling file: `gemma3` for `models/gemma3/modeling_gemma3.py`.
    file: String,
    /// Its first small synthetic checkpoint that is not the one for a quick run of llama.
    checkpoint: String,
    /// The name of the values tensor in its eager attention.
    value: String,
}

/// The architectures whose eager attention sums over keys in an expression `torch.matmul(attn_weights, VALUES)`.
fn sums(fork: &Fork) -> Vec<Sum> {
    let mut sums = Vec::new();
    // The inputs are token ids.
    let is_one_text = |model_type: &&str| models::kind(model_type).is_some_and(models::Kind::is_one_text);
    for model_type in models::model_types().filter(is_one_text) {
        let file = model_type.trim_end_matches("_text").replace('-', "_");
        let path = fork.0.join(format!("src/transformers/models/{file}/modeling_{file}.py"));
        let source = std::fs::read_to_string(&path).unwrap();
        let Some((_, value)) = source.split_once("torch.matmul(attn_weights, ") else { continue };
        let value = value.split_once(')').unwrap().0.to_owned();
        let checkpoint = if model_type == "llama" { "llama:tiny" } else { model_type }.to_owned();
        sums.push(Sum { file, checkpoint, value });
    }
    // falcon alone writes the sum in another way.
    assert!(
        sums.len() + 1 >= models::model_types().filter(is_one_text).count(),
        "only {} architectures have the expression",
        sums.len()
    );
    sums
}

/// Python code of the sum over keys in reverse order.
fn reversed(value: &str) -> String {
    format!("torch.matmul(attn_weights.flip(-1), {value}.flip(-2))")
}

/// Python code of the sum in bf16, as `torch.set_float32_matmul_precision("medium")` allows it; float64 is unchanged.
fn coarse(value: &str) -> String {
    let [wide, narrow] = ["", ".bfloat16()"].map(|to| format!("torch.matmul(attn_weights{to}, {value}{to})"));
    format!("{wide} if {value}.dtype == torch.float64 else {narrow}.to({value}.dtype)")
}

/// Plants `with` in place of every sum, runs the release and the fork, and returns the verdicts on each checkpoint in f32 and
/// in bf16, with their evidence.
fn verdicts(fork: &Fork, sums: &[Sum], with: fn(&str) -> String) -> Vec<[(String, String); 2]> {
    // `Plant` holds static strings, so the test leaks these few.
    let leak = |text: String| -> &'static str { text.leak() };
    let plants: Vec<Plant> = sums
        .iter()
        .map(|Sum { file, checkpoint, value }| {
            let edit = (leak(format!("torch.matmul(attn_weights, {value})")), leak(with(value)));
            let file = leak(file.clone());
            Plant {
                class: file,
                checkpoint: leak(checkpoint.clone()),
                file,
                edits: vec![edit].leak(),
                ..NONE
            }
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
         trace = false\nnoise = false\nthreads = 1\ndiagnose_s = 0\n",
        plants.iter().map(checkpoint).collect::<String>(),
        fork.0.display(),
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    let cases = summary["cases"].as_array().unwrap();
    assert_eq!(cases.len(), sums.len());
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

#[test]
fn sums_in_another_order_and_in_bf16_never_diverge() {
    let fork = Fork::new("rounding");
    let is = |verdict: &(String, String), word: &str| verdict.0 == word;
    let sums = sums(&fork);
    let turned = verdicts(&fork, &sums, reversed);
    let same = turned.iter().filter(|[f32, _]| is(f32, "same_mathematics")).count();
    assert!(same >= 20, "{same} sums in another order round otherwise, and are one mathematics: {turned:?}");
    let coarse = verdicts(&fork, &sums, coarse);
    fork.reset();
    // In f32 the coarser sum is reported as worse rounding; in bf16 it changes nothing.
    let worse = coarse.iter().filter(|[f32, _]| is(f32, "worse_rounding")).count();
    assert!(worse >= 20, "{worse} sums in bf16 round worse: {coarse:?}");
    assert!(coarse.iter().all(|[_, bf16]| is(bf16, "identical")), "{coarse:?}");
}
