//! Sizes of a config against their limits, before a list is walked or memory is allocated by them.

use bounds::Limit;
use bounds::limits::{
    AT_ONCE, BATCH, BATCH_TOKENS, CASES, LENGTH, LIST, MEMORY_GB, PASSES, ROUNDS, SECONDS, THREADS, VARIANTS,
};
use compare::verdict::{Overrides, PartialPerDtype, PerDtype, Tolerances};

use super::{Config, Found, InputsConfig, Run, Step};

/// Whether every list of the config is short enough to be walked; the problems of those that are not.
pub(super) fn lists(config: &Config) -> Found {
    let mut found = Found(Vec::new());
    let inputs = &config.inputs;
    let length = |list: &Option<Vec<usize>>| list.as_ref().map_or(0, Vec::len);
    let run = &config.run;
    for (path, length) in [
        (&["checkpoints"][..], config.checkpoints.len()),
        (&["versions"][..], config.versions.len()),
        (&["commands"][..], config.commands.len()),
        (&["inputs", "prompts"][..], inputs.prompts.as_ref().map_or(0, Vec::len)),
        (&["inputs", "choices"][..], inputs.choices.as_ref().map_or(0, Vec::len)),
        (&["inputs", "token_ids"][..], inputs.token_ids.as_ref().map_or(0, Vec::len)),
        (&["inputs", "images"][..], inputs.images.as_ref().map_or(0, Vec::len)),
        (&["inputs", "audio"][..], inputs.audio.as_ref().map_or(0, Vec::len)),
        (&["run", "outputs"][..], run.outputs.len()),
        (&["inputs", "lengths"][..], length(&inputs.lengths)),
        (&["inputs", "batch"][..], length(&inputs.batch)),
        (&["inputs", "prefill"][..], length(&inputs.prefill)),
        (&["inputs", "padding"][..], inputs.padding.as_ref().map_or(0, Vec::len)),
        (&["environment", "requirements"][..], config.environment.requirements.len()),
        (&["candle", "modes"][..], config.candle.modes.len()),
        (&["run", "modes"][..], run.modes.len()),
        (&["run", "attention"][..], run.attention.len()),
        (&["run", "dtypes"][..], run.dtypes.len()),
        (&["run", "devices"][..], run.devices.len()),
        (&["run", "fail_on"][..], run.fail_on.len()),
        (&["engine", "options"][..], config.engine.options.len()),
        (&["engine", "environment"][..], config.engine.environment.len()),
        (&["relations", "only"][..], config.relations.only.as_ref().map_or(0, Vec::len)),
    ] {
        let path: Vec<Step> = path.iter().copied().map(Step::from).collect();
        found.at_most(&path, length, LIST);
    }
    found
}

impl Found {
    fn at_most(&mut self, path: &[Step], number: usize, limit: Limit) {
        if let Err(error) = limit.check(number as u64) {
            self.value(path, error.to_string(), "");
        }
    }

    /// Numbers, and the products that decide how much a run computes.
    pub(super) fn sizes(&mut self, config: &Config) {
        self.inputs_sizes(&config.inputs, config.checkpoints.len());
        self.run_sizes(&config.run);
        let run = &config.run;
        let programs = config.versions.len() + config.commands.len() + config.candle.modes.len() + 1;
        let variants = [run.modes.len(), run.attention.len(), run.dtypes.len(), run.devices.len()]
            .into_iter()
            .fold(programs, usize::saturating_mul);
        self.at_most(at!["run"], variants, VARIANTS);
    }

    fn inputs_sizes(&mut self, inputs: &InputsConfig, checkpoints: usize) {
        for (field, numbers, limit) in [
            ("lengths", &inputs.lengths, LENGTH),
            ("batch", &inputs.batch, BATCH),
            ("prefill", &inputs.prefill, LENGTH),
        ] {
            for (index, number) in numbers.iter().flatten().enumerate() {
                self.at_most(at!["inputs", field, index], *number, limit);
            }
        }
        let largest = |list: &Option<Vec<usize>>| list.iter().flatten().copied().max();
        if let (Some(length), Some(batch)) = (largest(&inputs.lengths), largest(&inputs.batch)) {
            self.at_most(at!["inputs", "batch"], length.saturating_mul(batch), BATCH_TOKENS);
        }
        let count = |list: &Option<Vec<usize>>| list.as_ref().map_or(1, Vec::len).max(1);
        let prefills = inputs.prefill.as_ref().map_or(0, Vec::len) + 1;
        let paddings = inputs.padding.as_ref().map_or(1, Vec::len).max(1);
        let cases = [count(&inputs.lengths), count(&inputs.batch), paddings, prefills]
            .into_iter()
            .fold(checkpoints, usize::saturating_mul);
        self.at_most(at!["inputs"], cases, CASES);
    }

    fn run_sizes(&mut self, run: &Run) {
        for (field, number, limit) in [
            ("threads", run.threads.unwrap_or(0), THREADS),
            ("warm_up", run.warm_up, PASSES),
            ("iterations", run.iterations, PASSES),
            ("decode", run.decode, PASSES),
            ("rounds", run.rounds, ROUNDS),
            ("first_passes_at_once", run.first_passes_at_once, AT_ONCE),
            ("timeout_s", run.timeout_s as usize, SECONDS),
            ("patience_s", run.patience_s.unwrap_or(0) as usize, SECONDS),
            ("diagnose_s", run.diagnose_s as usize, SECONDS),
        ] {
            self.at_most(at!["run", field], number, limit);
        }
        if let Some(budget) = run.memory_budget_gb.filter(|budget| budget.is_finite())
            && budget > MEMORY_GB.most as f64
        {
            let message =
                format!("{budget:e} {}, and tfcheck accepts at most {}", MEMORY_GB.of, MEMORY_GB.most);
            self.value(at!["run", "memory_budget_gb"], message, "");
        }
    }

    /// A limit that is NaN, infinite or negative would make every pair agree or differ.
    pub(super) fn tolerances(&mut self, config: &Config) {
        let Tolerances { f64_agreement, relative_l2, local_factor, dynamo } = &config.tolerances;
        let all = |of: &PerDtype| [("f64", of.f64), ("f32", of.f32), ("bf16", of.bf16), ("f16", of.f16)];
        self.limit(at!["tolerances", "f64_agreement"], *f64_agreement);
        self.limit(at!["tolerances", "local_factor"], *local_factor);
        for (field, numbers) in [("relative_l2", relative_l2), ("dynamo", dynamo)] {
            for (dtype, number) in all(numbers) {
                self.limit(at!["tolerances", field, dtype], number);
            }
        }
        for (index, checkpoint) in config.checkpoints.iter().enumerate() {
            let Some(Overrides { f64_agreement, relative_l2, local_factor, dynamo }) = &checkpoint.tolerances
            else {
                continue;
            };
            let own = |field: &'static str| at!["checkpoints", index, "tolerances", field].to_vec();
            for (field, number) in [("f64_agreement", f64_agreement), ("local_factor", local_factor)] {
                if let Some(number) = number {
                    self.limit(&own(field), *number);
                }
            }
            for (field, numbers) in [("relative_l2", relative_l2), ("dynamo", dynamo)] {
                let Some(PartialPerDtype { f64, f32, bf16, f16 }) = numbers else { continue };
                for (dtype, number) in [("f64", f64), ("f32", f32), ("bf16", bf16), ("f16", f16)] {
                    let path = [own(field), vec![dtype.into()]].concat();
                    if let Some(number) = number {
                        self.limit(&path, *number);
                    }
                }
            }
        }
    }

    fn limit(&mut self, path: &[Step], number: f64) {
        if !(number.is_finite() && number >= 0.0) {
            self.value(path, format!("{number} where a finite number from 0 is needed"), "");
        }
    }
}
