//! Parts of tables that many decoders share.

/// Embedding, final norm and, if the embedding is not tied, the head.
pub(super) const ENDS: &str = "
    model.embed_tokens.weight                                         | vocab_size, hidden_size                   | normal 0 0.3
    model.norm.weight                                                 | hidden_size                               | normal 1 0.2
    lm_head.weight                                                    | vocab_size, hidden_size                   | linear 2     | !tie_word_embeddings
";

/// The two norms of a pre-norm block.
pub(super) const NORMS: &str = "
    model.layers.{num_hidden_layers}.input_layernorm.weight           | hidden_size                               | normal 1 0.2
    model.layers.{num_hidden_layers}.post_attention_layernorm.weight  | hidden_size                               | normal 1 0.2
";

/// Biases of those norms and of the final norm, if they are layer norms.
pub(super) const NORM_BIASES: &str = "
    model.layers.{num_hidden_layers}.input_layernorm.bias             | hidden_size                               | normal 0 0.2
    model.layers.{num_hidden_layers}.post_attention_layernorm.bias    | hidden_size                               | normal 0 0.2
    model.norm.bias                                                   | hidden_size                               | normal 0 0.2
";

/// Attention. The gains give the scores a standard deviation of about 2, so that few keys dominate.
pub(super) const ATTENTION: &str = "
    model.layers.{num_hidden_layers}.self_attn.q_proj.weight          | num_attention_heads*head_dim, hidden_size | linear 1.5
    model.layers.{num_hidden_layers}.self_attn.k_proj.weight          | num_key_value_heads*head_dim, hidden_size | linear 1.5
    model.layers.{num_hidden_layers}.self_attn.v_proj.weight          | num_key_value_heads*head_dim, hidden_size | linear 1
    model.layers.{num_hidden_layers}.self_attn.o_proj.weight          | hidden_size, num_attention_heads*head_dim | linear 1
";

/// Biases of the attention, if the config has them.
pub(super) const ATTENTION_BIASES: &str = "
    model.layers.{num_hidden_layers}.self_attn.q_proj.bias            | num_attention_heads*head_dim              | normal 0 0.5 | attention_bias
    model.layers.{num_hidden_layers}.self_attn.k_proj.bias            | num_key_value_heads*head_dim              | normal 0 0.5 | attention_bias
    model.layers.{num_hidden_layers}.self_attn.v_proj.bias            | num_key_value_heads*head_dim              | normal 0 0.3 | attention_bias
    model.layers.{num_hidden_layers}.self_attn.o_proj.bias            | hidden_size                               | normal 0 0.3 | attention_bias
";

/// The per-head norms of queries and keys. They also give the scores a standard deviation of about 2.
pub(super) const HEAD_NORMS: &str = "
    model.layers.{num_hidden_layers}.self_attn.q_norm.weight          | head_dim                                  | normal 1.5 0.3
    model.layers.{num_hidden_layers}.self_attn.k_norm.weight          | head_dim                                  | normal 1.5 0.3
";

/// Gated MLP.
pub(super) const GATED_MLP: &str = "
    model.layers.{num_hidden_layers}.mlp.gate_proj.weight             | intermediate_size, hidden_size            | linear 1
    model.layers.{num_hidden_layers}.mlp.up_proj.weight               | intermediate_size, hidden_size            | linear 1
    model.layers.{num_hidden_layers}.mlp.down_proj.weight             | hidden_size, intermediate_size            | linear 1.5
";

/// Biases of the gated MLP, if the config has them.
pub(super) const GATED_MLP_BIASES: &str = "
    model.layers.{num_hidden_layers}.mlp.gate_proj.bias               | intermediate_size                         | normal 0 0.3 | mlp_bias
    model.layers.{num_hidden_layers}.mlp.up_proj.bias                 | intermediate_size                         | normal 0 0.3 | mlp_bias
    model.layers.{num_hidden_layers}.mlp.down_proj.bias               | hidden_size                               | normal 0 0.3 | mlp_bias
";
