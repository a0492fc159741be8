//! Mistakes that no edit of a checkpoint or its inputs expresses; a native trusted side makes them.

use models::Deviation;

use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("mask-one-ahead", "a mask that admits the next token", |draft| {
        draft.deviate(Deviation::MaskOneAhead);
    }),
    row("mask-not-causal", "a mask that admits later tokens", |draft| {
        draft.deviate(Deviation::MaskNotCausal);
    }),
    row("mask-excludes-itself", "a mask that excludes the token itself", |draft| {
        draft.deviate(Deviation::MaskExcludesItself);
    }),
    row("rope-tables-bf16", "rotary tables in bf16", |draft| draft.deviate(Deviation::RopeTablesBf16)),
    row("rope-tables-f16", "rotary tables in f16", |draft| draft.deviate(Deviation::RopeTablesF16)),
    row("rope-angles-bf16", "positions, frequencies and angles of the rotation in bf16", |draft| {
        draft.deviate(Deviation::RopeAnglesBf16);
    }),
    row(
        "rope-factors-by-position",
        "short factors before the original length and long ones behind it",
        |draft| {
            let has_factors = ["rope_scaling", "rope_parameters"]
                .iter()
                .any(|key| draft.config.get(*key).is_some_and(|rope| rope.get("long_factor").is_some()));
            if has_factors {
                draft.deviate(Deviation::RopeFactorsByPosition);
            }
        },
    ),
    row("scores-bf16", "scores in bf16", |draft| draft.deviate(Deviation::ScoresBf16)),
    row("softmax-bf16", "the softmax in bf16", |draft| draft.deviate(Deviation::SoftmaxBf16)),
    row("softmax-sums-bf16", "the softmax in bf16 and its sum rounded after each term", |draft| {
        draft.deviate(Deviation::SoftmaxSumsBf16);
    }),
    row("norm-root-bf16", "the root in RMS norms in bf16", |draft| {
        draft.deviate(Deviation::NormRootBf16);
    }),
    row("norm-sums-bf16", "the sums of norms in bf16", |draft| draft.deviate(Deviation::NormSumsBf16)),
    row("residual-bf16", "the residual stream in bf16", |draft| draft.deviate(Deviation::ResidualBf16)),
    row("rope-queries-only", "queries rotated and keys not", |draft| {
        draft.deviate(Deviation::RopeQueriesOnly);
    }),
    row("rope-keys-only", "keys rotated and queries not", |draft| draft.deviate(Deviation::RopeKeysOnly)),
    row("rms-norm-centred", "RMS norms that subtract the mean", |draft| {
        draft.deviate(Deviation::RmsNormCentred);
    }),
    row("layer-norm-not-centred", "layer norms that do not subtract the mean", |draft| {
        draft.deviate(Deviation::LayerNormNotCentred);
    }),
    row("norm-eps-outside", "the epsilon of norms outside the root", |draft| {
        draft.deviate(Deviation::NormEpsOutside);
    }),
    row("norm-final-absent", "no final norm", |draft| {
        draft.deviate(Deviation::NormAbsent("norm"));
        draft.deviate(Deviation::NormAbsent("ln_f"));
        draft.deviate(Deviation::NormAbsent("final_layernorm"));
        draft.deviate(Deviation::NormAbsent("final_layer_norm"));
        draft.deviate(Deviation::NormAbsent("final_norm"));
    }),
    row("norm-before-attention-absent", "no norm before attention", |draft| {
        draft.deviate(Deviation::NormAbsent("input_layernorm"));
        draft.deviate(Deviation::NormAbsent("ln_1"));
        draft.deviate(Deviation::NormAbsent("attn_norm"));
    }),
    row("norm-after-attention-absent", "no `post_attention_layernorm`", |draft| {
        draft.deviate(Deviation::NormAbsent("post_attention_layernorm"));
        draft.deviate(Deviation::NormAbsent("ln_2"));
        draft.deviate(Deviation::NormAbsent("mlp_norm"));
    }),
    row("norm-before-mlp-absent", "no `pre_feedforward_layernorm`", |draft| {
        draft.deviate(Deviation::NormAbsent("pre_feedforward_layernorm"));
    }),
    row("norm-after-mlp-absent", "no `post_feedforward_layernorm`", |draft| {
        draft.deviate(Deviation::NormAbsent("post_feedforward_layernorm"));
    }),
    row("qk-norms-not-applied", "norms of queries and keys not applied", |draft| {
        draft.deviate(Deviation::NormAbsent("q_norm"));
        draft.deviate(Deviation::NormAbsent("k_norm"));
        draft.deviate(Deviation::NormAbsent("q_layernorm"));
        draft.deviate(Deviation::NormAbsent("k_layernorm"));
    }),
    row("qk-norms-after-rope", "norms of queries and keys after the rotation", |draft| {
        draft.deviate(Deviation::QkNormsAfterRope);
    }),
    row(
        "norms-after-residual",
        "norms after the residual additions, not before attention and MLP",
        |draft| {
            // A block with four norms has some on either side.
            if !draft.names().iter().any(|name| name.contains("feedforward_layernorm")) {
                draft.deviate(Deviation::NormsAfterResidual);
            }
        },
    ),
    // A softmax after the choice of experts gives the same numbers as one before it whose scores are then divided by their sum.
    row(
        "router-normalisation",
        "router scores divided by their sum over the chosen experts, or not, against the config",
        |draft| {
            draft.deviate(Deviation::RouterNormalisation);
        },
    ),
];
