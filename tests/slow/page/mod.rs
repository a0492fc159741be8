//! Tests of `report.html` and of the page that compares two runs, in headless Chromium: clicks, keys, links, both colour
//! schemes, printing, and no network requests. Screenshots are written to `<target>/tmp/page`.

mod browser;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use browser::Browser;
use clap::Parser;
use serde_json::json;
use tfcheck::cli::Cli;

use crate::made_run::{HOSTILE, made_run};

/// Lets one test run at a time: two browsers on two cores slow each other down.
static ONE: Mutex<()> = Mutex::new(());

/// Runs `test` in a browser. Without Chromium, the test fails in CI; elsewhere it is skipped and prints how to install it.
fn with_browser(test: impl FnOnce(&mut Browser)) {
    let Some(program) = browser::program() else {
        assert!(std::env::var_os("CI").is_none(), "CI has no Chromium: .ci/run installs it");
        eprintln!("skipped: there is no Chromium on PATH; install it with: apt install chromium");
        return;
    };
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    test(&mut Browser::start(&program));
}

/// Regenerates the reports of a run and returns the path of its `report.html`.
fn page(run: &Path) -> PathBuf {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tfcheck")).args(["compare", "-v"]).arg(run).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    told.lines().filter(|line| line.contains(" in ")).for_each(|line| eprintln!("{line}"));
    assert!(output.status.code().is_some_and(|code| code < 2 || code == 3), "{output:?}");
    run.join("report.html")
}

fn shots() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("page")
}

/// The words into which `sh` splits a command.
fn words(command: &str) -> Vec<String> {
    let output = Command::new("sh").args(["-c", &format!("printf '%s\\n' {command}")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Checks that the page has at least `at_least` distinct commands and that the command line parses them.
fn check_commands(browser: &mut Browser, at_least: usize) {
    let found = browser.value("[...document.querySelectorAll('code')].map((code) => code.textContent)");
    let mut commands: Vec<&str> =
        found.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    commands.sort_unstable();
    commands.dedup();
    assert!(commands.len() >= at_least, "{} commands", commands.len());
    // Checks at most 40 commands, because each one starts a shell.
    let step = commands.len().div_ceil(40);
    for command in commands.into_iter().step_by(step) {
        assert!(Cli::try_parse_from(words(command)).is_ok(), "{command}");
    }
}

#[test]
fn a_page_of_one_case_responds_to_clicks_keys_and_links() {
    with_browser(|browser| {
        let results = tempfile::tempdir().unwrap();
        let file = page(&made_run(results.path(), 1, 8, 1.0));
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            browser.open(&file, "");
            browser.wait_for("document.querySelector('table.heat td[data-at]') !== null");
            browser.screenshot(&shots().join(format!("small-{scheme}.png")), true);
        }
        let background =
            |browser: &mut Browser| browser.value("getComputedStyle(document.body).backgroundColor");
        let dark = background(browser);
        browser.scheme("light");
        assert_ne!(background(browser), dark, "the scheme follows the system");
        browser.click("button.scheme");
        browser.click("button.scheme");
        assert_eq!(background(browser), dark, "the button chooses the dark scheme");
        browser.click("button.scheme");

        // The linear scale changes the colours, another metric the numbers.
        let cell = "document.querySelector('table.heat td[data-at]')";
        let shown = |browser: &mut Browser| {
            browser.value(&format!("[{cell}.textContent, {cell}.style.getPropertyValue('--heat')]"))
        };
        let before = shown(browser);
        browser.click("button[data-scale=linear]");
        assert_ne!(shown(browser)[1], before[1], "linear");
        browser.value("(() => { const s = document.querySelector('.matrix select'); s.value = 'max_abs'; s.dispatchEvent(new Event('change')); })()");
        assert_ne!(shown(browser)[0], before[0], "max abs");
        let options = browser.value("document.querySelectorAll('.matrix option').length");
        let gates = compare::metric::METRICS.iter().filter(|metric| metric.is_gate).count();
        assert_eq!(options, gates, "every metric of the table");

        // Keys move in the matrix, open a pair, and go back to the cell.
        browser.value(&format!("{cell}.focus()"));
        browser.key("ArrowDown");
        browser.key("ArrowRight");
        let at = browser.value("document.activeElement.dataset.at");
        assert!(at.is_string(), "the arrows stay in the matrix: {at}");
        browser.key("Enter");
        browser.wait_for("document.querySelector('.pair h4') !== null");
        assert!(browser.value("location.hash").as_str().unwrap().contains("&pair="));
        browser.key("Escape");
        browser.wait_for("document.querySelector('.pair') === null");
        browser.wait_for("document.activeElement.dataset.at !== undefined");
        assert_eq!(browser.value("document.activeElement.dataset.at"), at, "back at the same cell");

        // A link to a pair opens it; the text of a token is never read as markup.
        let pair = "5.24.0_eager_sdpa_f32..5.10.4_eager_sdpa_f32";
        browser.open(&file, &format!("#case=llama-32&pair={pair}"));
        browser.wait_for("document.querySelectorAll('.pair .token').length === 96");
        assert_eq!(browser.value("document.querySelectorAll('.pair svg').length"), 2);
        assert_eq!(browser.value("document.querySelectorAll('.pair .worst tbody tr').length"), 5);
        assert_ne!(browser.value("document.title"), "broken");
        let texts =
            browser.value("[...document.querySelectorAll('.token')].map((token) => token.textContent)");
        let visible = HOSTILE.replace(' ', "\u{b7}");
        assert!(texts.as_array().unwrap().iter().any(|text| text == &json!(visible)), "{texts}");
        assert_eq!(browser.value("document.querySelectorAll('main img').length"), 0);
        check_commands(browser, 11);
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            browser.screenshot(&shots().join(format!("pair-{scheme}.png")), true);
        }
        browser.scheme("light");

        // A click in the grid opens the case; Escape goes back to the cell.
        browser.open(&file, "");
        browser.click("table.grid td a");
        browser.wait_for("document.querySelector('tr.target') !== null");
        browser.key("Escape");
        browser.wait_for("document.activeElement.closest('table.grid') !== null");

        let paper = browser.pdf();
        assert!(paper.starts_with(b"%PDF") && paper.len() > 20_000, "{} bytes on paper", paper.len());
        assert_eq!(browser.complaints(), Vec::<String>::new());

        // The policy blocks requests. This check is last because the browser logs an error for each blocked request.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let loaded = browser.value(&format!(
            "(async () => {{ try {{ await fetch('http://{address}/'); return 'fetched'; }} catch {{ return 'refused'; }} }})()"
        ));
        assert_eq!(loaded, "refused");
        browser.value(&format!("new Promise((end) => {{ const i = new Image(); i.onerror = i.onload = () => end(0); i.src = 'http://{address}/x.png'; }})"));
        assert!(listener.accept().is_err(), "something reached the network");
    });
}

#[test]
fn a_page_of_seven_cases_marks_nan_cells_and_fits_the_window() {
    with_browser(|browser| {
        let results = tempfile::tempdir().unwrap();
        let file = page(&made_run(results.path(), 7, 8, 1.0));
        for (scheme, width) in [("light", 1280), ("dark", 1920)] {
            browser.scheme(scheme);
            browser.width(width);
            browser.open(&file, "#case=gemma2-35");
            browser.wait_for("document.querySelector('table.heat td.wrong') !== null");
            browser.screenshot(&shots().join(format!("seven-{scheme}-{width}.png")), true);
            let overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
            assert_eq!(browser.value(overflow), false, "the page fits {width} pixels");
        }
        assert_eq!(browser.value("document.querySelectorAll('table.heat td.wrong')[0].textContent"), "NaN");
        // Depth profile of a localised case.
        browser.open(&file, "#case=llama-32");
        browser.wait_for("document.querySelector('figure.depth svg') !== null && document.querySelector('.drawn') !== null");
        browser.value("document.querySelector('figure.depth').scrollIntoView()");
        browser.screenshot(&shots().join("depth.png"), false);
        assert_eq!(browser.complaints(), Vec::<String>::new());
    });
}

#[test]
fn a_page_of_five_hundred_cells_is_smaller_than_two_megabytes() {
    with_browser(|browser| {
        let results = tempfile::tempdir().unwrap();
        let run = made_run(results.path(), 20, 25, 1.0);
        let file = page(&run);
        let bytes = std::fs::metadata(&file).unwrap().len();
        eprintln!("500 cells: {bytes} bytes");
        assert!(bytes < 2_000_000, "{bytes} bytes");
        browser.open(&file, "");
        // The grid has no rows for the two float64 references.
        assert_eq!(browser.value("document.querySelectorAll('table.grid td a').length"), 460);
        browser.screenshot(&shots().join("large.png"), false);
        browser.open(&file, "#case=llama-32&pair=5.24.0_eager_sdpa_f32..4.51.3_eager_sdpa_bf16");
        browser.wait_for("document.querySelector('.pair h4') !== null");
        browser.screenshot(&shots().join("large-pair.png"), false);
        browser.key("Escape");
        browser.wait_for("document.querySelectorAll('table.heat td[data-at]').length === 25 * 24");
        browser.screenshot(&shots().join("large-matrix.png"), false);
        check_commands(browser, 500);
        // A pair without details, because neither side is the reference or a group leader.
        browser.open(&file, "#case=qwen3-34&pair=4.51.3_eager_sdpa_bf16..4.54.0_eager_eager_bf16");
        browser.wait_for("document.querySelector('.pair .omitted') !== null");
        assert_eq!(browser.complaints(), Vec::<String>::new());
    });
}

#[test]
fn a_grid_of_222_cases_has_one_row_per_case() {
    with_browser(|browser| {
        let results = tempfile::tempdir().unwrap();
        let file = page(&made_run(results.path(), 222, 6, 1.0));
        eprintln!("222 cases: {} bytes", std::fs::metadata(&file).unwrap().len());
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            browser.open(&file, "");
            browser.screenshot(&shots().join(format!("many-{scheme}.png")), false);
        }
        let rows =
            "[...document.querySelectorAll('table.grid tbody tr')].filter((row) => !row.hidden).length";
        assert_eq!(browser.value(rows), 222);
        browser.click("#differences");
        let fewer = browser.value(rows).as_u64().unwrap();
        assert!(fewer > 20 && fewer < 222, "{fewer} rows with differences");
        assert_eq!(browser.complaints(), Vec::<String>::new());
    });
}

#[test]
fn a_page_of_two_runs_lists_what_changed() {
    with_browser(|browser| {
        let [before, after] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let runs = [made_run(before.path(), 3, 8, 1.0), made_run(after.path(), 3, 8, 1.2)];
        let file = after.path().join("changes.html");
        let output = Command::new(env!("CARGO_BIN_EXE_tfcheck"))
            .args(["compare", "-q"])
            .args(&runs)
            .arg("--html")
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // The second variant of each case takes 1.2 times as long.
        assert!(
            said.contains("0 worse, 0 better, 0 changed, 24 unchanged; 3 slower, 0 faster"),
            "{output:?}"
        );
        browser.open(&file, "#case=llama-32&cell=5.24.0_eager_eager_f32");
        assert_eq!(browser.value("document.querySelectorAll('tr[id]').length"), 24);
        assert_eq!(browser.value("document.querySelectorAll('tr:target').length"), 1);
        assert_eq!(browser.value("document.querySelectorAll('#summary li').length"), 6);
        assert_eq!(browser.value("document.querySelectorAll('tr.worse').length"), 3);
        let environment = browser.value("document.querySelector('section td').parentElement.textContent");
        assert_eq!(environment, "5.24.0: numpy2.4.12.4.2");
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            browser.screenshot(&shots().join(format!("changes-{scheme}.png")), true);
        }
        assert_eq!(browser.complaints(), Vec::<String>::new());
    });
}
