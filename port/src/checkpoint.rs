//! The files of the recorded checkpoint: generated if it is synthetic, otherwise checked.

use std::path::{Path, PathBuf};

use crate::recording::{Error, Recording, file_sha256};

impl Recording {
    /// Checks that the files in `folder` are the recorded ones.
    ///
    /// # Errors
    /// When a file is missing or differs; the message contains its name.
    pub fn verify(&self, folder: &Path) -> Result<(), Error> {
        let checkpoint = &self.recorded.checkpoint;
        for (name, digest) in &self.recorded.files {
            if file_sha256(&folder.join(name))? != *digest {
                let problem = format!("{name} is not that of the recorded checkpoint `{checkpoint}`");
                return Err(Error::Checkpoint { folder: folder.to_owned(), problem });
            }
        }
        Ok(())
    }

    /// A folder with the recorded checkpoint: the value of the environment variable `place`, or else the folder `place`, relative
    /// to the tested crate, or else the synthetic checkpoint, generated once below the system's temporary folder. The files are
    /// checked in each case.
    ///
    /// # Errors
    /// When there is none of them, or its files differ from the recorded ones.
    pub fn checkpoint(&self, place: &str) -> Result<PathBuf, Error> {
        let folder = match std::env::var_os(place) {
            Some(folder) => PathBuf::from(folder),
            // cargo runs tests in the folder of their crate.
            None if Path::new(place).is_dir() => PathBuf::from(place),
            None => self.make()?.ok_or_else(|| Error::Checkpoint {
                folder: self.folder.clone(),
                problem: format!(
                    "set {place} to a folder with `{}`, which is not made here",
                    self.recorded.checkpoint
                ),
            })?,
        };
        self.verify(&folder)?;
        Ok(folder)
    }

    /// Without the feature `synthetic` no checkpoint can be generated.
    #[cfg(not(feature = "synthetic"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same as with the feature")]
    fn make(&self) -> Result<Option<PathBuf>, Error> {
        Ok(None)
    }

    /// The synthetic checkpoint's folder; `None` if the checkpoint is not synthetic.
    #[cfg(feature = "synthetic")]
    fn make(&self) -> Result<Option<PathBuf>, Error> {
        let recorded = &self.recorded;
        let (Some(name), Some(seed)) = (recorded.checkpoint.strip_prefix("synthetic:"), recorded.seed) else {
            return Ok(None);
        };
        let (model_type, variant) = name.split_once(':').unwrap_or((name, ""));
        let mark: String = recorded.tensors_sha256.chars().take(16).collect();
        let folder = std::env::temp_dir().join(format!("tfcheck-port-{mark}"));
        // Another process may generate it at the same time; each file is written atomically with the same
        // bytes.
        if self.verify(&folder).is_err() {
            models::synthetic::write(model_type, variant, seed, &folder)
                .map_err(|error| Error::Checkpoint { folder: folder.clone(), problem: error.to_string() })?;
        }
        Ok(Some(folder))
    }
}
