//! The port as a variant of tfcheck.

use std::process::ExitCode;

use opt::Opt;
use tfcheck_port::{Port, serve};

fn main() -> ExitCode {
    serve("opt", |checkpoint| {
        let opt = Opt::new(&checkpoint.config()?, &checkpoint.var_builder())?;
        Ok(Port::new(move |inputs| opt.forward(inputs)))
    })
}
