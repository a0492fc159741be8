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
    /// A causal mask that admits the tokens after each token in place of those before it.
    MaskTransposed,
    /// Cosines and sines rounded to bf16.
    RopeTablesBf16,
    /// Cosines and sines rounded to f16.
    RopeTablesF16,
    /// Positions, rotary frequencies and their products rounded to bf16, and cosines and sines of them.
    RopeAnglesBf16,
    /// The same rounded to f16.
    RopeAnglesF16,
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
    /// Cosines and sines laid out for neighbours where halves are rotated, or the other way round.
    RopeTablesMislaid,
    /// Query head `h` takes the values of key head `h % kv_heads`, and the keys that it should.
    ValuesTiled,
    /// RMS norms that subtract the mean, as layer norms do.
    RmsNormCentred,
    /// Layer norms that do not subtract the mean, as RMS norms do.
    LayerNormNotCentred,
    /// The epsilon of norms added to the root instead of under it.
    NormEpsOutside,
    /// No norm in modules of this name.
    NormAbsent(&'static str),
    /// An epsilon of 10 to this power in the norms of queries and keys.
    QkNormEps(i32),
    /// The norms of queries and keys after the rotation, not before it.
    QkNormsAfterRope,
    /// The norms before attention and MLP applied after the residual addition, as in the first transformer.
    NormsAfterResidual,
    /// A classifier that pools the last position, not the first.
    PooledLast,
    /// A classifier that pools the mean over real tokens, not the first position.
    PooledMean,
    /// Attention and MLP added to the output of the norm before them, not to its input.
    ResidualFromNorm,
    /// Attention and MLP of a layer computed from the same input, and both added to it.
    ResidualParallel,
    /// A router's scores divided by their sum where they should not be, or the other way round.
    RouterNormalisation,
}
