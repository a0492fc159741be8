//! Tests that the command line accepts every `tfcheck …` command in help, hints, messages and documents.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use syn::visit::{self, Visit};
use tfcheck::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|known| known == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The commands in a text: code spans that begin with `tfcheck`, and the rest of a line after `: tfcheck`.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let spans = line.split('`').skip(1).step_by(2);
        found.extend(spans.filter(|span| span.starts_with("tfcheck ")).map(str::to_owned));
        if let Some((_, command)) = line.split_once(": tfcheck ") {
            found.push(format!("tfcheck {command}"));
        }
    }
    found
}

/// The commands of a Markdown document: also the lines of its code blocks, after a prompt if there is one.
fn of_document(text: &str) -> Vec<String> {
    let (mut prose, mut found, mut is_code) = (String::new(), Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            prose.push_str(line);
            prose.push('\n');
        } else if let Some(shown) =
            Some(line.trim_start().trim_start_matches("$ ")).filter(|l| l.starts_with("tfcheck "))
        {
            // Without a comment, a redirection and what a shell does afterwards.
            let ends = [" #", " > ", " || ", " && "];
            let end = ends.iter().filter_map(|end| shown.find(end)).min().unwrap_or(shown.len());
            found.push(shown[..end].trim_end().to_owned());
        }
    }
    found.extend(commands(&prose));
    found
}

/// Splits a command line into words, as a shell does.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.trim().chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) => words.push(String::new()),
            // Brackets mark an optional part.
            ('[' | ']', None) => {}
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The reason why the command line does not accept a command. A bare name, such as `tfcheck run`, is accepted.
fn problem(command: &str) -> Option<String> {
    let words = words(command);
    let mut known = Cli::command();
    let mut rest = &words[1..];
    while let Some(inner) = rest.first().and_then(|word| known.find_subcommand(word)) {
        known = inner.clone();
        rest = &rest[1..];
    }
    let is_name_alone = rest.is_empty() && words.len() > 1;
    if is_name_alone {
        return None;
    }
    // Help and versions are shown instead of run.
    let refused = Cli::try_parse_from(&words).err().filter(clap::Error::use_stderr);
    refused.map(|error| error.to_string())
}

#[test]
fn every_command_in_the_documents_is_accepted() {
    let mut documents = files(&root().join("docs"), "md");
    documents.extend(["README.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    let mut count = 0;
    for path in documents {
        for command in of_document(&fs::read_to_string(&path).unwrap()) {
            let problem = problem(&command);
            assert!(problem.is_none(), "{}: `{command}`: {}", path.display(), problem.unwrap());
            count += 1;
        }
    }
    assert!(count > 40, "only {count} commands were found");
}

/// The strings of a source file without its tests; each placeholder of a format string becomes one word.
#[derive(Default)]
struct Strings {
    found: Vec<String>,
}

impl Strings {
    fn add(&mut self, text: &str) {
        let mut plain = String::new();
        let mut depth = 0;
        for c in text.chars() {
            match c {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    plain.push('1');
                }
                _ if depth == 0 => plain.push(c),
                _ => {}
            }
        }
        self.found.push(plain);
    }
}

impl<'ast> Visit<'ast> for Strings {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_lit_str(&mut self, literal: &'ast syn::LitStr) {
        self.add(&literal.value());
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.tokens(called.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        match &attribute.meta {
            syn::Meta::List(list) => self.tokens(list.tokens.clone()),
            // Doc comments can be clap's help text; only their code spans are commands.
            syn::Meta::NameValue(value) if value.path.is_ident("doc") => {
                if let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &value.value {
                    let text = text.value();
                    let spans = text.split('`').skip(1).step_by(2);
                    spans.for_each(|span| self.add(&format!("`{span}`")));
                }
            }
            syn::Meta::NameValue(value) => visit::visit_meta_name_value(self, value),
            syn::Meta::Path(_) => {}
        }
    }
}

impl Strings {
    fn tokens(&mut self, tokens: proc_macro2::TokenStream) {
        for token in tokens {
            match token {
                proc_macro2::TokenTree::Group(group) => self.tokens(group.stream()),
                proc_macro2::TokenTree::Literal(literal) => {
                    if let Ok(literal) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                        self.add(&literal.value());
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_command_in_help_hints_and_messages_is_accepted() {
    let mut count = 0;
    for folder in ["src", "port/src", "models/src", "reference/src", "compare/src"] {
        for path in files(&root().join(folder), "rs") {
            if path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs") {
                continue;
            }
            let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
            let mut strings = Strings::default();
            strings.visit_file(&file);
            for command in strings.found.iter().flat_map(|text| commands(text)) {
                let problem = problem(&command);
                assert!(problem.is_none(), "{}: `{command}`: {}", path.display(), problem.unwrap());
                count += 1;
            }
        }
    }
    assert!(count > 10, "only {count} commands were found");
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    let found = of_document(
        "list with `tfcheck models`, then\ntfcheck does it\n```sh\n$ tfcheck run --resum x  # a typing error\n```\n",
    );
    assert_eq!(found, ["tfcheck run --resum x", "tfcheck models"]);
    assert!(found.iter().all(|command| problem(command).is_some()));
    assert_eq!(commands("try: tfcheck plan"), ["tfcheck plan"]);
    assert!(problem("tfcheck plan").is_none());
    assert!(problem("tfcheck localize --run r 'a in one pass' a").is_none());
    assert!(problem("tfcheck bisect --good 1").is_some(), "it needs --bad");
}
