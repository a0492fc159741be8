//! Mistakes that a diagnosis has a model make on purpose, where no edit of its checkpoint or inputs expresses them. An
//! ordinary forward pass has none; only the eager backend makes them.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// A causal mask that admits the next token too.
    MaskOneAhead,
    /// A causal mask that admits every later token.
    MaskNotCausal,
    /// A causal mask that does not admit the token itself, except where it is the first.
    MaskExcludesItself,
    /// Cosines and sines rounded to bf16.
    RopeTablesBf16,
    /// Cosines and sines rounded to f16.
    RopeTablesF16,
    /// Positions, rotary frequencies and their products rounded to bf16, and cosines and sines of them.
    RopeAnglesBf16,
    /// Rotary frequencies of each position as in a sequence that ends there, where they depend on the sequence's length.
    RopeFactorsByPosition,
    /// Scores rounded to bf16 after they are scaled.
    ScoresBf16,
    /// The exponentials of softmax, their sum and the probabilities rounded to bf16.
    SoftmaxBf16,
    /// As [`Self::SoftmaxBf16`], with the sum rounded to bf16 after each term.
    SoftmaxSumsBf16,
    /// The root in RMS norms rounded to bf16.
    NormRootBf16,
    /// The squares in norms, their sum and their mean rounded to bf16.
    NormSumsBf16,
    /// The residual stream rounded to bf16 after each addition.
    ResidualBf16,
    /// Queries rotated and keys not.
    RopeQueriesOnly,
    /// Keys rotated and queries not.
    RopeKeysOnly,
    /// RMS norms that subtract the mean, as layer norms do.
    RmsNormCentred,
    /// Layer norms that do not subtract the mean, as RMS norms do.
    LayerNormNotCentred,
    /// The epsilon of norms added to the root instead of under it.
    NormEpsOutside,
    /// No norm in modules of this name.
    NormAbsent(&'static str),
    /// The norms of queries and keys after the rotation, not before it.
    QkNormsAfterRope,
    /// The norms before attention and MLP applied after the residual addition, as in the first transformer.
    NormsAfterResidual,
    /// A router's scores divided by their sum where they should not be, or the other way round.
    RouterNormalisation,
}
