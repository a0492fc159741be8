//! Writes synthetic checkpoints, one folder each: `cargo run --release --example synthetic -- FOLDER [NAME...]`.
//!
//! A name is `model_type`, for all its small variants, or `model_type:variant`. Without names: everything but the
//! shapes to time.

use std::path::Path;

use models::synthetic::{Entry, Error, catalogue, write};

/// Seed of every checkpoint that this program writes.
const SEED: u64 = 0;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "synthetic".into());
    let names: Vec<String> = arguments.collect();
    for entry in catalogue().iter().filter(|entry| wanted(entry, &names)) {
        let name = [entry.model_type, entry.variant].join("-");
        let folder = Path::new(&folder).join(name.trim_end_matches('-'));
        write(entry.model_type, entry.variant, SEED, &folder)?;
        eprintln!("{}: {}", folder.display(), entry.shows);
    }
    Ok(())
}

fn wanted(entry: &Entry, names: &[String]) -> bool {
    if names.is_empty() {
        return !entry.bench;
    }
    names.iter().any(|name| match name.split_once(':') {
        Some(name) => name == (entry.model_type, entry.variant),
        None => name == entry.model_type && !entry.bench,
    })
}
