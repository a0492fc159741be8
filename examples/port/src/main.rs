//! The port as a variant of tfcheck; an argument names a mistake to plant.

use std::process::ExitCode;

use port::{Bug, Llama};
use tfcheck_port::{Port, serve};

fn main() -> ExitCode {
    let bug = std::env::args().nth(1).and_then(|name| Bug::named(&name));
    serve("example-port", |checkpoint| {
        let llama = Llama::new(checkpoint.config()?, &checkpoint.var_builder(), bug)?;
        Ok(Port::new(move |inputs| llama.forward(&inputs.input_ids)).without_mask())
    })
}
