use std::fmt::Write;
use std::path::Path;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use serde_json::Value;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("tfcheck.toml"))
}

fn render(error: &dyn Diagnostic) -> String {
    let mut out = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(110);
    handler.render_report(&mut out, error).unwrap();
    out.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A config that sets `[section]` and is otherwise the default.
const BAD: &[(&str, &str)] = &[
    ("not TOML", "[run\nmodes = 1"),
    ("a misspelt field", "[run]\nwarm_upp = 3"),
    ("a field unlike any", "[candle]\nxyzzy = 1"),
    ("a section half written", "[environ]\ntorch = \"2.15.0\""),
    ("a field of another section", "[candle]\nattention = [\"sdpa\"]"),
    ("an unknown mode", "[run]\nmodes = [\"egaer\"]"),
    ("a field of the wrong type", "[run]\nrounds = \"three\""),
    ("a negative count", "[run]\nrounds = -1"),
    ("a missing field", "[[versions]]\nsource = \"transformers==4.54.0\""),
    ("no checkpoint", "checkpoints = []"),
    ("a source that is none", "[[checkpoints]]\nsource = \"gpt 2\""),
    ("synthetic without a model_type", "[[checkpoints]]\nsource = \"synthetic:\""),
    ("a revision of a folder", "[[checkpoints]]\nsource = \"./llama\"\nrevision = \"main\""),
    ("an empty revision", "[[checkpoints]]\nsource = \"gpt2\"\nrevision = \"\""),
    ("remote code of a GGUF file", "[[checkpoints]]\nsource = \"a.gguf\"\nallow_remote_code = true"),
    ("a name that is no file name", "[[checkpoints]]\nsource = \"gpt2\"\nname = \"../gpt2\""),
    (
        "two checkpoints of one name",
        "[[checkpoints]]\nsource = \"a/Llama\"\n[[checkpoints]]\nsource = \"b/llama\"",
    ),
    ("prompts for a synthetic checkpoint", "[inputs]\nprompts = [\"Hello\"]"),
    (
        "prompts with lengths",
        "[inputs]\nprompts = [\"Hello\"]\nlengths = [128]\n[[checkpoints]]\nsource = \"gpt2\"",
    ),
    (
        "prompts with batch",
        "[inputs]\nprompts = [\"Hello\"]\nbatch = [2]\n[[checkpoints]]\nsource = \"gpt2\"",
    ),
    (
        "prompts with text",
        "[inputs]\nprompts = [\"Hello\"]\ntext = \"a.txt\"\n[[checkpoints]]\nsource = \"gpt2\"",
    ),
    ("no prompt", "[inputs]\nprompts = []\n[[checkpoints]]\nsource = \"gpt2\""),
    ("an empty prompt", "[inputs]\nprompts = [\"Hello\", \" \"]\n[[checkpoints]]\nsource = \"gpt2\""),
    ("choices without prompts", "[inputs]\nchoices = [\"A\"]"),
    ("chat without prompts", "[inputs]\nchat = true"),
    ("a retrieval set for a synthetic checkpoint", "[inputs]\nretrieval = true"),
    (
        "a retrieval set with lengths",
        "[inputs]\nretrieval = true\nlengths = [128]\n[[checkpoints]]\nsource = \"gpt2\"",
    ),
    (
        "a retrieval set with prompts",
        "[inputs]\nretrieval = true\nprompts = [\"Hello\"]\n[[checkpoints]]\nsource = \"gpt2\"",
    ),
    ("no length", "[inputs]\nlengths = []"),
    ("a length of 0", "[inputs]\nlengths = [128, 0]"),
    ("a batch twice", "[inputs]\nbatch = [1, 4, 1]"),
    ("an unknown side", "[inputs]\npadding = [\"lefft\"]"),
    ("a torch that is no release", "[environment]\ntorch = \">=2.0\""),
    ("a torch backend that is none", "[environment]\ntorch_backend = \"rocm\""),
    ("torch among the requirements", "[environment]\nrequirements = [\"numpy<3\", \"torch==2.15.0\"]"),
    ("an option of pip among the requirements", "[environment]\nrequirements = [\"--index-url=x\"]"),
    ("a zero byte in a program", "[[commands]]\nname = \"mine\"\nprogram = [\"a\\u0000b\"]"),
    ("transformers among the requirements", "[environment]\nrequirements = [\"transformers[torch]\"]"),
    ("a python that is a path", "[environment]\npython = \"/usr/bin/python3\""),
    ("a version of another package", "[[versions]]\nname = \"t\"\nsource = \"torch==2.15.0\""),
    ("a version range", "[[versions]]\nname = \"t\"\nsource = \"transformers>=4.54\""),
    ("a version pattern", "[[versions]]\nname = \"t\"\nsource = \"transformers==4.*\""),
    ("a git source without a repository", "[[versions]]\nname = \"t\"\nsource = \"git+https://host\""),
    ("a version from nowhere", "[[versions]]\nname = \"mine\""),
    (
        "python with an editable source",
        "[[versions]]\nname = \"mine\"\nsource = \"-e fork/\"\npython = \"/usr/bin/python3\"",
    ),
    (
        "two versions of one name",
        "versions = [\n  { name = \"a\", python = \"/p\" },\n  { name = \"A\", python = \"/q\" },\n]",
    ),
    ("a reserved name", "[[versions]]\nname = \"candle\"\nsource = \"transformers==4.54.0\""),
    ("fused transformers", "[run]\nmodes = [\"eager\", \"fused\"]"),
    (
        "a fused version",
        "[[versions]]\nname = \"4.54.0\"\nsource = \"transformers==4.54.0\"\nmodes = [\"fused\"]",
    ),
    ("compiled candle", "[candle]\nmodes = [\"compiled\"]"),
    ("no mode", "[run]\nmodes = []"),
    ("no dtype", "[run]\ndtypes = []"),
    ("a device that is none", "[run]\ndevices = [\"gpu\"]"),
    ("no program", "[[commands]]\nname = \"mine\"\nprogram = []"),
    ("a command named as a version", "[[commands]]\nname = \"5.23.0\"\nprogram = [\"./worker\"]"),
    ("no threads", "[run]\nthreads = 0"),
    ("a memory budget of nothing", "[run]\nmemory_budget_gb = -1.5"),
    ("two faults at once", "[run]\niterations = 0\ntimeout_s = 0"),
];

#[test]
fn a_bad_config_is_refused_at_its_line_with_a_hint() {
    let mut rendered = String::new();
    for (what, text) in BAD {
        let error = parse(text).map(|_| what).expect_err("each of these is refused");
        let _ = writeln!(rendered, "## {what}\n{}", render(&error));
    }
    insta::assert_snapshot!("bad_configs", rendered);
}

#[test]
fn a_missing_config_is_refused_with_its_path_and_a_hint() {
    let error = Config::load(Some(Path::new("no/such.toml"))).unwrap_err();
    insta::assert_snapshot!(render(&error), @"
      × cannot read the config no/such.toml: No such file or directory (os error 2)
      help: `tfcheck init` writes a commented one
    ");
}

#[test]
fn init_writes_the_default_config() {
    assert_eq!(parse(&init_text()).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn each_commented_setting_of_init_is_valid_when_uncommented() {
    let text = init_text();
    let lines: Vec<&str> = text.lines().collect();
    let is_setting = |line: &&str| {
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let settings = lines.iter().filter(|line| is_setting(line)).count();
    assert!(settings > 20, "only {settings} settings found");
    for index in (0..lines.len()).filter(|index| is_setting(&lines[*index])) {
        let mut lines = lines.clone();
        lines[index] = &lines[index][1..];
        if let Err(error) = parse(&lines.join("\n")) {
            panic!("{}", render(&error));
        }
    }
}

#[test]
fn init_mentions_every_field_of_the_schema() {
    let schema: Value = serde_json::from_str(&schema_text()).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values();
    let text = init_text();
    for definition in definitions.chain([&schema]) {
        for (field, property) in definition["properties"].as_object().into_iter().flatten() {
            let mentioned =
                [format!("{field} = "), format!("[{field}]")].iter().any(|form| text.contains(form));
            assert!(mentioned, "`{field}` is missing from the init file");
            assert!(property["description"].is_string(), "`{field}` has no description in the schema");
        }
    }
}

#[test]
fn init_does_not_overwrite_an_existing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    init(&path).unwrap();
    assert_eq!(Config::load(Some(&path)).unwrap().text, init_text());
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(init(&path), Err(InitError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

/// A config with every section and field.
const FULL: &str = r#"
[[checkpoints]]
source = "HuggingFaceTB/SmolLM2-135M"
revision = "abc123"
name = "smollm2"
allow_remote_code = true
[[checkpoints]]
source = "./tiny"
[[checkpoints]]
source = "models/small.gguf"

[inputs]
lengths = [128, 512]
batch = [1, 4]
padding = ["right", "left"]
text = "book.txt"
seed = 7

[environment]
torch = "2.15.0"
requirements = ["numpy<3"]
torch_backend = "cu130"
python = "3.11"

[[versions]]
name = "4.54.0"
source = "transformers==4.54.0"
[[versions]]
name = "main"
source = "git+https://github.com/huggingface/transformers@main"
modes = ["eager"]
attention = ["eager", "sdpa"]
dtypes = ["f32", "bf16"]
[[versions]]
name = "transformers-fork"
source = "-e transformers-fork/"
[[versions]]
name = "mine"
python = "/env/bin/python"

[candle]
modes = ["fused"]
upstream = true

[[commands]]
name = "worker"
program = ["python3", "worker.py"]

[run]
modes = ["compiled"]
attention = ["eager"]
dtypes = ["f32"]
devices = ["cpu", "cuda:1"]
threads = 4
warm_up = 0
iterations = 5
rounds = 2
trace = false
oracle = true
baseline = "main_eager_sdpa_bf16"
timeout_s = 60
memory_budget_gb = 4.5
seed = 3
"#;

#[test]
fn a_config_reads_back_as_it_was_written() {
    let config = parse(FULL).unwrap();
    assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    assert_eq!(parse(&toml::to_string(&Config::default()).unwrap()).unwrap(), Config::default());
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let config = Config::parse(FULL, Path::new("lab/tfcheck.toml")).unwrap();
    let sources: Vec<String> =
        config.checkpoints.iter().map(|checkpoint| checkpoint.source.to_string()).collect();
    assert_eq!(sources, ["HuggingFaceTB/SmolLM2-135M", "lab/./tiny", "lab/models/small.gguf"]);
    assert_eq!(config.inputs.text.as_deref(), Some(Path::new("lab/book.txt")));
    assert_eq!(config.versions[2].source, Some(VersionSource::Editable("lab/transformers-fork/".into())));
    assert_eq!(config.versions[3].python.as_deref(), Some(Path::new("/env/bin/python")));
    assert_eq!(config.folder, Path::new("lab"));
}

#[test]
fn checkpoints_of_the_command_line_replace_those_of_the_config() {
    let sources = ["owner/model@v1.0", "./folder@2", "synthetic:gpt2"].map(str::to_owned);
    let config = Config::default().with_checkpoints(&sources).unwrap();
    let read: Vec<_> =
        config.checkpoints.iter().map(|one| (one.source.to_string(), one.revision.as_deref())).collect();
    let expect = [("owner/model", Some("v1.0")), ("./folder@2", None), ("synthetic:gpt2", None)];
    assert_eq!(read, expect.map(|(source, revision)| (source.to_owned(), revision)));
    let prompts = parse("inputs.prompts = [\"Hello\"]\ncheckpoints = [{ source = \"gpt2\" }]").unwrap();
    for (config, source) in [(Config::default(), "gpt 2"), (prompts, "synthetic:llama")] {
        assert!(config.with_checkpoints(&[source.to_owned()]).is_err(), "{source}");
    }
}

#[test]
fn a_case_is_named_after_its_source_in_a_form_that_is_safe_as_a_file_name() {
    for (source, name) in [
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m"),
        ("gpt2", "gpt2"),
        ("models/Gemma 3.Q4.gguf", "gemma-3.q4"),
        ("./tiny llama@2/", "tiny-llama-2"),
        ("..", "checkpoint"),
        ("synthetic:llama", "llama"),
        ("synthetic:mistral:window", "mistral-window"),
    ] {
        assert_eq!(Checkpoint::new(source.parse().unwrap()).case_name(), name);
    }
}

#[test]
fn a_git_source_keeps_the_user_and_splits_off_the_ref() {
    for (text, url, reference) in [
        ("git+https://host/owner/name@v4.54.0", "https://host/owner/name", Some("v4.54.0")),
        ("git+https://host/owner/name", "https://host/owner/name", None),
        ("git+ssh://git@host/owner/name@main", "ssh://git@host/owner/name", Some("main")),
        ("git+ssh://git@host/owner/name", "ssh://git@host/owner/name", None),
    ] {
        let expect = VersionSource::Git { url: url.to_owned(), reference: reference.map(str::to_owned) };
        assert_eq!(text.parse(), Ok(expect.clone()));
        assert_eq!(expect.to_string(), text);
    }
}

#[test]
fn the_schema_accepts_what_the_parser_accepts_and_refuses_unknown_fields() {
    let schema: Value = serde_json::from_str(&schema_text()).unwrap();
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("tfcheck.json", schema).unwrap();
    let index = compiler.compile("tfcheck.json", &mut schemas).unwrap();
    let valid = |text: &str| {
        let document = toml::from_str::<toml::Value>(text).unwrap();
        schemas.validate(&serde_json::to_value(document).unwrap(), index).is_ok()
    };
    for text in ["", FULL, &init_text()] {
        assert!(valid(text), "{text}");
    }
    for text in
        ["xyzzy = 1", "[run]\nwarm_upp = 3", "[run]\nmodes = [\"egaer\"]", "[[versions]]\nsource = \"x\""]
    {
        assert!(!valid(text), "{text}");
    }
}

#[test]
fn relations_are_selected_by_names_that_exist() {
    let config = parse("[relations]\nenabled = true\nonly = [\"causality\", \"repeat\"]").unwrap();
    let names: Vec<&str> = config.relations.selected().iter().map(|relation| relation.name).collect();
    assert_eq!(names, ["repeat", "causality"], "in the order of the table");
    assert_eq!(parse("").unwrap().relations.selected().len(), crate::spec::relations::RELATIONS.len());
    let error = parse("[relations]\nonly = [\"causalty\"]").unwrap_err();
    assert_eq!(error.to_string(), "no relation is called \"causalty\"");
    let help = miette::Diagnostic::help(&error).unwrap().to_string();
    assert!(help.starts_with("did you mean \"causality\"? there are repeat, "), "{help}");
}
