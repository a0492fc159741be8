//! Encoders: bert, distilbert, roberta, xlm_roberta, modernbert. The default variant predicts masked tokens;
//! `classifier` has three labels for the sequence.

use super::{Checkpoints, Variant};

const CLASSIFIER_SHOWS: &str = "sequence classification, three labels";

pub(crate) const BERT: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["BertForMaskedLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3,
        "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 0.003, "max_position_embeddings": 128,
        "type_vocab_size": 2, "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": true, "pad_token_id": 0
    }"#,
    tensors: &["
        bert.embeddings.word_embeddings.weight                                        | vocab_size, hidden_size              | normal 0 0.5
        bert.embeddings.position_embeddings.weight                                    | max_position_embeddings, hidden_size | normal 0 0.4
        bert.embeddings.token_type_embeddings.weight                                  | type_vocab_size, hidden_size         | normal 0 0.3
        bert.embeddings.LayerNorm.weight                                              | hidden_size                          | normal 1 0.2
        bert.embeddings.LayerNorm.bias                                                | hidden_size                          | normal 0 0.2
        bert.encoder.layer.{num_hidden_layers}.attention.self.query.weight            | hidden_size, hidden_size             | linear 1.5
        bert.encoder.layer.{num_hidden_layers}.attention.self.query.bias              | hidden_size                          | normal 0 0.5
        bert.encoder.layer.{num_hidden_layers}.attention.self.key.weight              | hidden_size, hidden_size             | linear 1.5
        bert.encoder.layer.{num_hidden_layers}.attention.self.key.bias                | hidden_size                          | normal 0 0.5
        bert.encoder.layer.{num_hidden_layers}.attention.self.value.weight            | hidden_size, hidden_size             | linear 1
        bert.encoder.layer.{num_hidden_layers}.attention.self.value.bias              | hidden_size                          | normal 0 0.3
        bert.encoder.layer.{num_hidden_layers}.attention.output.dense.weight          | hidden_size, hidden_size             | linear 1
        bert.encoder.layer.{num_hidden_layers}.attention.output.dense.bias            | hidden_size                          | normal 0 0.3
        bert.encoder.layer.{num_hidden_layers}.attention.output.LayerNorm.weight      | hidden_size                          | normal 1 0.2
        bert.encoder.layer.{num_hidden_layers}.attention.output.LayerNorm.bias        | hidden_size                          | normal 0 0.2
        bert.encoder.layer.{num_hidden_layers}.intermediate.dense.weight              | intermediate_size, hidden_size       | linear 1.5
        bert.encoder.layer.{num_hidden_layers}.intermediate.dense.bias                | intermediate_size                    | normal 0 0.3
        bert.encoder.layer.{num_hidden_layers}.output.dense.weight                    | hidden_size, intermediate_size       | linear 1.2
        bert.encoder.layer.{num_hidden_layers}.output.dense.bias                      | hidden_size                          | normal 0 0.3
        bert.encoder.layer.{num_hidden_layers}.output.LayerNorm.weight                | hidden_size                          | normal 1 0.2
        bert.encoder.layer.{num_hidden_layers}.output.LayerNorm.bias                  | hidden_size                          | normal 0 0.2
        cls.predictions.transform.dense.weight      | hidden_size, hidden_size | linear 1.5   | !id2label
        cls.predictions.transform.dense.bias        | hidden_size              | normal 0 0.3 | !id2label
        cls.predictions.transform.LayerNorm.weight  | hidden_size              | normal 1 0.2 | !id2label
        cls.predictions.transform.LayerNorm.bias    | hidden_size              | normal 0 0.2 | !id2label
        cls.predictions.bias                        | vocab_size               | normal 0 0.5 | !id2label
        bert.pooler.dense.weight                    | hidden_size, hidden_size | linear 1     | id2label
        bert.pooler.dense.bias                      | hidden_size              | normal 0 0.3 | id2label
        classifier.weight                           | 3, hidden_size           | linear 2     | id2label
        classifier.bias                             | 3                        | normal 0 0.5 | id2label
    "],
    variants: &[
        Variant::small("", "masked LM: exact GELU, layer_norm_eps 3e-3, tied decoder with a bias", "{}"),
        Variant::small("classifier", CLASSIFIER_SHOWS, r#"{
            "architectures": ["BertForSequenceClassification"],
            "id2label": { "0": "a", "1": "b", "2": "c" }, "label2id": { "a": 0, "b": 1, "c": 2 }
        }"#),
    ],
};

pub(crate) const DISTILBERT: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["DistilBertForMaskedLM"],
        "vocab_size": 288, "dim": 64, "hidden_dim": 144, "n_layers": 3, "n_heads": 4, "activation": "gelu",
        "max_position_embeddings": 128, "sinusoidal_pos_embds": false,
        "dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0,
        "tie_word_embeddings": true, "pad_token_id": 0
    }"#,
    tensors: &["
        distilbert.embeddings.word_embeddings.weight                      | vocab_size, dim              | normal 0 0.5
        distilbert.embeddings.position_embeddings.weight                  | max_position_embeddings, dim | normal 0 0.4
        distilbert.embeddings.LayerNorm.weight                            | dim                          | normal 1 0.2
        distilbert.embeddings.LayerNorm.bias                              | dim                          | normal 0 0.2
        distilbert.transformer.layer.{n_layers}.attention.q_lin.weight    | dim, dim                     | linear 1.5
        distilbert.transformer.layer.{n_layers}.attention.q_lin.bias      | dim                          | normal 0 0.5
        distilbert.transformer.layer.{n_layers}.attention.k_lin.weight    | dim, dim                     | linear 1.5
        distilbert.transformer.layer.{n_layers}.attention.k_lin.bias      | dim                          | normal 0 0.5
        distilbert.transformer.layer.{n_layers}.attention.v_lin.weight    | dim, dim                     | linear 1
        distilbert.transformer.layer.{n_layers}.attention.v_lin.bias      | dim                          | normal 0 0.3
        distilbert.transformer.layer.{n_layers}.attention.out_lin.weight  | dim, dim                     | linear 1
        distilbert.transformer.layer.{n_layers}.attention.out_lin.bias    | dim                          | normal 0 0.3
        distilbert.transformer.layer.{n_layers}.sa_layer_norm.weight      | dim                          | normal 1 0.2
        distilbert.transformer.layer.{n_layers}.sa_layer_norm.bias        | dim                          | normal 0 0.2
        distilbert.transformer.layer.{n_layers}.ffn.lin1.weight           | hidden_dim, dim              | linear 1.5
        distilbert.transformer.layer.{n_layers}.ffn.lin1.bias             | hidden_dim                   | normal 0 0.3
        distilbert.transformer.layer.{n_layers}.ffn.lin2.weight           | dim, hidden_dim              | linear 1.2
        distilbert.transformer.layer.{n_layers}.ffn.lin2.bias             | dim                          | normal 0 0.3
        distilbert.transformer.layer.{n_layers}.output_layer_norm.weight  | dim                          | normal 1 0.2
        distilbert.transformer.layer.{n_layers}.output_layer_norm.bias    | dim                          | normal 0 0.2
        vocab_transform.weight   | dim, dim   | linear 1.5   | !id2label
        vocab_transform.bias     | dim        | normal 0 0.3 | !id2label
        vocab_layer_norm.weight  | dim        | normal 1 0.2 | !id2label
        vocab_layer_norm.bias    | dim        | normal 0 0.2 | !id2label
        vocab_projector.bias     | vocab_size | normal 0 0.5 | !id2label
        pre_classifier.weight    | dim, dim   | linear 1.5   | id2label
        pre_classifier.bias      | dim        | normal 0 0.3 | id2label
        classifier.weight        | 3, dim     | linear 2     | id2label
        classifier.bias          | 3          | normal 0 0.5 | id2label
    "],
    variants: &[
        Variant::small("", "masked LM: no token types, tied projector with a bias", "{}"),
        Variant::small("classifier", CLASSIFIER_SHOWS, r#"{
            "architectures": ["DistilBertForSequenceClassification"],
            "id2label": { "0": "a", "1": "b", "2": "c" }, "label2id": { "a": 0, "b": 1, "c": 2 }
        }"#),
    ],
};

const ROBERTA_TENSORS: &str = "
    roberta.embeddings.word_embeddings.weight                                     | vocab_size, hidden_size              | normal 0 0.5
    roberta.embeddings.position_embeddings.weight                                 | max_position_embeddings, hidden_size | normal 0 0.4
    roberta.embeddings.token_type_embeddings.weight                               | type_vocab_size, hidden_size         | normal 0 0.3
    roberta.embeddings.LayerNorm.weight                                           | hidden_size                          | normal 1 0.2
    roberta.embeddings.LayerNorm.bias                                             | hidden_size                          | normal 0 0.2
    roberta.encoder.layer.{num_hidden_layers}.attention.self.query.weight         | hidden_size, hidden_size             | linear 1.5
    roberta.encoder.layer.{num_hidden_layers}.attention.self.query.bias           | hidden_size                          | normal 0 0.5
    roberta.encoder.layer.{num_hidden_layers}.attention.self.key.weight           | hidden_size, hidden_size             | linear 1.5
    roberta.encoder.layer.{num_hidden_layers}.attention.self.key.bias             | hidden_size                          | normal 0 0.5
    roberta.encoder.layer.{num_hidden_layers}.attention.self.value.weight         | hidden_size, hidden_size             | linear 1
    roberta.encoder.layer.{num_hidden_layers}.attention.self.value.bias           | hidden_size                          | normal 0 0.3
    roberta.encoder.layer.{num_hidden_layers}.attention.output.dense.weight       | hidden_size, hidden_size             | linear 1
    roberta.encoder.layer.{num_hidden_layers}.attention.output.dense.bias         | hidden_size                          | normal 0 0.3
    roberta.encoder.layer.{num_hidden_layers}.attention.output.LayerNorm.weight   | hidden_size                          | normal 1 0.2
    roberta.encoder.layer.{num_hidden_layers}.attention.output.LayerNorm.bias     | hidden_size                          | normal 0 0.2
    roberta.encoder.layer.{num_hidden_layers}.intermediate.dense.weight           | intermediate_size, hidden_size       | linear 1.5
    roberta.encoder.layer.{num_hidden_layers}.intermediate.dense.bias             | intermediate_size                    | normal 0 0.3
    roberta.encoder.layer.{num_hidden_layers}.output.dense.weight                 | hidden_size, intermediate_size       | linear 1.2
    roberta.encoder.layer.{num_hidden_layers}.output.dense.bias                   | hidden_size                          | normal 0 0.3
    roberta.encoder.layer.{num_hidden_layers}.output.LayerNorm.weight             | hidden_size                          | normal 1 0.2
    roberta.encoder.layer.{num_hidden_layers}.output.LayerNorm.bias               | hidden_size                          | normal 0 0.2
    lm_head.dense.weight        | hidden_size, hidden_size | linear 1.5   | !id2label
    lm_head.dense.bias          | hidden_size              | normal 0 0.3 | !id2label
    lm_head.layer_norm.weight   | hidden_size              | normal 1 0.2 | !id2label
    lm_head.layer_norm.bias     | hidden_size              | normal 0 0.2 | !id2label
    lm_head.bias                | vocab_size               | normal 0 0.5 | !id2label
    classifier.dense.weight     | hidden_size, hidden_size | linear 1     | id2label
    classifier.dense.bias       | hidden_size              | normal 0 0.3 | id2label
    classifier.out_proj.weight  | 3, hidden_size           | linear 2     | id2label
    classifier.out_proj.bias    | 3                        | normal 0 0.5 | id2label
";

pub(crate) const ROBERTA: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["RobertaForMaskedLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3,
        "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 0.003, "max_position_embeddings": 130,
        "type_vocab_size": 1, "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": true, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2
    }"#,
    tensors: &[ROBERTA_TENSORS],
    variants: &[
        Variant::small("", "masked LM: positions counted from pad_token_id + 1, tied decoder with a bias", "{}"),
        Variant::small("classifier", CLASSIFIER_SHOWS, r#"{
            "architectures": ["RobertaForSequenceClassification"],
            "id2label": { "0": "a", "1": "b", "2": "c" }, "label2id": { "a": 0, "b": 1, "c": 2 }
        }"#),
    ],
};

pub(crate) const XLM_ROBERTA: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["XLMRobertaForMaskedLM"],
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 4,
        "num_attention_heads": 8, "hidden_act": "gelu", "layer_norm_eps": 0.001, "max_position_embeddings": 130,
        "type_vocab_size": 1, "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": true, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2
    }"#,
    tensors: &[ROBERTA_TENSORS],
    variants: &[
        Variant::small("", "masked LM: as roberta, under its own model type", "{}"),
        Variant::small("classifier", CLASSIFIER_SHOWS, r#"{
            "architectures": ["XLMRobertaForSequenceClassification"],
            "id2label": { "0": "a", "1": "b", "2": "c" }, "label2id": { "a": 0, "b": 1, "c": 2 }
        }"#),
    ],
};

pub(crate) const MODERNBERT: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["ModernBertForMaskedLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "hidden_activation": "gelu", "norm_eps": 0.003, "max_position_embeddings": 128,
        "global_rope_theta": 50000.0, "local_rope_theta": 500.0,
        "local_attention": 8, "global_attn_every_n_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "attention_bias": false, "mlp_bias": false, "norm_bias": false, "decoder_bias": true, "classifier_bias": false,
        "classifier_pooling": "mean", "classifier_activation": "gelu",
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "classifier_dropout": 0.0,
        "reference_compile": false, "tie_word_embeddings": true,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2
    }"#,
    tensors: &["
        model.embeddings.tok_embeddings.weight             | vocab_size, hidden_size          | normal 0 0.5
        model.embeddings.norm.weight                       | hidden_size                      | normal 1 0.2
        model.layers.{num_hidden_layers}.attn_norm.weight  | hidden_size                      | normal 1 0.2 | layer not 0
        model.layers.{num_hidden_layers}.attn.Wqkv.weight  | 3*hidden_size, hidden_size       | linear 1.5
        model.layers.{num_hidden_layers}.attn.Wqkv.bias    | 3*hidden_size                    | normal 0 0.4 | attention_bias
        model.layers.{num_hidden_layers}.attn.Wo.weight    | hidden_size, hidden_size         | linear 1
        model.layers.{num_hidden_layers}.attn.Wo.bias      | hidden_size                      | normal 0 0.3 | attention_bias
        model.layers.{num_hidden_layers}.mlp_norm.weight   | hidden_size                      | normal 1 0.2
        model.layers.{num_hidden_layers}.mlp.Wi.weight     | 2*intermediate_size, hidden_size | linear 1
        model.layers.{num_hidden_layers}.mlp.Wi.bias       | 2*intermediate_size              | normal 0 0.3 | mlp_bias
        model.layers.{num_hidden_layers}.mlp.Wo.weight     | hidden_size, intermediate_size   | linear 1.5
        model.layers.{num_hidden_layers}.mlp.Wo.bias       | hidden_size                      | normal 0 0.3 | mlp_bias
        model.final_norm.weight                            | hidden_size                      | normal 1 0.2
        head.dense.weight                                  | hidden_size, hidden_size         | linear 1.5
        head.dense.bias                                    | hidden_size                      | normal 0 0.3 | classifier_bias
        head.norm.weight                                   | hidden_size                      | normal 1 0.2
        decoder.bias                                       | vocab_size                       | normal 0 0.5 | !id2label
        classifier.weight                                  | 3, hidden_size                   | linear 2     | id2label
        classifier.bias                                    | 3                                | normal 0 0.5 | id2label
    "],
    variants: &[
        Variant::small("", "masked LM: two rope bases, 4 keys each way in two of four layers, no norm before layer 0", "{}"),
        Variant::small("bias", "masked LM: biases of attention, MLP and head", r#"{
            "attention_bias": true, "mlp_bias": true, "classifier_bias": true
        }"#),
        Variant::small("classifier", "sequence classification, three labels, mean pooling", r#"{
            "architectures": ["ModernBertForSequenceClassification"],
            "id2label": { "0": "a", "1": "b", "2": "c" }, "label2id": { "a": 0, "b": 1, "c": 2 }
        }"#),
        Variant::small("classifier-cls", "sequence classification, three labels, the first token's state", r#"{
            "architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "cls",
            "id2label": { "0": "a", "1": "b", "2": "c" }, "label2id": { "a": 0, "b": 1, "c": 2 }
        }"#),
    ],
};
