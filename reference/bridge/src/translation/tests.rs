use super::*;

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().expect("tests write objects").clone()
}

/// Checks that `input` translated for `version` has exactly the keys of `expect`, and that the notes contain
/// each of `said`.
fn check(version: &str, input: &Value, expect: &Value, said: &[&str]) {
    let translated = translate(&object(input), version).unwrap();
    assert_eq!(Value::Object(translated.config), *expect, "{version}");
    let notes = translated.notes.join("\n");
    for word in said {
        assert!(notes.contains(word), "{word} is absent from: {notes}");
    }
    assert_eq!(translated.notes.is_empty(), said.is_empty(), "{notes}");
}

#[test]
fn version_4_gets_the_rope_theta_of_a_version_5_config() {
    let input = json!({
        "model_type": "llama",
        "dtype": "float32",
        "rope_parameters": { "rope_theta": 500_000.0, "rope_type": "default" },
    });
    let expect = json!({
        "model_type": "llama", "rope_theta": 500_000.0, "torch_dtype": "float32",
    });
    let said = ["rope_theta 500000", "dtype -> torch_dtype"];
    check("4.40.2", &input, &expect, &said);
    check("4.54.0", &input, &expect, &said);
    check("5.23.0", &input, &input, &[]);
}

#[test]
fn a_scaled_rope_is_carried_where_the_version_can_express_it() {
    let llama3 = json!({
        "model_type": "llama",
        "rope_parameters": {
            "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    });
    let expect = json!({
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    });
    check("4.54.0", &llama3, &expect, &["rope_scaling"]);
    let refusal = translate(&object(&llama3), "4.40.2").unwrap_err();
    assert!(refusal.contains("llama3") && refusal.contains("4.40.2"));
    check(
        "4.40.2",
        &json!({ "model_type": "llama", "rope_scaling": { "rope_type": "linear", "type": "linear", "factor": 2.0 } }),
        &json!({ "model_type": "llama", "rope_scaling": { "type": "linear", "factor": 2.0 } }),
        &["rope_scaling"],
    );
}

#[test]
fn both_bases_of_gemma3_reach_version_4() {
    let input = json!({
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": { "rope_theta": 1e6, "rope_type": "linear", "factor": 8.0 },
            "sliding_attention": { "rope_theta": 1e4, "rope_type": "default" },
        },
    });
    let expect = json!({
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_local_base_freq": 1e4,
        "rope_theta": 1e6,
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
        "sliding_window_pattern": 3,
    });
    check("4.51.3", &input, &expect, &["rope_local_base_freq", "rope_theta", "sliding_window_pattern"]);
    assert_eq!(rope_thetas(&object(&input)), [1e4, 1e6]);
    assert_eq!(rope_thetas(&object(&expect)), [1e4, 1e6]);
}

#[test]
fn gpt_neox_and_modernbert_get_their_own_key_names() {
    check(
        "4.54.0",
        &json!({ "model_type": "gpt_neox", "rope_parameters": { "rope_theta": 1e4, "partial_rotary_factor": 0.25 } }),
        &json!({ "model_type": "gpt_neox", "rotary_emb_base": 1e4, "rotary_pct": 0.25 }),
        &["rotary_emb_base", "rotary_pct"],
    );
    check(
        "4.54.0",
        &json!({ "model_type": "modernbert", "rope_parameters": {
            "full_attention": { "rope_theta": 1.6e5 }, "sliding_attention": { "rope_theta": 1e4 },
        } }),
        &json!({ "model_type": "modernbert", "global_rope_theta": 1.6e5, "local_rope_theta": 1e4 }),
        &["global_rope_theta", "local_rope_theta"],
    );
}

#[test]
fn phi3_keeps_its_own_spelling_of_long_rope() {
    let input = json!({ "model_type": "phi3", "rope_parameters": {
        "rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0],
        "original_max_position_embeddings": 32,
    } });
    let expect = json!({
        "model_type": "phi3",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 32,
        "rope_scaling": { "short_factor": [1.0], "long_factor": [2.0], "type": "longrope" },
    });
    let said = ["rope_theta", "original_max_position_embeddings", "rope_scaling"];
    check("4.57.6", &input, &expect, &said);
}

#[test]
fn what_version_4_cannot_express_is_refused() {
    let check = |input: &Value, word: &str| {
        let refusal = translate(&object(input), "4.54.0").unwrap_err();
        assert!(refusal.contains(word), "{refusal}");
    };
    check(
        &json!({ "model_type": "olmo3", "rope_parameters": {
            "full_attention": { "rope_theta": 5e5 }, "sliding_attention": { "rope_theta": 1e4 },
        } }),
        "for each layer type",
    );
    check(
        &json!({ "model_type": "gemma3_text", "layer_types": [
            "full_attention", "sliding_attention", "sliding_attention", "full_attention",
        ] }),
        "period",
    );
}

#[test]
fn version_5_reads_version_4_keys_with_a_note() {
    let input = json!({ "model_type": "llama", "rope_theta": 5e5, "torch_dtype": "bfloat16" });
    let expect = json!({ "model_type": "llama", "rope_theta": 5e5, "dtype": "bfloat16" });
    check("5.23.0", &input, &expect, &["rope_theta 500000", "torch_dtype -> dtype"]);
}
