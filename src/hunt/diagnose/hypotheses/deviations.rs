//! Mistakes that no edit of a checkpoint or its inputs expresses; a native trusted side makes them.

use models::Deviation;

use super::super::draft::Draft;
use super::super::parts::heads;
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
    row("mask-transposed", "a mask that admits later tokens and not earlier ones", |draft| {
        draft.deviate(Deviation::MaskTransposed);
    }),
    row("rope-tables-bf16", "rotary tables in bf16", |draft| draft.deviate(Deviation::RopeTablesBf16)),
    row("rope-tables-f16", "rotary tables in f16", |draft| draft.deviate(Deviation::RopeTablesF16)),
    row("rope-angles-bf16", "positions, frequencies and angles of the rotation in bf16", |draft| {
        draft.deviate(Deviation::RopeAnglesBf16);
    }),
    row("rope-angles-f16", "positions, frequencies and angles of the rotation in f16", |draft| {
        draft.deviate(Deviation::RopeAnglesF16);
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
    row("rope-tables-mislaid", "rotary tables laid out for the other pairing of features", |draft| {
        draft.deviate(Deviation::RopeTablesMislaid);
    }),
    row("kv-values-tiled", "values of key heads tiled instead of repeated", |draft| {
        if heads(draft).is_some_and(|sizes| 1 < sizes.kv_heads && sizes.kv_heads < sizes.heads) {
            draft.deviate(Deviation::ValuesTiled);
        }
    }),
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
    row("q-norm-not-applied", "no norm of queries", |draft| {
        draft.deviate(Deviation::NormAbsent("q_norm"));
        draft.deviate(Deviation::NormAbsent("q_layernorm"));
    }),
    row("k-norm-not-applied", "no norm of keys", |draft| {
        draft.deviate(Deviation::NormAbsent("k_norm"));
        draft.deviate(Deviation::NormAbsent("k_layernorm"));
    }),
    row("qk-norm-eps-1e-5", "an epsilon of 1e-5 in the norms of queries and keys", |draft| {
        draft.deviate(Deviation::QkNormEps(-5));
    }),
    row("qk-norm-eps-1e-6", "an epsilon of 1e-6 in the norms of queries and keys", |draft| {
        draft.deviate(Deviation::QkNormEps(-6));
    }),
    row("qk-norms-after-rope", "norms of queries and keys after the rotation", |draft| {
        draft.deviate(Deviation::QkNormsAfterRope);
    }),
    row(
        "norms-after-residual",
        "norms after the residual additions, not before attention and MLP",
        |draft| {
            if !has_norms_after(draft) {
                draft.deviate(Deviation::NormsAfterResidual);
            }
        },
    ),
    row("residual-from-norm", "attention and MLP added to the norm's output, not to its input", |draft| {
        if !has_norms_after(draft) {
            draft.deviate(Deviation::ResidualFromNorm);
        }
    }),
    row("residual-parallel", "attention and MLP computed from the same input", |draft| {
        draft.deviate(Deviation::ResidualParallel);
    }),
    // A softmax after the choice of experts gives the same numbers as one before it whose scores are then divided by their sum.
    row(
        "router-normalisation",
        "router scores divided by their sum over the chosen experts, or not, against the config",
        |draft| {
            draft.deviate(Deviation::RouterNormalisation);
        },
    ),
];

/// Whether attention and MLP have norms after them, as where a block has four.
fn has_norms_after(draft: &Draft) -> bool {
    draft.names().iter().any(|name| name.contains("feedforward_layernorm"))
}
