//! Checks the expected values of `fast/compare/metrics.rs`.

use reference::{Source, Specification, Versions};

/// numpy computed the committed values in `fixtures/metrics.json`. This test recomputes them with numpy and torch of the
/// newest transformers' environment, or with the Python that `TFCHECK_TEST_PYTHON` names, which may have scipy.
#[test]
fn the_expected_metrics_equal_those_of_numpy_and_torch() {
    let python = std::env::var_os("TFCHECK_TEST_PYTHON").unwrap_or_else(|| {
        let specification = Specification::new(Source::Release(Versions::known().newest.clone()));
        let cache = tfcheck::app::cache_folder().unwrap();
        let environment = reference::prepare(&specification, &cache, &|line| eprintln!("{line}")).unwrap();
        environment.python.into_os_string()
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/metrics.py");
    let output = std::process::Command::new(&python).args(["-I", script, "--check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("24 cases by numpy"), "{output:?}");
}
