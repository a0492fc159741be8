//! `torch.compile`, and notes on its graphs.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use protocol::Graphs;

/// `model` through `torch.compile` in its default mode; compilation happens in the first pass.
pub(super) fn compile<'py>(
    torch: &Bound<'py, PyAny>,
    model: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    torch.call_method1("compile", (model,))
}

/// Like `compile`, with weights as constants of the graph (`TORCHINDUCTOR_FREEZING=1`, which applies to the
/// whole process).
pub(super) fn compile_frozen<'py>(
    torch: &Bound<'py, PyAny>,
    model: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    torch.py().import("torch._inductor.config")?.setattr("freezing", true)?;
    compile(torch, model)
}

/// `model` through `torch.compile` with this `mode`.
pub(super) fn compile_as<'py>(
    torch: &Bound<'py, PyAny>,
    model: &Bound<'py, PyAny>,
    mode: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let keywords = PyDict::new(torch.py());
    keywords.set_item("mode", mode)?;
    torch.call_method("compile", (model,), Some(&keywords))
}

/// How many graphs dynamo made, and where it broke them.
pub(super) fn graphs(py: Python<'_>) -> PyResult<(Graphs, Vec<String>)> {
    let counters = py.import("torch._dynamo.utils")?.getattr("counters")?.cast_into::<PyDict>()?;
    let count = |group: &str, key: &str| -> PyResult<u64> {
        let Some(group) = counters.get_item(group)? else {
            return Ok(0);
        };
        group.call_method1("get", (key, 0))?.extract()
    };
    let mut graphs = Graphs { count: count("stats", "unique_graphs")?, breaks: 0 };
    let mut notes = vec![if graphs.count == 0 {
        "torch.compile created no graph: the model ran in eager mode".to_owned()
    } else {
        format!("torch.compile made {} graph{}", graphs.count, if graphs.count == 1 { "" } else { "s" })
    }];
    if let Some(breaks) = counters.get_item("graph_break")? {
        for item in breaks.call_method0("items")?.try_iter()? {
            let (reason, count): (String, u64) = item?.extract()?;
            graphs.breaks += count;
            let reason = reason.lines().next().unwrap_or_default().to_owned();
            let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
            notes.push(format!("graph broken {times}: {reason}"));
        }
    }
    Ok((graphs, notes))
}
