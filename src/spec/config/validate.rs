//! Checks that the types cannot express: empty lists, duplicate names, fields that contradict each other.

/// A path into the file: `at!["versions", 1, "name"]`.
macro_rules! at {
    ($($step:expr),*) => { &[$(Step::from($step)),*] };
}

mod inputs;
mod limits;

use reference::protocol::Mode;

use crate::spec::nearest::nearest;
use crate::spec::relations::{RELATIONS, Relations};

use super::{
    Checkpoint, CheckpointSource, Command, Config, Engine, Environment, InputsConfig, Run, Version,
    VersionSource,
};

/// One problem and its location in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) path: Vec<Step>,
    pub(super) part: Part,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    /// A problem with an argument of the command line.
    pub(super) fn of_argument(message: String) -> Self {
        Self { path: Vec::new(), part: Part::Value, message, hint: None }
    }
}

/// One step of a path into the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    Key(&'static str),
    Index(usize),
}

/// Which side of `key = value` has the problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Key,
    Value,
}

impl From<&'static str> for Step {
    fn from(name: &'static str) -> Self {
        Self::Key(name)
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Names of the native runners, which a config must not use.
const RESERVED: [&str; 2] = ["candle", "candle-transformers"];

/// All problems of `config`, in the order of the file's sections.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let too_long = limits::lists(config);
    if !too_long.0.is_empty() {
        return too_long.0;
    }
    let mut found = Found(Vec::new());
    found.checkpoints(&config.checkpoints);
    found.inputs(&config.inputs, &config.checkpoints);
    found.environment(&config.environment);
    found.versions(&config.versions);
    let foreign = [Mode::Compiled, Mode::Frozen, Mode::ReduceOverhead, Mode::MaxAutotune];
    found.modes(at!["candle", "modes"], &config.candle.modes, &foreign, "candle has eager and fused");
    found.distinct(at!["candle", "modes"], &config.candle.modes);
    found.commands(&config.commands, &config.versions);
    found.run(&config.run);
    found.relations(&config.relations);
    found.engine(&config.engine);
    found.sizes(config);
    found.tolerances(config);
    found.0
}

/// The first size, list or tolerance of a saved config that is beyond its limit, or the first part of a job's script that
/// cannot be one: `run.threads: …`.
pub(super) fn beyond_limits(config: &Config) -> Option<String> {
    let mut found = limits::lists(config);
    if found.0.is_empty() {
        found.engine(&config.engine);
        found.sizes(config);
        found.tolerances(config);
    }
    let Problem { path, message, .. } = found.0.into_iter().next()?;
    let place = path.iter().fold(String::new(), |place, step| match step {
        Step::Key(key) if place.is_empty() => (*key).to_owned(),
        Step::Key(key) => format!("{place}.{key}"),
        Step::Index(index) => format!("{place}[{index}]"),
    });
    Some(format!("`{place}`: {message}"))
}

/// Whether a name is valid as a folder name on every system and needs no quoting in a shell.
pub(crate) fn is_file_name(name: &str) -> bool {
    name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.ends_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}

struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, part: Part, path: &[Step], message: impl Into<String>, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        self.0.push(Problem { path: path.to_vec(), part, message: message.into(), hint });
    }

    /// The field should not be there.
    fn field(&mut self, path: &[Step], message: impl Into<String>, hint: &str) {
        self.add(Part::Key, path, message, hint);
    }

    /// The field's value is wrong.
    fn value(&mut self, path: &[Step], message: impl Into<String>, hint: &str) {
        self.add(Part::Value, path, message, hint);
    }

    fn checkpoints(&mut self, checkpoints: &[Checkpoint]) {
        self.not_empty(at!["checkpoints"], checkpoints);
        for (index, checkpoint) in checkpoints.iter().enumerate() {
            let source = &checkpoint.source;
            let revision: &[Step] = at!["checkpoints", index, "revision"];
            match &checkpoint.revision {
                Some(_) if !matches!(source, CheckpointSource::Hub(_)) => self.field(
                    revision,
                    format!("`{source}` is not a hub id, so it has no revision"),
                    "drop `revision`: local files are pinned by their digests",
                ),
                Some(text) if text.trim().is_empty() => {
                    self.value(
                        revision,
                        "an empty revision",
                        "name a commit, tag or branch, or drop the field",
                    );
                }
                _ => {}
            }
            if checkpoint.allow_remote_code
                && matches!(source, CheckpointSource::Gguf(_) | CheckpointSource::Synthetic { .. })
            {
                self.field(
                    at!["checkpoints", index, "allow_remote_code"],
                    format!("`{source}` cannot contain code, so allow_remote_code has no effect"),
                    "drop `allow_remote_code`",
                );
            }
            let name = checkpoint.case_name();
            if let Some(name) = &checkpoint.name {
                self.file_name(at!["checkpoints", index, "name"], name);
            }
            if checkpoints[..index].iter().any(|other| other.case_name().eq_ignore_ascii_case(&name)) {
                let field = if checkpoint.name.is_some() { "name" } else { "source" };
                self.value(
                    at!["checkpoints", index, field],
                    format!("two checkpoints are named `{name}`"),
                    "give each a `name` of its own",
                );
            }
        }
    }

    fn environment(&mut self, environment: &Environment) {
        let number = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || ".+-".contains(c))
        };
        if !number(&environment.torch) {
            self.value(
                at!["environment", "torch"],
                format!("`{}` is not a torch release", environment.torch),
                "all versions share one pinned torch: write its number, `torch = \"2.15.0\"`",
            );
        }
        if let Some(python) = environment.python.as_ref().filter(|python| !number(python)) {
            self.value(
                at!["environment", "python"],
                format!("`{python}` is not a Python version"),
                "write `python = \"3.11\"`; an environment that exists goes to `python` under [[versions]]",
            );
        }
        for (index, requirement) in environment.requirements.iter().enumerate() {
            // An option of pip, such as `--index-url`, is no requirement.
            let name: String = requirement
                .chars()
                .skip_while(|c| *c == ' ')
                .enumerate()
                .take_while(|(at, c)| *at > 0 || c.is_ascii_alphanumeric())
                .map(|(_, c)| c)
                .take_while(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
                .collect();
            let hint = match name.to_ascii_lowercase().as_str() {
                "" => "write it as pip does: `numpy<3`",
                "torch" => "`torch` under [environment] pins it",
                "transformers" => "[[versions]] lists the versions of transformers",
                _ => continue,
            };
            self.value(
                at!["environment", "requirements", index],
                format!("`{requirement}` is not a valid additional requirement"),
                hint,
            );
        }
        self.distinct(at!["environment", "requirements"], &environment.requirements);
    }

    fn versions(&mut self, versions: &[Version]) {
        for (index, version) in versions.iter().enumerate() {
            let name = &version.name;
            self.program_name(at!["versions", index, "name"], name);
            if versions[..index].iter().any(|other| other.name.eq_ignore_ascii_case(name)) {
                self.value(
                    at!["versions", index, "name"],
                    format!("two versions are named `{name}`"),
                    "names tell variants apart",
                );
            }
            match (&version.source, &version.python) {
                (None, None) => self.value(
                    at!["versions", index],
                    format!("version `{name}` has neither `source` nor `python`"),
                    "add `source = \"transformers==…\"`, or the `python` of an environment that exists",
                ),
                (Some(source @ (VersionSource::Git { .. } | VersionSource::Editable(_))), Some(_)) => self
                    .field(
                        at!["versions", index, "python"],
                        format!("`python` and `source = {source}` exclude each other"),
                        "tfcheck does not install into an existing environment: remove `source` or `python`",
                    ),
                _ => {}
            }
            if let Some(modes) = &version.modes {
                self.transformers_modes(at!["versions", index, "modes"], modes);
            }
            if let Some(attention) = &version.attention {
                self.list(at!["versions", index, "attention"], attention);
            }
            if let Some(dtypes) = &version.dtypes {
                self.list(at!["versions", index, "dtypes"], dtypes);
            }
        }
    }

    fn commands(&mut self, commands: &[Command], versions: &[Version]) {
        for (index, command) in commands.iter().enumerate() {
            let name = &command.name;
            self.program_name(at!["commands", index, "name"], name);
            let mut others = commands[..index]
                .iter()
                .map(|other| &other.name)
                .chain(versions.iter().map(|version| &version.name));
            if others.any(|other| other.eq_ignore_ascii_case(name)) {
                self.value(
                    at!["commands", index, "name"],
                    format!("two variants are named `{name}`"),
                    "names tell variants apart",
                );
            }
            if command.program.first().is_none_or(String::is_empty) {
                self.value(
                    at!["commands", index, "program"],
                    "no program to start",
                    "write `program = [\"python3\", \"worker.py\"]`",
                );
            }
            for (word, text) in command.program.iter().enumerate() {
                if text.contains('\0') {
                    self.value(
                        at!["commands", index, "program", word],
                        "a zero byte, which no argument of a program can hold",
                        "remove it",
                    );
                }
            }
        }
    }

    fn run(&mut self, run: &Run) {
        self.transformers_modes(at!["run", "modes"], &run.modes);
        self.list(at!["run", "attention"], &run.attention);
        self.list(at!["run", "dtypes"], &run.dtypes);
        self.list(at!["run", "devices"], &run.devices);
        self.distinct(at!["run", "fail_on"], &run.fail_on);
        if let Some(name) = &run.against {
            self.file_name(at!["run", "against"], name);
        }
        self.positive(at!["run", "iterations"], run.iterations as f64);
        self.positive(at!["run", "timeout_s"], run.timeout_s as f64);
        self.positive(at!["run", "first_passes_at_once"], run.first_passes_at_once as f64);
        if let Some(threads) = run.threads {
            self.positive(at!["run", "threads"], threads as f64);
        }
        if let Some(budget) = run.memory_budget_gb {
            self.positive(at!["run", "memory_budget_gb"], budget);
        }
    }

    fn engine(&mut self, engine: &Engine) {
        if let Some((field, message)) = engine.problem() {
            self.value(at!["engine", field], message, "it becomes a part of a job's script");
        }
    }

    fn relations(&mut self, relations: &Relations) {
        let Some(only) = &relations.only else { return };
        self.list(at!["relations", "only"], only);
        let known: Vec<&str> = RELATIONS.iter().map(|relation| relation.name).collect();
        for (index, name) in only.iter().enumerate().filter(|(_, name)| !known.contains(&name.as_str())) {
            let meant = nearest(name, &known).map(|meant| format!("did you mean \"{meant}\"? "));
            self.value(
                at!["relations", "only", index],
                format!("no relation is called \"{name}\""),
                &format!("{}there are {}", meant.unwrap_or_default(), known.join(", ")),
            );
        }
    }

    fn transformers_modes(&mut self, path: &[Step], modes: &[Mode]) {
        self.modes(
            path,
            modes,
            &[Mode::Fused],
            "transformers has eager and the modes of torch.compile; fused is one of [candle]'s modes",
        );
        self.list(path, modes);
    }

    fn modes(&mut self, path: &[Step], modes: &[Mode], foreign: &[Mode], hint: &str) {
        for (index, mode) in modes.iter().enumerate() {
            if foreign.contains(mode) {
                let mut path = path.to_vec();
                path.push(index.into());
                self.value(
                    &path,
                    format!("no \"{}\" mode here", crate::spec::variant::mode_name(*mode)),
                    hint,
                );
            }
        }
    }

    fn list<T: PartialEq>(&mut self, path: &[Step], values: &[T]) {
        self.not_empty(path, values);
        self.distinct(path, values);
    }

    fn not_empty<T>(&mut self, path: &[Step], values: &[T]) {
        if values.is_empty() {
            self.value(
                path,
                "the list is empty, so nothing would run",
                "list at least one, or drop the field for its default",
            );
        }
    }

    fn distinct<T: PartialEq>(&mut self, path: &[Step], values: &[T]) {
        for (index, value) in values.iter().enumerate() {
            if values[..index].contains(value) {
                let mut path = path.to_vec();
                path.push(index.into());
                self.value(&path, "listed twice", "each value makes its own cells: list it once");
            }
        }
    }

    fn positive(&mut self, path: &[Step], number: f64) {
        if !(number > 0.0 && number.is_finite()) {
            self.value(path, format!("{number} where a number above 0 is needed"), "");
        }
    }

    fn program_name(&mut self, path: &[Step], name: &str) {
        if RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
            self.value(path, format!("`{name}` is reserved for the native models"), "choose another name");
        } else {
            self.file_name(path, name);
        }
    }

    fn file_name(&mut self, path: &[Step], name: &str) {
        if !is_file_name(name) {
            self.value(
                path,
                format!("`{name}` is not safe as a file name"),
                "start with a letter or digit and use at most 100 letters, digits and . _ + -",
            );
        }
    }
}
