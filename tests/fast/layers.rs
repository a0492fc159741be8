//! Tests the layering of the crates: which module may import which, by the `use` lines and paths in the sources. A name that
//! one module imports from another leads to the module that has the item.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, Meta, UseTree};

/// A module's path below the crate, for example `["judge", "gates"]`.
type Module = Vec<String>;

/// The modules of one crate, each with the paths that it uses.
#[derive(Clone, Default)]
struct Crate {
    sources: BTreeMap<Module, Paths>,
}

impl Crate {
    /// Reads every `.rs` file below `source`, except `main.rs` and files of tests.
    fn read(source: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let mut found = Self::default();
        found.add(&root, &root);
        assert!(!found.sources.is_empty(), "{source} has no file");
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
            self.sources.insert(module, Paths::of(&fs::read_to_string(&path).unwrap()));
        }
    }

    /// The modules that each module refers to, without itself.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let of = |(module, paths): (_, &Paths)| {
            let named = paths.found.iter().flat_map(|path| self.resolve(module, path));
            (module, named.filter(|other| *other != module).collect())
        };
        self.sources.iter().map(of).collect()
    }

    /// The modules that a path used in `module` refers to: that of the item last, and before it those that re-export the
    /// item; none if it is outside the crate.
    fn resolve(&self, module: &Module, path: &[String]) -> Vec<&Module> {
        let mut names = path;
        let mut at: Module = match names.first().map(String::as_str) {
            Some("crate") => {
                names = &names[1..];
                Vec::new()
            }
            Some("self") => {
                names = &names[1..];
                module.clone()
            }
            _ => module.clone(),
        };
        while let Some(("super", rest)) = names.split_first().map(|(name, rest)| (name.as_str(), rest)) {
            at.pop();
            names = rest;
        }
        let is_relative = names.len() == path.len();
        while let Some((name, rest)) = names.split_first() {
            let inner = joined(&at, name);
            if self.sources.contains_key(&inner) {
                (at, names) = (inner, rest);
                continue;
            }
            let Some((here, imported)) = self
                .sources
                .get_key_value(&at)
                .and_then(|(here, paths)| Some((here, paths.names.get(name)?)))
            else {
                break;
            };
            // `use serde_json;` names a crate.
            if imported.first() == Some(name) {
                break;
            }
            let whole = [imported, rest].concat();
            return [vec![here], self.resolve(&at, &whole)].concat();
        }
        if is_relative && at == *module {
            return Vec::new();
        }
        self.sources.get_key_value(&at).map(|(known, _)| known).into_iter().collect()
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
        planted.sources.get_mut(&module).unwrap().add(text);
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
#[derive(Clone, Default)]
struct Paths {
    found: Vec<Vec<String>>,
    /// What each imported name stands for.
    names: BTreeMap<String, Vec<String>>,
}

impl Paths {
    fn of(text: &str) -> Self {
        let mut paths = Self::default();
        paths.add(text);
        paths
    }

    fn add(&mut self, text: &str) {
        self.visit_file(&syn::parse_file(text).unwrap_or_else(|error| panic!("{error}: {text}")));
    }

    fn add_tree(&mut self, prefix: &[String], tree: &UseTree) {
        let (ident, name) = match tree {
            UseTree::Path(path) => {
                return self.add_tree(&joined(prefix, &path.ident.to_string()), &path.tree);
            }
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.add_tree(prefix, tree)),
            UseTree::Glob(_) => return self.found.push(prefix.to_vec()),
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(name) => (&name.ident, &name.rename),
        };
        let is_module = ident == "self" && !prefix.is_empty();
        let path = if is_module { prefix.to_vec() } else { joined(prefix, &ident.to_string()) };
        let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name.to_string() };
        self.names.insert(name, path.clone());
        self.found.push(path);
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
    let workspace = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let workspace: toml::Table = workspace.parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let folders = members.iter().map(|member| format!("{}/src", member.as_str().unwrap()));
    for source in folders.chain(["fuzz/src".to_owned()]) {
        let circles = Crate::read(&source).circles();
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

#[test]
fn a_planted_circle_through_a_re_export_is_found() {
    let source = Crate::read("src");
    for planted in [
        "use super::Source;",
        "use crate::spec::checkpoint::{Pooling, Source as Written};",
        "use crate::spec::checkpoint; fn planted(_: checkpoint::Source) {}",
        "use crate::spec::config::CheckpointSource;",
    ] {
        let circles = source.with(&["spec", "checkpoint", "error"], planted).circles();
        let both = ["spec/checkpoint/error", "spec/checkpoint/source"];
        assert!(both.iter().all(|name| circles.iter().any(|found| found == name)), "{planted}: {circles:?}");
    }
}
