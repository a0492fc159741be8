//! Bugs for a fork of transformers 5.23.0: edits of a modeling file, a checkpoint that exposes them, and the module to find.

/// One bug.
pub(crate) struct Plant {
    /// Name of the bug and of its case.
    pub(crate) class: &'static str,
    /// Synthetic checkpoint.
    pub(crate) checkpoint: &'static str,
    /// Name of the modeling file: `gemma3` for `models/gemma3/modeling_gemma3.py`.
    pub(crate) file: &'static str,
    /// Pairs of text and replacement; every occurrence is replaced.
    pub(crate) edits: &'static [(&'static str, &'static str)],
    /// The first diverging module, by its path in transformers.
    pub(crate) path: &'static str,
    /// The same by its path in the native model, if it differs. Only the second branch runs the native model.
    pub(crate) native: &'static str,
    /// Text that the localisation's notes must contain.
    pub(crate) note: &'static str,
    /// The rows of the diagnosis's table that make this mistake; empty if none does.
    pub(crate) hypotheses: &'static [&'static str],
    /// The parts of the network that surgery reports, without their layers, if they do not follow from the module.
    pub(crate) parts: &'static [&'static str],
}

pub(crate) const NONE: Plant = Plant {
    class: "",
    checkpoint: "",
    file: "",
    edits: &[],
    path: "",
    native: "",
    note: "",
    hypotheses: &[],
    parts: &[],
};

/// The bugs of one working copy: at most one per modeling file, so that each checkpoint meets one bug.
pub(crate) type Branch = &'static [Plant];

/// Each class of bug found in candle's ports, and similar ones.
pub(crate) const BRANCHES: [Branch; 2] = [FIRST, SECOND];

const FIRST: Branch = &[
    Plant {
        class: "eps",
        hypotheses: &["norm-eps-1e-6"],
        checkpoint: "qwen2",
        file: "qwen2",
        edits: &[("self.variance_epsilon = eps", "self.variance_epsilon = 1e-6")],
        path: "model.layers.0.input_layernorm",
        ..NONE
    },
    Plant {
        class: "rope-scaling-absent",
        hypotheses: &["rope-scaling-absent"],
        checkpoint: "llama:llama3",
        file: "llama",
        edits: &[(
            "self.rope_type = self.config.rope_parameters[\"rope_type\"]",
            "self.rope_type = \"default\"",
        )],
        path: "model.rotary_emb",
        ..NONE
    },
    Plant {
        class: "rope-in-bf16",
        checkpoint: "olmo2",
        file: "olmo2",
        edits: &[("cos = emb.cos() *", "cos = emb.cos().to(torch.bfloat16).to(emb.dtype) *")],
        path: "model.rotary_emb",
        ..NONE
    },
    Plant {
        class: "interleaved-rope",
        checkpoint: "smollm3",
        file: "smollm3",
        edits: &[
            ("x1 = x[..., : x.shape[-1] // 2]", "x1 = x[..., 0::2]"),
            ("x2 = x[..., x.shape[-1] // 2 :]", "x2 = x[..., 1::2]"),
            ("torch.cat((-x2, x1), dim=-1)", "torch.stack((-x2, x1), dim=-1).flatten(-2)"),
        ],
        path: "model.layers.0.self_attn.rope_q",
        ..NONE
    },
    Plant {
        class: "one-rows-mask-for-all",
        hypotheses: &["padding-mask-of-the-first-row"],
        checkpoint: "starcoder2",
        file: "starcoder2",
        edits: &[(
            "inputs_embeds=inputs_embeds,\n            attention_mask=attention_mask,\n            past",
            "inputs_embeds=inputs_embeds,\n            attention_mask=attention_mask[:1].expand_as(attention_mask),\n            past",
        )],
        path: "model.layers.0.self_attn.mask",
        ..NONE
    },
    Plant {
        class: "tanh-gelu",
        hypotheses: &["activation-gelu-tanh"],
        checkpoint: "gpt_neox",
        file: "gpt_neox",
        edits: &[("ACT2FN[config.hidden_act]", "ACT2FN[\"gelu_pytorch_tanh\"]")],
        path: "gpt_neox.layers.0.mlp.act",
        ..NONE
    },
    Plant {
        class: "norm-without-its-one",
        hypotheses: &["norm-weight-not-plus-one"],
        checkpoint: "gemma3_text",
        file: "gemma3",
        edits: &[("output * (1.0 + self.weight.float())", "output * self.weight.float()")],
        path: "model.layers.0.input_layernorm",
        ..NONE
    },
    Plant {
        class: "rms-for-layer-norm",
        // Only the mean is kept; the variance is about it.
        parts: &["embedding, norms and head", "values or output projection", "MLP", "scores"],
        checkpoint: "cohere",
        file: "cohere",
        edits: &[(
            "hidden_states = (hidden_states - mean) * torch.rsqrt",
            "hidden_states = hidden_states * torch.rsqrt",
        )],
        path: "model.layers.0.input_layernorm",
        ..NONE
    },
    Plant {
        class: "wrongly-tied-head",
        hypotheses: &["head-tied"],
        checkpoint: "stablelm",
        file: "stablelm",
        edits: &[(
            "        logits = self.lm_head(hidden_states)",
            "        self.lm_head.weight = self.model.embed_tokens.weight\n        logits = self.lm_head(hidden_states)",
        )],
        path: "lm_head",
        ..NONE
    },
    Plant {
        class: "ignored-config-key",
        hypotheses: &["logits-scaling-1"],
        checkpoint: "granite",
        file: "granite",
        edits: &[("logits = logits / self.config.logits_scaling", "pass")],
        path: "(root)",
        ..NONE
    },
    Plant {
        class: "padding-side",
        hypotheses: &["positions-count-padding"],
        checkpoint: "gpt2",
        file: "gpt2",
        edits: &[("if position_ids is None:", "if True:")],
        path: "transformer",
        ..NONE
    },
    Plant {
        class: "window-of-one-key-more",
        hypotheses: &["window-one-more"],
        checkpoint: "mistral",
        file: "mistral",
        edits: &[(
            "        causal_mask = mask_function(\n            config=self.config,",
            "        wider = __import__(\"copy\").copy(self.config)\n        wider.sliding_window += 1\n        causal_mask = mask_function(\n            config=wider,",
        )],
        path: "model.layers.0.self_attn.mask",
        ..NONE
    },
    Plant {
        class: "soft-cap-dropped",
        hypotheses: &["score-cap-absent"],
        checkpoint: "gemma2",
        file: "gemma2",
        edits: &[("softcap=self.attn_logit_softcapping,", "softcap=None,")],
        path: "model.layers.0.self_attn.scores",
        ..NONE
    },
    Plant {
        class: "key-heads-in-another-order",
        hypotheses: &["kv-heads-tiled"],
        checkpoint: "phi3",
        file: "phi3",
        edits: &[(
            "hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)",
            "hidden_states[:, None, :, :, :].expand(batch, n_rep, num_key_value_heads, slen, head_dim)",
        )],
        path: "model.layers.0.self_attn.scores",
        ..NONE
    },
    Plant {
        class: "query-norm-dropped",
        hypotheses: &["q-norm-not-applied"],
        parts: &["scores"],
        checkpoint: "qwen3",
        file: "qwen3",
        edits: &[(
            "self.q_norm(self.q_proj(hidden_states).view(hidden_shape))",
            "self.q_proj(hidden_states).view(hidden_shape)",
        )],
        path: "model.layers.0.self_attn",
        note: "5.23.0_eager_eager runs model.layers.0.self_attn.q_norm, fork_eager_eager does not",
        ..NONE
    },
    Plant {
        class: "query-scale",
        hypotheses: &["fitted-scores"],
        checkpoint: "gemma",
        file: "gemma",
        edits: &[("self.scaling = self.head_dim**-0.5", "self.scaling = config.hidden_size**-0.5")],
        path: "model.layers.0.self_attn.scores",
        ..NONE
    },
    Plant {
        class: "bias-dropped",
        hypotheses: &["bias-mlp-input-absent"],
        checkpoint: "phi",
        file: "phi",
        edits: &[(
            "self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)",
            "self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)",
        )],
        path: "model.layers.0.mlp.fc1",
        ..NONE
    },
    Plant {
        class: "padding-mask-dropped",
        hypotheses: &["padding-attended"],
        checkpoint: "bert",
        file: "bert",
        edits: &[(
            "    if attention_mask is not None:\n        attn_weights",
            "    if False:\n        attn_weights",
        )],
        path: "bert.encoder.layer.0.attention.self.mask",
        ..NONE
    },
    Plant {
        class: "shares-of-experts-not-normalised",
        hypotheses: &["router-normalisation", "router-normalised-or-not"],
        checkpoint: "mixtral",
        file: "mixtral",
        edits: &[("router_top_value /= router_top_value.sum(dim=-1, keepdim=True)", "pass")],
        path: "model.layers.0.mlp.gate",
        ..NONE
    },
    Plant {
        class: "experts-chosen-by-another-rule",
        checkpoint: "qwen3_moe",
        file: "qwen3_moe",
        edits: &[(
            "torch.topk(router_probs, self.top_k, dim=-1)",
            "torch.topk(-router_probs, self.top_k, dim=-1)",
        )],
        path: "model.layers.0.mlp.gate",
        ..NONE
    },
    Plant {
        class: "positions-from-zero",
        // The first real token has position 1: the first two together, which is the third.
        hypotheses: &[
            "learned-positions-without-offset",
            "learned-positions-one-late",
            "learned-positions-one-early",
        ],
        checkpoint: "roberta",
        file: "roberta",
        edits: &[
            ("return incremental_indices.long() + padding_idx", "return incremental_indices.long()"),
            ("if position_ids is None:", "if True:"),
        ],
        path: "roberta.embeddings",
        ..NONE
    },
    Plant {
        class: "residual-of-the-norm",
        checkpoint: "falcon",
        file: "falcon",
        edits: &[(
            "output = dropout_add(mlp_output, residual,",
            "output = dropout_add(mlp_output, mlp_layernorm_out,",
        )],
        path: "transformer.h.0",
        ..NONE
    },
    Plant {
        class: "gate-and-value-exchanged",
        hypotheses: &["gate-and-up-swapped"],
        checkpoint: "modernbert",
        file: "modernbert",
        edits: &[(
            "input, gate = self.Wi(hidden_states).chunk(2, dim=-1)",
            "gate, input = self.Wi(hidden_states).chunk(2, dim=-1)",
        )],
        path: "model.layers.0.mlp",
        ..NONE
    },
];

const SECOND: Branch = &[
    Plant {
        class: "norms-exchanged",
        hypotheses: &["norms-swapped"],
        checkpoint: "llama:tiny",
        file: "llama",
        edits: &[
            ("hidden_states = self.input_layernorm(hidden_states)", "hidden_states = self.x(hidden_states)"),
            (
                "hidden_states = self.post_attention_layernorm(hidden_states)",
                "hidden_states = self.input_layernorm(hidden_states)",
            ),
            ("self.x(hidden_states)", "self.post_attention_layernorm(hidden_states)"),
        ],
        path: "model.layers.0",
        ..NONE
    },
    Plant {
        class: "embedding-scale",
        hypotheses: &["embedding-not-scaled"],
        checkpoint: "gemma2",
        file: "gemma2",
        edits: &[("embed_scale=self.config.hidden_size**0.5", "embed_scale=1.0")],
        path: "model.embed_tokens",
        ..NONE
    },
    Plant {
        class: "embedding-multiplier-ignored",
        hypotheses: &["embedding-multiplier-1"],
        checkpoint: "granite:bias",
        file: "granite",
        edits: &[("inputs_embeds = inputs_embeds * self.embedding_multiplier", "pass")],
        path: "model",
        ..NONE
    },
    Plant {
        class: "partial-rotary-factor-ignored",
        hypotheses: &["rope-whole-head"],
        checkpoint: "gpt_neox",
        file: "gpt_neox",
        edits: &[("config.rope_parameters.get(\"partial_rotary_factor\", 1.0)", "1.0")],
        // The tables have another width, so that the layers that are given them cannot be compared.
        path: "gpt_neox",
        native: "gpt_neox.layers.0.attention.rope_q",
        ..NONE
    },
    Plant {
        class: "softmax-over-queries",
        parts: &["mask or softmax"],
        checkpoint: "olmo2",
        file: "olmo2",
        edits: &[("softmax(attn_weights, dim=-1", "softmax(attn_weights, dim=-2")],
        path: "model.layers.0.self_attn.softmax",
        ..NONE
    },
    Plant {
        class: "layers-without-rope-ignored",
        hypotheses: &["rope-in-every-layer"],
        checkpoint: "smollm3",
        file: "smollm3",
        edits: &[("self.use_rope = config.no_rope_layers[layer_idx]", "self.use_rope = True")],
        path: "model.layers.1.self_attn.scores",
        note: "runs model.layers.1.self_attn.rope_q, model.layers.1.self_attn.rope_k, 5.23.0_eager_eager does not",
        ..NONE
    },
    Plant {
        class: "logit-scale-dropped",
        hypotheses: &["logits-scaling-1"],
        checkpoint: "cohere",
        file: "cohere",
        edits: &[("logits = logits * self.logit_scale", "pass")],
        path: "(root)",
        ..NONE
    },
    Plant {
        class: "mask-transposed",
        hypotheses: &["mask-transposed"],
        checkpoint: "qwen2",
        file: "qwen2",
        edits: &[("attn_weights + attention_mask", "attn_weights + attention_mask.transpose(-1, -2)")],
        path: "model.layers.0.self_attn.mask",
        ..NONE
    },
    Plant {
        class: "value-heads-in-another-order",
        hypotheses: &["kv-values-tiled"],
        checkpoint: "mistral",
        file: "mistral",
        edits: &[(
            "value_states = repeat_kv(value, module.num_key_value_groups)",
            "value_states = value.repeat(1, module.num_key_value_groups, 1, 1)",
        )],
        path: "model.layers.0.self_attn",
        ..NONE
    },
    Plant {
        class: "key-norms-eps",
        checkpoint: "qwen3",
        file: "qwen3",
        edits: &[(
            "self.k_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps)",
            "self.k_norm = Qwen3RMSNorm(self.head_dim, eps=1e-6)",
        )],
        path: "model.layers.0.self_attn.k_norm",
        ..NONE
    },
    Plant {
        class: "one-rope-base-for-all-layers",
        hypotheses: &["rope-one-base-full"],
        checkpoint: "gemma3_text",
        file: "gemma3",
        edits: &[(
            "rope_parameters[layer_type][\"rope_theta\"]",
            "rope_parameters[\"full_attention\"][\"rope_theta\"]",
        )],
        path: "model.rotary_emb",
        native: "model.layers.0.self_attn.rope_q",
        ..NONE
    },
    Plant {
        class: "window-dropped",
        hypotheses: &["window-absent", "window-default"],
        checkpoint: "phi3",
        file: "phi3",
        edits: &[(
            "mask_function = create_causal_mask if self.config.sliding_window is None else create_sliding_window_causal_mask",
            "mask_function = create_causal_mask",
        )],
        path: "model.layers.0.self_attn.mask",
        ..NONE
    },
    Plant {
        class: "scores-not-scaled",
        hypotheses: &["scale-absent", "scale-toggled"],
        checkpoint: "gpt2",
        file: "gpt2",
        edits: &[("self.scaling = self.head_dim**-0.5", "self.scaling = 1.0")],
        path: "transformer.h.0.attn.scores",
        ..NONE
    },
];
