//! Tests the layering of the crate: which module may import which, by the `use` lines and paths in the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, Meta, UseTree};

/// A module's path below the crate, for example `["judge", "gates"]`.
type Module = Vec<String>;

/// The modules of one crate, each with its source text.
#[derive(Clone, Default)]
struct Crate {
    sources: BTreeMap<Module, String>,
}

impl Crate {
    /// Reads every `.rs` file below `source`, except `main.rs` and files of tests.
    fn read(source: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let mut found = Self::default();
        found.add(&root, &root);
        assert!(found.sources.len() > 5, "{source} has only {} files", found.sources.len());
        found
    }

    fn add(&mut self, root: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.add(root, &path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let names = path.strip_prefix(root).unwrap().with_extension("");
            let mut module: Module = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            if ["mod", "lib"].contains(&module.last().unwrap().as_str()) {
                module.pop();
            }
            if module == ["main"] || module.iter().any(|name| name == "tests") {
                continue;
            }
            self.sources.insert(module, fs::read_to_string(&path).unwrap());
        }
    }

    /// The modules that each module refers to, without itself.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let of = |(module, text): (_, &String)| {
            let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{module:?}: {error}"));
            let mut paths = Paths::default();
            paths.visit_file(&file);
            let named = paths.found.iter().filter_map(|path| self.resolve(module, path));
            (module, named.filter(|other| *other != module).collect())
        };
        self.sources.iter().map(of).collect()
    }

    /// The module that a path used in `module` refers to; `None` if it is outside the crate.
    fn resolve(&self, module: &Module, path: &[String]) -> Option<&Module> {
        let mut names = path.iter().map(String::as_str).peekable();
        let mut at: Module = match names.peek().copied()? {
            "crate" => {
                names.next();
                Vec::new()
            }
            "self" => {
                names.next();
                module.clone()
            }
            "super" => {
                let mut at = module.clone();
                while names.peek() == Some(&"super") {
                    names.next();
                    at.pop();
                }
                at
            }
            child => {
                let is_child = self.sources.contains_key(&joined(module, child));
                if !is_child {
                    return None;
                }
                module.clone()
            }
        };
        for name in names {
            let inner = joined(&at, name);
            if !self.sources.contains_key(&inner) {
                break;
            }
            at = inner;
        }
        self.sources.get_key_value(&at).map(|(known, _)| known)
    }

    /// Imports from a later module of `order` into an earlier one.
    fn upward(&self, order: &[String]) -> Vec<String> {
        let rank = |module: &Module| {
            let name = module.first()?;
            Some(
                order
                    .iter()
                    .position(|known| known == name)
                    .unwrap_or_else(|| panic!("{name} is in no layer")),
            )
        };
        let mut found = Vec::new();
        for (module, imports) in self.imports() {
            for import in imports {
                if rank(module).zip(rank(import)).is_some_and(|(from, to)| to > from) {
                    found.push(format!("{} imports {}", module.join("/"), import.join("/")));
                }
            }
        }
        found
    }

    /// Files that import each other, directly or through other files. Imports between a module and its own children are
    /// ignored.
    fn circles(&self) -> Vec<String> {
        let is_parent = |one: &Module, other: &Module| one.starts_with(other) || other.starts_with(one);
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, imports) in self.imports() {
            let others = imports.into_iter().filter(|import| !is_parent(module, import));
            graph.insert(module.join("/"), others.map(|import| import.join("/")).collect());
        }
        on_circles(&graph)
    }

    /// Modules of one folder that import each other, including imports by the files inside them.
    fn circles_of_folders(&self) -> Vec<String> {
        let mut folders: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (module, imports) in self.imports() {
            for import in imports {
                let common = module.iter().zip(import).take_while(|(one, other)| one == other).count();
                if let (Some(from), Some(to)) = (module.get(common), import.get(common)) {
                    let folder = folders.entry(module[..common].to_vec()).or_default();
                    folder.entry(from.clone()).or_default().insert(to.clone());
                }
            }
        }
        let named = |(folder, graph): (&Module, _)| {
            on_circles(graph).into_iter().map(|name| joined(folder, &name).join("/")).collect::<Vec<_>>()
        };
        folders.iter().flat_map(named).collect()
    }

    /// A copy of the crate with `text` appended to a module.
    fn with(&self, module: &[&str], text: &str) -> Self {
        let mut planted = self.clone();
        let module: Module = module.iter().map(|name| (*name).to_owned()).collect();
        planted.sources.get_mut(&module).unwrap().push_str(text);
        planted
    }
}

/// The nodes that lie on a cycle of the graph.
fn on_circles(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for name in graph.keys() {
        let (mut reached, mut open) = (BTreeSet::new(), vec![name]);
        while let Some(next) = open.pop() {
            open.extend(graph.get(next).into_iter().flatten().filter(|to| reached.insert(*to)));
        }
        if reached.contains(name) {
            found.push(name.clone());
        }
    }
    found
}

fn joined(module: &[String], name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

/// Every path that a file uses outside its tests.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
}

impl Paths {
    fn add_tree(&mut self, prefix: &[String], tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.add_tree(&joined(prefix, &path.ident.to_string()), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(prefix, tree)),
            UseTree::Name(name) => self.found.push(joined(prefix, &name.ident.to_string())),
            UseTree::Rename(name) => self.found.push(joined(prefix, &name.ident.to_string())),
            UseTree::Glob(_) => self.found.push(prefix.to_vec()),
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.found.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// The modules of `src/lib.rs`, in its order.
fn layers() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    text.lines().filter_map(name).collect()
}

#[test]
fn lib_lists_the_layers_in_their_import_order() {
    let folders = ["spec", "execute", "results", "judge", "hunt", "report", "commands"];
    assert_eq!(layers(), [&folders[..], &["cli", "app", "fuzzing"]].concat());
}

#[test]
fn each_layer_imports_only_those_before_it() {
    let upward = Crate::read("src").upward(&layers());
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn no_two_files_import_each_other() {
    for source in ["src", "models/src", "compare/src", "reference/src", "reference/bridge/src"] {
        let circles = Crate::read(source).circles();
        assert!(circles.is_empty(), "{source}: {circles:#?}");
    }
}

#[test]
fn no_two_folders_of_src_import_each_other() {
    let circles = Crate::read("src").circles_of_folders();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_planted_upward_import_is_found() {
    let source = Crate::read("src");
    for planted in [
        "use crate::commands::run;",
        "use crate::{report::{self, html::Html}, results::Case};",
        "fn planted() { crate::hunt::localize::localize(request); }",
        "use super::super::report;",
    ] {
        let upward = source.with(&["judge", "gates"], planted).upward(&layers());
        assert!(!upward.is_empty(), "{planted}");
        let is_planted = |found: &String| found.starts_with("judge/gates imports ");
        assert!(upward.iter().all(is_planted), "{planted}: {upward:?}");
    }
    let in_a_test = "#[cfg(test)] mod planted { use crate::commands::run; }";
    assert!(source.with(&["judge", "gates"], in_a_test).upward(&layers()).is_empty());
}

#[test]
fn a_planted_circle_is_found() {
    let source = Crate::read("src");
    let planted = source.with(&["judge", "view"], "use super::gates;");
    for circles in [planted.circles(), planted.circles_of_folders()] {
        assert!(circles.contains(&"judge/view".to_owned()) && circles.contains(&"judge/gates".to_owned()));
    }
}
