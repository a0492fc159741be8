//! Names of the parts of a network, the same in a failing test and in a diagnosis.

use super::Piece;

/// What is left if every attention and MLP is switched off.
pub const ENDS: &str = "embedding, norms and head";
/// The rotation of queries and keys.
pub const ROTATION: &str = "rotation";
/// What rotation turns out to be if it does not differ without the bias of keys.
pub const KEY_BIAS: &str = "bias of keys";

/// `layer 0's rotation`, `every layer's MLP`, `the MLP of layers 1, 3`, where the blocks of the layers `found` of `count` differ.
pub fn part(piece: Piece, kind: &str, found: &[usize], count: usize) -> String {
    let all: Vec<String> = found.iter().map(ToString::to_string).collect();
    match (piece, found) {
        (Piece::Ends, _) => kind.to_owned(),
        (_, [layer]) => format!("layer {layer}'s {kind}"),
        (_, found) if found.len() == count => format!("every layer's {kind}"),
        _ => format!("the {kind} of layers {}", all.join(", ")),
    }
}

/// On which edited checkpoint a part differs.
pub fn how(piece: Piece) -> &'static str {
    match piece {
        Piece::Ends => "with every output of attention and MLP zero",
        Piece::Uniform => "with that attention alone and queries and keys of zero",
        Piece::Mlp | Piece::Unrotated | Piece::Attention | Piece::NoKeyBias => "with that block alone",
    }
}

/// What an MLP is called.
pub fn of_mlp(has_experts: bool) -> &'static str {
    if has_experts { "router or experts" } else { "MLP" }
}

/// What differs in an attention over equal scores, by whether it differs on one token, which attends to itself alone whatever the
/// mask.
pub fn of_uniform(on_one_token: Option<bool>) -> &'static str {
    match on_one_token {
        Some(false) => "mask or softmax",
        Some(true) => "values or output projection",
        None => "mask or values",
    }
}

/// What differs in an attention's scores, by whether they differ without rotation: with all tokens at one position, and with
/// features alone whose angles are next to nothing. `has_factor`: cosines and sines have a factor.
pub fn of_scores(without_rotation: [Option<bool>; 2], has_factor: bool) -> &'static str {
    match without_rotation {
        [Some(false), _] | [_, Some(false)] => ROTATION,
        [Some(true), Some(true)] if has_factor => "scores, or the factor of cos and sin",
        [Some(true), Some(true)] => "scores",
        _ => "scores or rotation",
    }
}
