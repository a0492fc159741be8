use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use reference::protocol::Dtype;

use super::*;

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("tfcheck.toml")).unwrap()
}

fn plan(config: &Config) -> Plan {
    Plan::new(config, "cpu").unwrap()
}

fn names(plan: &Plan) -> BTreeSet<String> {
    plan.cells.iter().map(|cell| plan.cell_name(cell)).collect()
}

fn filters(only: &[&str], skip: &[&str]) -> Filters {
    let owned = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    Filters { only: owned(only), skip: owned(skip) }
}

const WIDE: &str = r#"
[[checkpoints]]
source = "HuggingFaceTB/SmolLM2-135M"
revision = "abc123"
name = "smollm2"
[[checkpoints]]
source = "synthetic:mistral:window"
[inputs]
lengths = [128, 512]
batch = [1, 4]
padding = ["none", "left"]
[environment]
requirements = ["numpy<3"]
[[versions]]
name = "4.54.0"
source = "transformers==4.54.0"
[[versions]]
name = "5.23.0"
source = "transformers==5.23.0"
[[versions]]
name = "5.23.0-again"
source = "transformers==5.23.0"
modes = ["eager"]
[[versions]]
name = "fork"
source = "-e transformers-fork/"
attention = ["eager"]
[[versions]]
name = "mine"
python = "/env/bin/python"
modes = ["eager"]
dtypes = ["bf16"]
[candle]
upstream = true
[[commands]]
name = "worker"
program = ["python3", "worker.py"]
[run]
oracle = true
"#;

fn shown(plan: &Plan, config: &Config) -> String {
    plan.text(config, &vec![None; plan.cells.len()])
}

#[test]
fn the_run_without_a_config() {
    let config = Config::default();
    insta::assert_snapshot!(shown(&plan(&config), &config));
}

#[test]
fn a_wide_run() {
    let config = config(WIDE);
    insta::assert_snapshot!(shown(&plan(&config), &config));
}

#[test]
fn a_run_on_prompts() {
    let config = config(
        "checkpoints = [{ source = \"gemma-3-270m.gguf\" }]\nversions = []\n[inputs]\nprompts = [\"One\", \"Two\"]\nchat = true\npadding = [\"left\"]",
    );
    insta::assert_snapshot!(shown(&plan(&config), &config));
}

#[test]
fn a_filtered_run_names_only_what_is_left() {
    let config = config(WIDE);
    let left =
        plan(&config).filtered(&filters(&["smollm2-128/*"], &["5*", "mine*", "*_f64"]), &config).unwrap();
    insta::assert_snapshot!(shown(&left, &config));
}

#[test]
fn auto_is_the_dtype_of_each_checkpoint() {
    let config = config("[run]\ndtypes = [\"auto\"]\nattention = [\"default\"]");
    let plan = plan(&config).with_dtypes(|_| Dtype::Bf16);
    assert!(plan.cells.iter().all(|cell| cell.variant.dtype == Dtype::Bf16 && cell.variant.auto_dtype));
    assert!(names(&plan).contains("llama-128/5.23.0_eager_default_auto"), "{:?}", names(&plan));
}

#[test]
fn no_two_cells_share_a_name_and_every_index_is_in_range() {
    let config = config(WIDE);
    let plan = plan(&config);
    assert_eq!(names(&plan).len(), plan.cells.len());
    for cell in &plan.cells {
        assert!(cell.case < plan.cases.len());
        assert_eq!(
            cell.environment.is_some(),
            cell.variant.runner == crate::spec::variant::Runner::Transformers
        );
        assert_eq!(cell.command.is_some(), cell.variant.runner == crate::spec::variant::Runner::Command);
        let runs_in = cell.environment.map(|index| &plan.environments[index].versions);
        assert!(runs_in.is_none_or(|versions| versions.contains(&cell.variant.version)));
    }
}

#[test]
fn versions_of_equal_content_share_an_environment_and_their_keys() {
    let config = config(WIDE);
    let plan = plan(&config);
    let key = |name: &str| plan.cells.iter().find(|cell| plan.cell_name(cell) == name).unwrap().key.clone();
    assert_eq!(plan.environments[1].versions, ["5.23.0", "5.23.0-again"]);
    assert_eq!(key("smollm2-128/5.23.0_eager_sdpa_f32"), key("smollm2-128/5.23.0-again_eager_sdpa_f32"));
    assert_ne!(key("smollm2-128/5.23.0_eager_sdpa_f32"), key("smollm2-128/4.54.0_eager_sdpa_f32"));
}

#[test]
fn a_key_changes_with_what_is_computed_and_not_with_names_or_limits() {
    let base = plan(&Config::default()).cells[0].key.clone();
    let key = |text: &str| plan(&config(text)).cells[0].key.clone();
    for same in [
        "[run]\ntimeout_s = 5",
        "[run]\nmemory_budget_gb = 1.0",
        "[run]\nbaseline = \"candle_eager\"",
        "[run]\ndevices = [\"cpu\", \"cuda:0\"]",
        "[[checkpoints]]\nsource = \"synthetic:llama\"\nname = \"other\"",
        "[[versions]]\nname = \"other\"\nsource = \"transformers==4.54.0\"",
    ] {
        assert_eq!(key(same), base, "{same}");
    }
    for different in [
        "[run]\nseed = 1",
        "[run]\nthreads = 1",
        "[run]\niterations = 11",
        "[run]\ndtypes = [\"bf16\"]",
        "[run]\nattention = [\"eager\"]",
        "[run]\nmodes = [\"compiled\"]",
        "[inputs]\nseed = 1",
        "[inputs]\nlengths = [129]",
        "[inputs]\nbatch = [2]",
        "[inputs]\ntext = \"book.txt\"",
        "[environment]\ntorch = \"2.14.0\"",
        "[environment]\nrequirements = [\"numpy<3\"]",
        "[[checkpoints]]\nsource = \"synthetic:gpt2\"",
        "[[versions]]\nname = \"4.54.0\"\nsource = \"transformers==4.54.1\"",
    ] {
        assert_ne!(key(different), base, "{different}");
    }
}

#[test]
fn auto_is_replaced_by_the_machines_device_and_not_run_twice() {
    let config = config("[run]\ndevices = [\"auto\", \"cuda:0\"]");
    let variants = |device| {
        let plan = Plan::new(&config, device).unwrap();
        plan.cells.iter().map(|cell| cell.variant.name()).collect::<BTreeSet<_>>()
    };
    assert!(variants("cuda:0").contains("4.54.0_eager_sdpa"));
    assert!(variants("cpu").contains("4.54.0_eager_sdpa_f32_cuda0"));
    assert_eq!(variants("cpu").len(), 2 * variants("cuda:0").len());
}

#[test]
fn the_oracle_keeps_the_other_variants_names_and_is_not_timed() {
    let config = config("[run]\noracle = true");
    let plan = plan(&config);
    let oracles: Vec<_> =
        plan.cells.iter().filter(|cell| cell.oracle).map(|cell| cell.variant.name()).collect();
    assert_eq!(oracles, ["4.54.0_eager_eager_f64", "5.23.0_eager_eager_f64", "candle_eager_f64"]);
    assert!(plan.cells.iter().all(|cell| cell.measured != cell.oracle));
    assert!(names(&plan).contains("llama-128/5.23.0_eager_sdpa"));
}

#[test]
fn an_oracle_that_is_also_a_measured_variant_runs_once() {
    let config = config("[run]\noracle = true\ndtypes = [\"f32\", \"f64\"]\nattention = [\"eager\"]");
    let plan = plan(&config);
    let oracles: Vec<_> = plan.cells.iter().filter(|cell| cell.oracle && cell.measured).collect();
    assert_eq!(oracles.len(), 3);
    assert_eq!(names(&plan).len(), 12);
}

#[test]
fn the_default_baseline_is_eager_of_the_newest_release() {
    for (text, baseline) in [
        ("", "5.23.0_eager_sdpa"),
        ("[run]\nattention = [\"sdpa\", \"eager\"]", "5.23.0_eager_sdpa"),
        ("[run]\nmodes = [\"compiled\"]", "4.54.0_compiled_sdpa"),
        ("versions = []", "candle_eager"),
        ("[run]\nbaseline = \"candle_fused\"", "candle_fused"),
        (
            "versions = [{ name = \"b\", source = \"transformers==4.54.10\" }, { name = \"a\", source = \"transformers==4.54.9\" }, { name = \"fork\", source = \"-e f\" }]",
            "b_eager_sdpa",
        ),
    ] {
        assert_eq!(plan(&config(text)).baseline, baseline, "{text}");
    }
    let error = Plan::new(&config("[run]\nbaseline = \"5.23.0_eagr_sdpa\""), "cpu").unwrap_err();
    let PlanError::Baseline { hint, .. } = error else { panic!("{error}") };
    assert!(hint.starts_with("did you mean `5.23.0_eager_sdpa`?"), "{hint}");
}

#[test]
fn a_plan_without_variants_or_with_duplicate_names_is_refused() {
    let empty = config("versions = []\n[candle]\nmodes = []");
    assert_eq!(Plan::new(&empty, "cpu"), Err(PlanError::Empty));
    let text = "inputs.batch = [1, 4]\ncheckpoints = [{ source = \"./m\" }, { source = \"./m-b4\" }]";
    assert_eq!(
        Plan::new(&config(text), "cpu"),
        Err(PlanError::SameName("m-b4-128/4.54.0_eager_sdpa".to_owned()))
    );
}

#[test]
fn a_pattern_that_matches_nothing_suggests_the_nearest() {
    let config = Config::default();
    let hint = |pattern: &str| match plan(&config).filtered(&filters(&[], &[pattern]), &config) {
        Err(PlanError::Filter(FilterError::NoMatch { hint, .. })) => hint,
        other => panic!("{pattern}: {other:?}"),
    };
    assert!(hint("candle_fusd").starts_with("did you mean `candle_fused`?"));
    assert!(hint("llama-129").starts_with("did you mean `llama-128`?"));
    assert!(hint("llama-128/candel_eager").starts_with("did you mean `llama-128/candle_eager`?"));
    assert!(hint("zzz*").starts_with("`tfcheck plan` lists"));
    let all = plan(&config).filtered(&filters(&["*eager*"], &["llama*"]), &config);
    assert_eq!(all, Err(PlanError::Filter(FilterError::NothingLeft)));
}

fn pattern() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "*",
        "smollm2*",
        "*-left",
        "*eager*",
        "candle*",
        "5.23.0*",
        "*/fork_*",
        "mistral-window-b4-512/*",
        "*f64",
        "m?ne*",
    ])
}

proptest! {
    #[test]
    fn only_and_skip_of_the_same_patterns_divide_the_plan(patterns in prop::collection::vec(pattern(), 1..4)) {
        let config = config(WIDE);
        let all = plan(&config);
        let left = |filters: Filters| all.filtered(&filters, &config).map(|plan| names(&plan)).unwrap_or_default();
        let only = left(filters(&patterns, &[]));
        let skip = left(filters(&[], &patterns));
        prop_assert!(only.is_disjoint(&skip));
        prop_assert_eq!(&(&only | &skip), &names(&all));
        // Filtering a second time changes nothing.
        if !only.is_empty() {
            let once = all.filtered(&filters(&patterns, &[]), &config).unwrap();
            prop_assert_eq!(&once.filtered(&filters(&patterns, &[]), &config).unwrap(), &once);
        }
    }
}
