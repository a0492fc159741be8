//! Finds the suspect among measured modules: descends into the first module whose output differs although its input
//! agrees.

use std::collections::HashMap;

use super::Between;
use super::tensor::{Difference, Scores};
use crate::results::localized::Differing;

/// One pair of module calls, measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Path on the first side.
    pub(super) path: String,
    /// `None` if it cannot be compared.
    pub(super) input: Option<Difference>,
    /// `None` if it cannot be compared.
    pub(super) output: Option<Difference>,
    /// Only for a softmax.
    pub(super) scores: Option<Scores>,
    /// Whether the output with the largest difference is not the first returned tensor.
    pub(super) is_other_output: bool,
    /// Further arguments that make the output differ although the first input agrees.
    pub(super) arguments: Vec<Differing>,
}

/// Largest differences that rounding explains, as relative L2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit {
    /// Over all positions.
    pub(super) overall: f64,
    /// At the worst position.
    pub(super) position: f64,
}

impl Limit {
    /// A limit without a bound for single positions.
    pub(super) fn overall(overall: f64) -> Self {
        Self { overall, position: f64::INFINITY }
    }

    /// Whether a difference exceeds the limit; false if it cannot be compared.
    pub(super) fn is_passed(&self, difference: Option<Difference>) -> bool {
        difference.is_some_and(|difference| {
            difference.relative_l2 > self.overall || difference.at_worst() > self.position
        })
    }
}

/// The first diverging module, step or stretch of code.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Suspect {
    /// Index of the module; `None` for the model outside of all its modules.
    pub(super) module: Option<usize>,
    /// A step of the module that has no capture of its own: `mask` or `scores`.
    pub(super) step: Option<(&'static str, Difference)>,
    /// The stretch of the module's own code that diverges.
    pub(super) between: Option<Between>,
    /// What this stretch computes otherwise, if it is an argument of a module behind the first.
    pub(super) arguments: Vec<Differing>,
}

impl Suspect {
    fn module(module: Option<usize>, between: Option<Between>) -> Self {
        Self { module, step: None, between, arguments: Vec::new() }
    }
}

/// The suspect among `modules`, which are in call order; `None` if no output differs. `scope` is the index of a
/// module that is known to differ on the same input.
pub(super) fn suspect(modules: &[Measured], scope: Option<usize>, limit: Limit) -> Option<Suspect> {
    let children = children(modules);
    if scope.is_none() && !modules.iter().any(|module| limit.is_passed(module.output)) {
        return None;
    }
    let mut module = scope;
    loop {
        let below = children.get(&module).map_or(&[][..], Vec::as_slice);
        let mut after: Option<&str> = None;
        let mut next = None;
        for &child in below {
            let measured = &modules[child];
            if let Some(step) = unequal_scores(measured, limit.overall) {
                return Some(Suspect { step: Some(step), ..Suspect::module(module, None) });
            }
            if limit.is_passed(measured.output) {
                if limit.is_passed(measured.input) || !measured.arguments.is_empty() {
                    let between = between(after, Some(&measured.path));
                    let arguments = measured.arguments.clone();
                    return Some(Suspect { arguments, ..Suspect::module(module, between) });
                }
                next = Some(child);
                break;
            }
            after = Some(&measured.path);
        }
        if next.is_none() {
            let between = if below.is_empty() { None } else { between(after, None) };
            return Some(Suspect::module(module, between));
        }
        module = next;
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is the field's type")]
fn between(after: Option<&str>, before: Option<&str>) -> Option<Between> {
    Some(Between { after: after.map(str::to_owned), before: before.map(str::to_owned) })
}

/// The part of a softmax's input that differs.
fn unequal_scores(measured: &Measured, threshold: f64) -> Option<(&'static str, Difference)> {
    let scores = measured.scores?;
    [("mask", scores.mask), ("scores", scores.scores)]
        .into_iter()
        .find(|(_, difference)| difference.relative_l2 > threshold)
}

/// The direct children of each module, in call order; modules without a parent are under `None`. A module that runs
/// before its parent by path (native T5's relative biases, which all layers share) belongs to the parent's first call.
fn children(modules: &[Measured]) -> HashMap<Option<usize>, Vec<usize>> {
    let mut latest: HashMap<&str, usize> = HashMap::new();
    for (index, module) in modules.iter().enumerate() {
        latest.entry(&module.path).or_insert(index);
    }
    let mut children: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
    for (index, module) in modules.iter().enumerate() {
        let parent = ancestors(&module.path).find_map(|path| latest.get(path).copied());
        children.entry(parent).or_default().push(index);
        latest.insert(&module.path, index);
    }
    children
}

/// Whether a path is not inside a numbered module (a block): `model`, `model.layers.3`, `lm_head`.
pub(super) fn is_coarse(path: &str) -> bool {
    !ancestors(path).any(|above| {
        above.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

pub(super) fn is_in(path: &str, module: &str) -> bool {
    path == module || path.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

/// `a.b.c` gives `a.b` and `a`.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('.').map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { overall: 1e-10, position: f64::INFINITY };

    fn measured(path: &str, input: f64, output: f64) -> Measured {
        let difference = |relative_l2| Some(Difference { relative_l2, worst: None });
        Measured {
            path: path.into(),
            input: difference(input),
            output: difference(output),
            ..Measured::default()
        }
    }

    fn check(modules: &[Measured], path: Option<&str>, after: Option<&str>, before: Option<&str>) {
        let found = suspect(modules, None, LIMIT).unwrap();
        assert_eq!(found.module.map(|index| modules[index].path.as_str()), path, "{found:?}");
        let between = found.between.unwrap_or_default();
        assert_eq!((between.after.as_deref(), between.before.as_deref()), (after, before));
    }

    #[test]
    fn the_deepest_module_that_differs_on_equal_input_is_found() {
        let modules = [
            measured("model", 0.0, 0.3),
            measured("model.embed_tokens", 0.0, 0.0),
            measured("model.layers.0", 0.0, 1e-16),
            measured("model.layers.1", 1e-16, 0.1),
            measured("model.layers.1.mlp", 1e-15, 0.2),
            measured("model.layers.1.mlp.down_proj", 1e-15, 0.2),
            measured("model.norm", 0.1, 0.3),
            measured("lm_head", 0.3, 0.3),
        ];
        check(&modules, Some("model.layers.1.mlp.down_proj"), None, None);
    }

    #[test]
    fn a_difference_between_modules_belongs_to_their_parent() {
        let scaled = [
            measured("model", 0.0, 0.3),
            measured("model.embed_tokens", 0.0, 0.0),
            measured("model.layers.0", 0.5, 0.5),
        ];
        check(&scaled, Some("model"), Some("model.embed_tokens"), Some("model.layers.0"));
        let added = [measured("block", 0.0, 0.3), measured("block.mlp", 0.0, 0.0)];
        check(&added, Some("block"), Some("block.mlp"), None);
        let outside = [measured("model", 0.0, 0.0), measured("lm_head", 0.1, 0.1)];
        check(&outside, None, Some("model"), Some("lm_head"));
    }

    #[test]
    fn a_differing_argument_belongs_to_the_code_that_computes_it() {
        let mut experts = measured("mlp.experts", 0.0, 0.4);
        let weights = Differing {
            module: "mlp.experts".into(),
            name: "top_k_weights".into(),
            relative_l2: Some(0.5),
            shapes: [vec![10, 2], vec![10, 2]],
        };
        let modules =
            |experts: Measured| [measured("mlp", 0.0, 0.3), measured("mlp.gate", 0.0, 0.0), experts];
        check(&modules(experts.clone()), Some("mlp.experts"), None, None);
        experts.arguments = vec![weights.clone()];
        let modules = modules(experts);
        check(&modules, Some("mlp"), Some("mlp.gate"), Some("mlp.experts"));
        assert_eq!(suspect(&modules, None, LIMIT).unwrap().arguments, [weights]);
    }

    #[test]
    fn a_module_that_runs_before_its_parent_belongs_to_it() {
        let modules = |input| {
            [
                measured("block.0.attn.bias", input, 0.4),
                measured("block.0", 0.0, 0.3),
                measured("block.0.attn", 0.0, 0.3),
                measured("block.0.attn.q", 0.0, 0.0),
            ]
        };
        check(&modules(0.0), Some("block.0.attn.bias"), None, None);
        check(&modules(0.2), Some("block.0.attn"), None, Some("block.0.attn.bias"));
    }

    #[test]
    fn no_suspect_without_a_differing_output() {
        assert_eq!(suspect(&[measured("model", 0.1, 0.0)], None, LIMIT), None);
    }

    #[test]
    fn mask_comes_before_scores_and_softmax() {
        let mut softmax = measured("self_attn.softmax", 0.5, 0.5);
        let apart = |relative_l2| Difference { relative_l2, worst: None };
        softmax.scores = Some(Scores { mask: apart(0.1), scores: apart(0.2) });
        let mut modules =
            vec![measured("self_attn", 0.0, 0.3), measured("self_attn.q_proj", 0.0, 0.0), softmax];
        let step = |modules: &[Measured]| suspect(modules, None, LIMIT).unwrap().step.map(|(name, _)| name);
        assert_eq!(step(&modules), Some("mask"));
        modules[2].scores = Some(Scores { mask: apart(0.0), scores: apart(0.2) });
        assert_eq!(step(&modules), Some("scores"));
        modules[2].scores = Some(Scores { mask: apart(0.0), scores: apart(0.0) });
        modules[2].input = Some(apart(0.0));
        assert_eq!(step(&modules), None);
        check(&modules, Some("self_attn.softmax"), None, None);
    }
}
