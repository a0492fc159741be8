//! Public bugs of transformers, each between two releases, on the checkpoints of tests/fixtures/public_bugs.py.

/// The release whose classes and names of weights the checkpoints have.
pub(crate) const MAKER: &str = "4.57.6";

/// One bug.
pub(crate) struct Window {
    /// Name of the checkpoint.
    pub(crate) checkpoint: &'static str,
    /// The release that is right, then the one that has the bug, or the other way round.
    pub(crate) versions: [&'static str; 2],
    /// Implementation of attention.
    pub(crate) attention: &'static str,
    /// Whether it needs padding on the left.
    pub(crate) is_padded: bool,
    /// What is found where modules are compared.
    pub(crate) place: &'static str,
    /// The first diverging module, by which surgery is judged.
    pub(crate) module: &'static str,
    /// The parts of the network that surgery reports, without their layers, if they do not follow from the module.
    pub(crate) parts: &'static [&'static str],
    /// Rows of the diagnosis's table, each with those that compute the same; empty if no row makes the mistake.
    pub(crate) mistakes: &'static [&'static [&'static str]],
}

const fn window(checkpoint: &'static str, versions: [&'static str; 2], place: &'static str) -> Window {
    Window {
        checkpoint,
        versions,
        attention: "eager",
        is_padded: false,
        place,
        module: "",
        parts: &[],
        mistakes: &[],
    }
}

impl Window {
    /// The checkpoint, the releases and the attention.
    pub(crate) fn name(&self) -> String {
        let [one, other] = self.versions;
        format!("{}, {one} and {other}, {}", self.checkpoint, self.attention)
    }
}

/// As [`window`], where rows of the table make the mistake.
const fn named(
    checkpoint: &'static str,
    versions: [&'static str; 2],
    place: &'static str,
    mistakes: &'static [&'static [&'static str]],
) -> Window {
    Window { mistakes, module: place, ..window(checkpoint, versions, place) }
}

const NO_POSITIONS: &[&[&str]] = &[&["learned-positions-absent"]];
const NOT_CAUSAL: &[&[&str]] = &[&["decoder-not-causal"]];
/// Scores with relative positions.
const SCORES: &[&str] = &["scores", "attention", "embedding, norms and head"];

/// Every bug, those between the same releases together.
pub(crate) const WINDOWS: &[Window] = &[
    // `scaling` of the attention interface, on queries that are scaled already (`OPTAttention.forward`).
    named(
        "opt",
        ["4.51.3", "4.52.3"],
        "model.decoder.layers.0.self_attn.scores",
        &[&["scale-absent", "scale-twice"]],
    ),
    // The head lost its bias (`PhiForCausalLM.__init__`).
    named("phi", ["4.47.1", "4.48.0"], "lm_head", &[&["head-bias-absent"]]),
    // Soft caps do not reach sdpa (`Gemma2SdpaAttention.forward`).
    Window {
        attention: "sdpa",
        ..named(
            "gemma2",
            ["4.44.2", "5.23.0"],
            "sdpa attention of model.layers.0.self_attn",
            &[&["score-cap-absent"]],
        )
    },
    // The scale of the first layer is divided by 1 (`GPT2Attention.forward`).
    Window {
        attention: "sdpa",
        ..named(
            "inverse",
            ["4.57.6", "5.23.0"],
            "sdpa attention of transformer.h.1.attn",
            &[&["scale-by-layer-toggled"]],
        )
    },
    Window {
        attention: "sdpa",
        ..named(
            "noscale",
            ["4.57.6", "5.23.0"],
            "sdpa attention of transformer.h.0.attn",
            &[&["scale-toggled", "scale-absent", "scale-twice"]],
        )
    },
    // Relative positions became absolute ones (`BertEmbeddings.forward`, `BertSelfAttention.forward`).
    Window { parts: SCORES, ..named("relative", ["4.57.6", "5.0.0"], "bert.embeddings", NO_POSITIONS) },
    Window {
        parts: SCORES,
        ..named("relative-query", ["4.57.6", "5.0.0"], "roberta.embeddings", NO_POSITIONS)
    },
    Window {
        parts: SCORES,
        ..named("relative-electra", ["4.57.6", "5.0.0"], "electra.embeddings", NO_POSITIONS)
    },
    // Decoders attend to later tokens (`create_bidirectional_mask`).
    named("roformer", ["5.8.1", "5.9.0"], "roformer", NOT_CAUSAL),
    named("big-bird", ["5.8.1", "5.9.0"], "bert", NOT_CAUSAL),
    named("rembert", ["5.8.1", "5.9.0"], "rembert", NOT_CAUSAL),
    named("megatron", ["5.8.1", "5.9.0"], "bert", NOT_CAUSAL),
    // The class's own base for sliding layers (`Olmo3Config.convert_rope_params_to_dict`).
    Window {
        module: "model.layers.0.self_attn.rope_q",
        ..window(
            "olmo3",
            ["4.57.6", "5.23.0"],
            "position_embeddings.cos of model.layers.0, computed by model",
        )
    },
    // Rotary settings in the spelling of version 5, which tfcheck translates for version 4: no difference.
    window("v5rope", ["4.57.6", "5.23.0"], ""),
    window("neox", ["4.57.6", "5.23.0"], ""),
    // Experts masked with 0 where all scores are negative (`DeepseekV3MoE.route_tokens_to_experts`).
    Window {
        module: "model.layers.0.mlp.experts",
        ..window(
            "correction",
            ["5.0.0", "5.23.0"],
            "top_k_index of model.layers.0.mlp.experts, computed by model.layers.0.mlp",
        )
    },
    // A padded classifier pools at the number of real tokens, also where they are on the right
    // (`BioGptForSequenceClassification.forward`).
    Window { is_padded: true, module: "(root)", ..window("biogpt", ["5.12.1", "5.13.0"], "(root)") },
    // States between chunks, and groups (`Mamba2Mixer.torch_forward`).
    Window {
        module: "backbone.layers.0.mixer",
        ..window("mamba2-chunk", ["4.47.1", "5.23.0"], "backbone.layers.0.mixer")
    },
    Window {
        module: "backbone.layers.0.mixer",
        ..window("mamba2-groups", ["4.47.1", "5.23.0"], "backbone.layers.0.mixer")
    },
];
