//! tfcheck's own models as workers inside this process.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Failed, FailedKind, Reply, Request};
use tfcheck::results::FailureKind;
use tfcheck::runner::{Ended, Runner, Session};
use tfcheck::worker::Engine;
use tfcheck::worker::candle::CandleEngine;

pub(crate) struct InProcess;

impl Runner for InProcess {
    fn start<'a>(&self, _: PathBuf, _: &'a AtomicBool) -> Result<Box<dyn Session + 'a>, Ended> {
        Ok(Box::<InSession>::default())
    }
}

#[derive(Default)]
struct InSession {
    engine: CandleEngine,
}

impl Session for InSession {
    fn ask(&mut self, request: &Request, _: Duration) -> Result<Reply, Ended> {
        let reply = match request {
            Request::Load(load) => self.engine.load(load).map(Reply::Ready),
            Request::Forward(forward) => self.engine.forward(forward).map(Reply::Forwarded),
            Request::Capture(capture) => self.engine.capture(capture).map(Reply::Captured),
            Request::Replay(replay) => self.engine.replay(replay).map(Reply::Replayed),
            other => panic!("{other:?} is not asked here"),
        };
        reply.map_err(|Failed { kind, message, .. }| match kind {
            FailedKind::Unsupported => Ended::Unsupported(message),
            _ => Ended::failed(FailureKind::Exception, message),
        })
    }

    fn end(self: Box<Self>) {}
}
