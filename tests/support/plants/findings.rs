//! What a diagnosis must name of each finding in candle's ports that has wrong numbers, after the causes in
//! results/findings.md.

/// The rows of the diagnosis's table that a finding is, each with those that compute the same on it. None of them may be
/// missing, and nothing else may be named.
pub(crate) struct Finding {
    /// Name of the file in results/findings.
    pub(crate) name: &'static str,
    pub(crate) mistakes: &'static [&'static [&'static str]],
    /// The parts of the network that surgery may report, without their layers.
    pub(crate) parts: &'static [&'static str],
}

const fn finding(name: &'static str, mistakes: &'static [&'static [&'static str]]) -> Finding {
    Finding { name, mistakes, parts: &[] }
}

/// As [`finding`], with what surgery may report.
const fn in_parts(
    name: &'static str,
    mistakes: &'static [&'static [&'static str]],
    parts: &'static [&'static str],
) -> Finding {
    Finding { name, mistakes, parts }
}

const MASK: &[&str] = &["mask or softmax", "mask or values"];
/// All of a block.
const BLOCK: &[&str] = &["MLP", "scores", "values or output projection", "mask or values"];
const ROTATION: &[&str] =
    &["rotation", "scores or rotation", "scores, or the factor of cos and sin", "scores"];

const ONE_MORE: &[&str] = &["window-one-more"];
const USED: &[&str] = &["window-in-every-layer", "window-used-though-off"];
const HEAD_DIM: &[&str] = &["scale-by-head-dim"];
const NO_SCALING: &[&str] = &["rope-scaling-absent"];
const TIED: &[&str] = &["head-tied"];
const TANH: &[&str] = &["activation-gelu-tanh"];
const UNMASKED: &[&[&str]] = &[&["padding-attended"], &["positions-count-padding"]];
const LONGROPE: &[&[&str]] = &[&["rope-attention-factor-1"], &["rope-factor-inverted"]];

const ANGLES: &[&[&str]] = &[&["rope-angles-bf16"]];
const ANGLES_AND_SUMS: &[&[&str]] = &[&["rope-angles-bf16"], &["softmax-sums-bf16"]];

/// Every finding in a port whose inputs are tokens alone; those whose mistake the table lacks have none.
pub(crate) const FINDINGS: &[Finding] = &[
    finding("mistral-window", &[ONE_MORE]),
    finding("mixtral-window", &[ONE_MORE]),
    finding("starcoder2-window", &[ONE_MORE]),
    finding("gemma2-window", &[ONE_MORE, &["window-in-every-layer"], HEAD_DIM]),
    finding("gemma2-scale", &[ONE_MORE, &["window-in-every-layer"], HEAD_DIM]),
    finding("gemma3-window", &[ONE_MORE, HEAD_DIM]),
    finding("gemma3-scale", &[ONE_MORE, HEAD_DIM]),
    finding("qwen2-window-off", &[USED, ONE_MORE]),
    finding("qwen2-window-layers", &[&["window-in-every-layer"], ONE_MORE]),
    finding("phi3-window", &[&["window-absent"]]),
    in_parts("recurrent-gemma-window", &[&["window-absent"]], MASK),
    in_parts("qwen2-moe-window-off", &[&["window-in-every-layer"], ONE_MORE], MASK),
    in_parts("qwen2-moe-window-zero", &[&["window-in-every-layer"], ONE_MORE], MASK),
    in_parts("gemma4-window", &[ONE_MORE], MASK),
    finding("phi3-longrope-short", LONGROPE),
    in_parts(
        "phi3-longrope",
        &[&["rope-attention-factor-1"], &["rope-factor-inverted"], &["rope-factors-by-position"]],
        ROTATION,
    ),
    finding("qwen2-yarn", &[NO_SCALING]),
    finding("qwen3-yarn", &[NO_SCALING]),
    finding("smollm3-yarn", &[NO_SCALING]),
    in_parts("granitemoehybrid-nope", &[&["rope-used-though-off"]], ROTATION),
    in_parts("llama-v5", &[&["rope-base-10000"]], ROTATION),
    in_parts("glm4-v5", &[&["rope-whole-head"]], ROTATION),
    in_parts(
        "granite-multipliers",
        &[
            &["logits-scaling-1"],
            &["embedding-multiplier-1"],
            &["residual-multiplier-1"],
            &["scale-by-head-dim"],
            &["bias-mlp-absent", "bias-linear-absent"],
            &["bias-attention-absent", "bias-linear-absent"],
        ],
        BLOCK,
    ),
    finding("starcoder2-untied", &[TIED]),
    finding("llama-attention-bias", &[&["bias-attention-absent"]]),
    finding("llama-mlp-bias", &[&["bias-mlp-absent"]]),
    finding("stablelm-qk-norm", &[&["qk-norm-absent", "qk-norms-not-applied"]]),
    finding("distilbert-gelu", &[TANH]),
    finding("roberta-head-bias", &[&["head-bias-absent"]]),
    finding("xlm-roberta-head-bias", &[&["head-bias-absent"]]),
    finding(
        "modernbert-bias",
        &[
            &["head-transform-bias-absent"],
            &["bias-mlp-absent", "bias-linear-absent"],
            &["bias-attention-absent", "bias-linear-absent"],
        ],
    ),
    finding("modernbert-activation", &[&["activation-gelu"]]),
    finding("granitemoehybrid-untied", &[TIED]),
    finding("mamba2-untied", &[TIED]),
    finding("mamba-bias", &[&["bias-mixer-absent"]]),
    finding("lfm2-conv-bias", &[&["bias-convolution-absent"]]),
    finding("bigcode-gelu", &[TANH]),
    // The port makes the mistakes of the other findings in it as well.
    in_parts(
        "gemma4-norms",
        &[&["norm-weight-plus-one"], &["layer-scalar-1"], ONE_MORE, HEAD_DIM],
        &["mask or softmax", "scores", "mask or values"],
    ),
    in_parts("gemma4-scale", &[HEAD_DIM], &["scores", "attention"]),
    finding("gemma4-layer-scalar", &[&["layer-scalar-1"]]),
    in_parts(
        "deepseek2-latent-norms",
        &[],
        &["scores", "values or output projection", "attention", "mask or values"],
    ),
    finding("llama-padding", UNMASKED),
    finding("qwen2-mask", &[&["mask-not-causal"]]),
    finding("phi3-bf16-tables", ANGLES_AND_SUMS),
    finding("qwen2-bf16-tables", ANGLES_AND_SUMS),
    finding("gemma-bf16-tables", ANGLES),
    finding("gemma2-bf16-tables", ANGLES),
    in_parts(
        "quantized-gemma3-activation",
        // On four layers its pattern of six gives every layer a window (results/findings.md).
        &[
            &["activation-silu"],
            HEAD_DIM,
            &["window-in-every-layer"],
            ONE_MORE,
            &["rope-base-10000-sliding"],
            &["rope-base-10000"],
        ],
        &["MLP", "rotation", "mask or softmax", "scores"],
    ),
    finding("quantized-phi-base", &[&["rope-base-10000"]]),
    // It reads no window from the file either; the first inputs are shorter than it.
    finding("quantized-phi3-base", &[&["rope-base-10000"], &["window-absent"]]),
    in_parts("quantized-qwen3-f16", &[&["rope-angles-f16"]], ROTATION),
];
