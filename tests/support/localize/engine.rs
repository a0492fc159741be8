//! Runs tfcheck's native models as workers inside this process.

// Each test binary uses a part of this module.
#![allow(dead_code, reason = "shared by two test binaries")]

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Dtype, Failed, FailedKind, Load, Reply, Request};
use tfcheck::execute::cell::FailureKind;
use tfcheck::execute::runner::{NoResult, Runner, Session, Start};
use tfcheck::execute::worker::Engine;
use tfcheck::execute::worker::candle::CandleEngine;

pub(crate) struct InProcess;

impl Runner for InProcess {
    fn start<'a>(
        &self,
        _: PathBuf,
        _: &'a AtomicBool,
        _: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        Ok(Box::<InSession>::default())
    }
}

/// Like [`InProcess`], but loads another checkpoint in bf16, which simulates a kernel that is wrong in one dtype only.
pub(crate) struct WrongInBf16(pub(crate) PathBuf);

impl Runner for WrongInBf16 {
    fn start<'a>(
        &self,
        _: PathBuf,
        _: &'a AtomicBool,
        _: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        Ok(Box::new(InSession { wrong_in_bf16: Some(self.0.clone()), ..InSession::default() }))
    }
}

#[derive(Default)]
struct InSession {
    engine: CandleEngine,
    wrong_in_bf16: Option<PathBuf>,
}

impl Session for InSession {
    fn ask(&mut self, request: &Request, _: Duration) -> Result<Reply, NoResult> {
        let reply = match request {
            Request::Load(load) => {
                let wrong = self.wrong_in_bf16.clone().filter(|_| load.dtype == Dtype::Bf16);
                let checkpoint = wrong.unwrap_or_else(|| load.checkpoint.clone());
                self.engine.load(&Load { checkpoint, ..load.clone() }).map(Reply::Ready)
            }
            Request::Forward(forward) => self.engine.forward(forward).map(Reply::Forwarded),
            Request::Capture(capture) => self.engine.capture(capture).map(Reply::Captured),
            Request::Replay(replay) => self.engine.replay(replay).map(Reply::Replayed),
            Request::Inputs(inputs) => self.engine.inputs(inputs).map(Reply::Taken),
            Request::Generate(generate) => self.engine.generate(generate).map(Reply::Generated),
            other => panic!("{other:?} is not asked here"),
        };
        reply.map_err(|Failed { kind, message, .. }| match kind {
            FailedKind::Unsupported => NoResult::Unsupported(message),
            _ => NoResult::failed(FailureKind::Exception, message),
        })
    }

    fn end(self: Box<Self>) {}
}
