//! Reads `tfcheck.toml` and applies the options of the command line that replace parts of it.

use std::path::{Path, PathBuf};

use bounds::limits::{CONFIG_BYTES, CONFIG_DEPTH};

use super::validate::{self, Problem};
use super::{
    Checkpoint, CheckpointSource, Config, ConfigError, FILE_NAME, SourceError, VersionSource, init_text,
};

/// A config with its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// The file's text, or that of `tfcheck init` if there is no file; a run stores it.
    pub text: String,
    /// The file's path; `None` for the default config.
    pub path: Option<PathBuf>,
}

impl Config {
    /// Reads the config at `path`. If `path` is `None`, reads `tfcheck.toml` of the working directory, or returns the
    /// default config if that does not exist.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, has an unknown field or contradicts itself.
    pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let path = match path {
            Some(path) => path,
            None if Path::new(FILE_NAME).exists() => Path::new(FILE_NAME),
            None => {
                return Ok(Loaded { config: Self::default(), text: init_text(), path: None });
            }
        };
        let text = bounds::file::read_text(path, CONFIG_BYTES)
            .map_err(|error| ConfigError::unreadable(path, &error))?;
        if text.contains('\0') {
            let error =
                std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds zero bytes and is no text");
            return Err(ConfigError::unreadable(path, &error));
        }
        Ok(Loaded { config: Self::parse(&text, path)?, text, path: Some(path.to_owned()) })
    }

    /// Parses `text` as the content of the file at `path`, which need not exist.
    ///
    /// # Errors
    /// When the text is not TOML, has an unknown field or contradicts itself.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        if let Some(error) = ConfigError::from_problems(too_deep(text, path), "", path) {
            return Err(error);
        }
        let mut config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, path))?;
        if let Some(error) = ConfigError::from_problems(validate::problems(&config), text, path) {
            return Err(error);
        }
        config.set_folder(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// The first size, list or tolerance beyond its limit, of a config that a run or a plan holds.
    pub(crate) fn beyond_limits(&self) -> Option<String> {
        validate::beyond_limits(self)
    }

    /// Replaces the checkpoints with those of `--checkpoint`: a source each, for hub ids also `id@revision`. An empty
    /// list changes nothing.
    ///
    /// # Errors
    /// When a source does not follow its grammar or contradicts the rest of the config.
    pub fn with_checkpoints(mut self, sources: &[String]) -> Result<Self, ConfigError> {
        if sources.is_empty() {
            return Ok(self);
        }
        let mut problems = Vec::new();
        self.checkpoints.clear();
        for text in sources {
            match Checkpoint::from_argument(text) {
                Ok(checkpoint) => self.checkpoints.push(checkpoint),
                Err(error) => problems.push(Problem::of_argument(error.to_string())),
            }
        }
        if problems.is_empty() {
            problems = validate::problems(&self);
        }
        ConfigError::from_problems(problems, "", Path::new("--checkpoint")).map_or(Ok(self), Err)
    }

    /// The same with these relations alone, as `--relation` names them.
    ///
    /// # Errors
    /// A name that no relation has.
    pub fn with_relations(mut self, names: &[String]) -> Result<Self, ConfigError> {
        let mut only: Vec<String> = Vec::new();
        // A name given twice asks for nothing more.
        for name in names {
            if !only.contains(name) {
                only.push(name.clone());
            }
        }
        self.relations.only = Some(only);
        let problems = validate::problems(&self);
        ConfigError::from_problems(problems, "", Path::new("--relation")).map_or(Ok(self), Err)
    }

    /// The same with absolute paths, so that it means the same from any working directory.
    #[must_use]
    pub fn absolute(mut self) -> Self {
        let Ok(here) = std::path::absolute(".") else { return self };
        let folder = if self.commands.is_empty() { PathBuf::new() } else { here.join(&self.folder) };
        self.set_folder(&here);
        self.folder = folder;
        self
    }

    /// Resolves relative paths against `folder`.
    fn set_folder(&mut self, folder: &Path) {
        for checkpoint in &mut self.checkpoints {
            if let CheckpointSource::Folder(path) | CheckpointSource::Gguf(path) = &mut checkpoint.source {
                *path = folder.join(&path);
            }
        }
        for version in &mut self.versions {
            if let Some(VersionSource::Editable(path)) = &mut version.source {
                *path = folder.join(&path);
            }
            // A bare name, such as `python3`, is looked up on PATH.
            if let Some(path) = &mut version.python
                && path.components().count() > 1
            {
                *path = folder.join(&path);
            }
        }
        for path in [&mut self.inputs.text, &mut self.inputs.tensors].into_iter().flatten() {
            *path = folder.join(&path);
        }
        folder.clone_into(&mut self.folder);
    }
}

/// A line whose key names more nested tables than the parser's recursion should have.
fn too_deep(text: &str, path: &Path) -> Vec<Problem> {
    let is_deep = |line: &&str| {
        let key = line.split('=').next().unwrap_or_default();
        CONFIG_DEPTH.check(key.bytes().filter(|byte| *byte == b'.').count() as u64).is_err()
    };
    let is_key = |line: &&str| !line.trim_start().starts_with(['#', '"', '\'']);
    let found = text.lines().enumerate().find(|(_, line)| is_key(line) && is_deep(line));
    let message = |(index, _): (usize, &str)| {
        format!(
            "line {} of {} nests tables deeper than {} levels",
            index + 1,
            path.display(),
            CONFIG_DEPTH.most
        )
    };
    found.map(message).map(Problem::of_argument).into_iter().collect()
}

impl Checkpoint {
    /// Parses a source, or `id@revision` for the hub.
    fn from_argument(text: &str) -> Result<Self, SourceError> {
        match text.split_once('@') {
            Some((id, revision)) if matches!(id.parse(), Ok(CheckpointSource::Hub(_))) => {
                Ok(Self { revision: Some(revision.to_owned()), ..Self::new(id.parse()?) })
            }
            _ => text.parse().map(Self::new),
        }
    }
}
