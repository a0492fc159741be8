//! Every version captures and replays modules, and capture does not change the logits.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{
    Attention, Capture, Captured, CapturedModule, Dtype, Mode, Replay, Reply, Request,
};
use reference::{Worker, WorkerEnd};

use crate::tiny::{self, Cell, HIDDEN, LIMIT, environments, version};
use crate::{LONG, case, newest};

fn capture(worker: &mut Worker, folder: &Path, modules: &[&str], max_bytes: u64) -> Captured {
    std::fs::create_dir_all(folder).unwrap();
    let modules = modules.iter().map(|&module| module.to_owned()).collect();
    let ask = Request::Capture(Capture {
        folder: folder.to_owned(),
        modules,
        max_bytes,
        prefill: None,
        chunks: Vec::new(),
    });
    match worker.ask(&ask, LIMIT, &AtomicBool::new(false)).unwrap() {
        Reply::Captured(captured) => captured,
        other => panic!("{other:?}"),
    }
}

fn module<'a>(captured: &'a Captured, path: &str) -> &'a CapturedModule {
    let named = |module: &&CapturedModule| module.path == path;
    captured.modules.iter().find(named).unwrap_or_else(|| panic!("{path} is not captured"))
}

#[test]
fn capture_records_modules_and_steps_and_changes_no_logits() {
    let case = case(|_| ());
    for environment in environments() {
        let name = version(environment);
        let _turn = tiny::turn();
        let stop = AtomicBool::new(false);
        let cell = Cell { dtype: Dtype::F64, ..case.cell(environment, Mode::Eager, Attention::Eager) };
        let mut worker = cell.start(case.folder.path());
        worker.load(cell.load(), LIMIT, &stop).unwrap();
        let folder = case.folder.path().join(name);

        let all = capture(&mut worker, &folder, &["*"], u64::MAX);
        assert!(all.unchanged, "{name}");
        assert!(all.modules[0].path == "model", "{name}: the outermost begins first");
        let heads = |count: usize, width: usize| vec![2, count, LONG, width];
        let layer = "model.layers.1.self_attn";
        for (path, input, output) in [
            ("model", vec![2, LONG], vec![2, LONG, HIDDEN]),
            ("model.layers.0", vec![2, LONG, HIDDEN], vec![2, LONG, HIDDEN]),
            (layer, vec![2, LONG, HIDDEN], vec![2, LONG, HIDDEN]),
            (&format!("{layer}.k_proj"), vec![2, LONG, HIDDEN], vec![2, LONG, HIDDEN / 2]),
            (&format!("{layer}.rope_q"), heads(4, 16), heads(4, 16)),
            (&format!("{layer}.rope_k"), heads(2, 16), heads(2, 16)),
            (&format!("{layer}.softmax"), heads(4, LONG), heads(4, LONG)),
            ("lm_head", vec![2, LONG, HIDDEN], vec![2, LONG, tiny::VOCABULARY]),
        ] {
            let found = module(&all, path);
            let shape = |tensor: &Option<reference::protocol::CapturedTensor>| {
                let tensor =
                    tensor.as_ref().unwrap_or_else(|| panic!("{name}: {path} has a side without tensor"));
                let file = folder.join(tensor.file.as_ref().unwrap());
                let elements: usize = tensor.shape.iter().product();
                assert_eq!(std::fs::metadata(file).unwrap().len() as usize, elements * 8, "{name}: {path}");
                tensor.shape.clone()
            };
            assert_eq!((shape(&found.input), shape(&found.output)), (input, output), "{name}: {path}");
        }

        // A module replayed with its own captured input gives its captured output; replayed with zeros, it
        // gives another.
        for path in ["model.layers.1", layer, &format!("{layer}.softmax"), &format!("{layer}.rope_k")] {
            let found = module(&all, path);
            let (input, output) = (found.input.as_ref().unwrap(), found.output.as_ref().unwrap());
            let own = folder.join(input.file.as_ref().unwrap());
            let zeros = folder.join("zeros");
            std::fs::write(&zeros, vec![0; std::fs::metadata(&own).unwrap().len() as usize]).unwrap();
            for (input_file, is_same) in [(own, true), (zeros, false)] {
                let replay = Replay {
                    module: path.to_owned(),
                    call: found.call,
                    input: input_file,
                    shape: input.shape.clone(),
                    further: Vec::new(),
                    output: folder.join("replayed"),
                };
                let reply = worker.ask(&Request::Replay(replay), LIMIT, &stop).unwrap();
                let Reply::Replayed(replayed) = reply else { panic!("{reply:?}") };
                assert_eq!(replayed.shape, output.shape, "{name}: {path}");
                let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
                let same = read("replayed") == read(output.file.as_ref().unwrap());
                assert_eq!(same, is_same, "{name}: {path}");
            }
        }

        let few = folder.join("few");
        let room = 3 * (2 * LONG * HIDDEN * 8) as u64;
        let norms = capture(&mut worker, &few, &["*norm"], room);
        assert!(norms.modules.iter().all(|module| module.path.ends_with("norm")));
        let tensors = norms.modules.iter().flat_map(|module| [&module.input, &module.output]).flatten();
        assert_eq!(
            tensors.filter(|tensor| tensor.file.is_some()).count(),
            3,
            "{name}: as many as there is room for"
        );
        assert!(norms.bytes == room && std::fs::read_dir(&few).unwrap().count() == 3);
        worker.exit(Duration::from_secs(10));
    }
}

#[test]
fn replaying_an_absent_module_or_a_compiled_model_fails() {
    let case = case(|_| ());
    let _turn = tiny::turn();
    let stop = AtomicBool::new(false);
    let input = case.folder.path().join("zeros");
    std::fs::write(&input, [0; 4]).unwrap();
    for (mode, word) in [(Mode::Eager, "no call 0"), (Mode::Compiled, "compiled")] {
        let cell = case.cell(newest(), mode, Attention::Eager);
        let mut worker = cell.start(case.folder.path());
        worker.load(cell.load(), LIMIT, &stop).unwrap();
        let replay = Replay {
            module: "model.layers.7".into(),
            call: 0,
            input: input.clone(),
            shape: vec![1],
            further: Vec::new(),
            output: case.folder.path().join("replayed"),
        };
        let ended = worker.ask(&Request::Replay(replay), LIMIT, &stop).unwrap_err();
        assert!(
            matches!(ended, WorkerEnd::Exception(_) | WorkerEnd::Unsupported(_))
                && ended.to_string().contains(word),
            "{ended}"
        );
        worker.exit(Duration::from_secs(10));
    }
}
