use clap::CommandFactory;

use super::hunt::size;
use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn help_reads_well() {
    let mut command = Cli::command().term_width(100).version("0.0.0");
    command.build();
    let mut text = command.render_help().to_string();
    let names = [
        "run",
        "relations",
        "plan",
        "merge",
        "init",
        "schema",
        "compare",
        "localize",
        "scoreboard",
        "bench",
        "bisect",
        "baseline",
        "explain",
        "record",
        "list",
    ];
    for name in names {
        let sub = command.find_subcommand_mut(name).unwrap().clone().term_width(100);
        text = format!("{text}\n=== {name}\n{}", sub.clone().render_help());
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_colour_is_known_before_the_command_line_is_parsed() {
    for (words, expected) in [
        (&["plan"][..], Color::Auto),
        (&["plan", "--color", "never"], Color::Never),
        (&["--color=always", "plan"], Color::Always),
        (&["--color=sometimes"], Color::Auto),
        (&["plan", "--color"], Color::Auto),
        (&["plan", "--", "--color=never"], Color::Auto),
    ] {
        let words = words.iter().map(|word| (*word).to_owned());
        assert_eq!(Color::of_arguments(words.clone()), expected, "{:?}", words.collect::<Vec<_>>());
    }
}

#[test]
fn sizes_have_binary_units() {
    for (text, bytes) in [("2GiB", Ok(2 << 30)), ("512MiB", Ok(512 << 20)), ("7", Ok(7)), ("0B", Ok(0))] {
        assert_eq!(size(text), bytes, "{text}");
    }
    for text in ["2GB", "GiB", "-1", "1.5GiB", "99999999999GiB"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn a_resumed_run_takes_no_other_cells() {
    let parse = |words: &[&str]| Cli::try_parse_from([&["tfcheck", "run", "--resume", "r"], words].concat());
    assert!(parse(&["--clean", "-q"]).is_ok());
    for words in
        [&["a.toml"][..], &["--only", "x"], &["--checkpoint", "gpt2"], &["--results", "x"], &["--dry-run"]]
    {
        assert!(parse(words).is_err(), "{words:?}");
    }
}
