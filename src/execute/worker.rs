//! The workers inside tfcheck: the hidden `tfcheck worker` process.
//!
//! `tfcheck_port` answers the protocol's requests for any [`Engine`]; this folder holds one engine per file.

pub mod candle;
mod failure;
mod place;

use models::cuda::driver::Setting;
use ports::PortEngine;
pub use tfcheck_port::worker::{Engine, exception, peak_resident_bytes, run};

pub(crate) use place::EMULATOR;

/// Version of candle in this program, as `Cargo.lock` pins it.
const CANDLE: &str = env!("TFCHECK_CANDLE_CORE");
/// Version of candle-transformers in this program, as `Cargo.lock` pins it.
pub(crate) const CANDLE_TRANSFORMERS: &str = env!("TFCHECK_CANDLE_TRANSFORMERS");

/// The engine of candle-transformers' ports if `upstream`, of those that read GGUF files if `gguf` as well, otherwise that of
/// tfcheck's own models, which opens a GPU with `cuda`.
pub fn engine((upstream, gguf): (bool, bool), cuda: Setting) -> Box<dyn Engine> {
    if upstream && gguf {
        Box::new(PortEngine::new(CANDLE_TRANSFORMERS).quantised())
    } else if upstream {
        Box::new(PortEngine::new(CANDLE_TRANSFORMERS))
    } else {
        Box::new(candle::CandleEngine::new(cuda))
    }
}

#[cfg(test)]
mod tests {
    mod ports;

    use super::*;

    #[test]
    fn the_versions_of_candle_are_those_that_the_lock_pins() {
        let lock: toml::Table = toml::from_str(include_str!("../../Cargo.lock")).unwrap();
        let pinned = |name: &str| {
            let packages = lock["package"].as_array().unwrap();
            let package = packages.iter().find(|package| package["name"].as_str() == Some(name)).unwrap();
            package["version"].as_str().unwrap().to_owned()
        };
        assert_eq!(CANDLE, pinned("candle-core"));
        assert_eq!(CANDLE_TRANSFORMERS, pinned("candle-transformers"));
    }
}
