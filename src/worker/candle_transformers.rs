//! The engine of the ports that candle-transformers ships.

use reference::protocol::{Failed, FailedKind, Forward, Forwarded, Load, Ready, Trace};

use super::{Engine, exception};

/// A port once it is loaded.
#[derive(Debug, Default)]
pub struct PortEngine;

impl Engine for PortEngine {
    fn load(&mut self, _load: &Load) -> Result<Ready, Failed> {
        Err(Failed { kind: FailedKind::Unsupported, ..exception("no port has an adapter in this tfcheck") })
    }

    fn forward(&mut self, _forward: &Forward) -> Result<Forwarded, Failed> {
        Err(exception("nothing is loaded"))
    }

    fn pass(&mut self) -> Result<(), Failed> {
        Err(exception("nothing is loaded"))
    }

    fn trace(&mut self, _trace: &Trace) -> Result<(), Failed> {
        Err(exception("nothing is loaded"))
    }
}
