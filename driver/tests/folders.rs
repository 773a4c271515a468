//! Inside a crate no two folders import each other, and no files import each other in a circle: what is below can be
//! read, tested and moved without what is above it. The test reads the source: `crate::…` and `super::…` paths outside
//! tests.

mod source;

use std::collections::{BTreeMap, BTreeSet};

use source::{program, rust_files};

/// The path of a module, from the root of its crate.
type Module = Vec<String>;
/// Module → the modules that it names.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// The module that a file of a crate is; the root's is empty.
fn module(path: &str) -> Module {
    match path.strip_suffix(".rs").unwrap_or(path) {
        "lib" | "main" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// The paths that a text names: those that begin with `crate` or `super`.
fn named(module: &Module, text: &str) -> Vec<Module> {
    let mut paths = Vec::new();
    for (keyword, base) in [("crate::", Vec::new()), ("super::", parent(module))] {
        for (start, _) in text.match_indices(keyword) {
            // `super::super::x` is read from its first `super`.
            if !text[..start]
                .ends_with(|before: char| before == ':' || before == '_' || before.is_alphanumeric())
            {
                follow(base.clone(), &text[start + keyword.len()..], &mut paths);
            }
        }
    }
    paths
}

fn parent(module: &Module) -> Module {
    module.split_last().map(|(_, above)| above.to_vec()).unwrap_or_default()
}

/// Reads one path or group at the beginning of `text`; returns what follows it.
fn follow<'a>(mut base: Module, text: &'a str, paths: &mut Vec<Module>) -> &'a str {
    let mut rest = text.trim_start();
    loop {
        if let Some(mut items) = rest.strip_prefix('{') {
            loop {
                items = items.trim_start();
                if let Some(after) = items.strip_prefix('}') {
                    return after;
                }
                if items.is_empty() {
                    return items;
                }
                items = follow(base.clone(), items, paths).trim_start();
                // `as name` and the comma between two items.
                let end = items.find([',', '}']).unwrap_or(items.len());
                items = items[end..].strip_prefix(',').unwrap_or(&items[end..]);
            }
        }
        let end = rest.find(|at: char| at != '_' && !at.is_alphanumeric()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        match word {
            "super" => base = parent(&base),
            "self" | "" => {}
            word => base.push(word.to_owned()),
        }
        match after.strip_prefix("::") {
            Some(next) if !word.is_empty() => rest = next,
            _ => {
                paths.push(base);
                return after;
            }
        }
    }
}

/// Which module names which. Parents and children of one another are left out: a folder's file and the files in it are
/// one.
fn graph(files: &BTreeMap<Module, String>) -> Graph {
    let mut graph = Graph::new();
    for (module, text) in files {
        let edges = graph.entry(module.clone()).or_default();
        for path in named(module, &program(text)) {
            let known = (1..=path.len()).rev().map(|length| path[..length].to_vec());
            if let Some(target) = known.into_iter().find(|module| files.contains_key(module))
                && !target.starts_with(module)
                && !module.starts_with(&target)
            {
                edges.insert(target);
            }
        }
    }
    graph
}

/// The same graph between the folders and files at the root of the crate.
fn folders(graph: &Graph) -> Graph {
    let mut folders = Graph::new();
    for (module, targets) in graph.iter().filter(|(module, _)| !module.is_empty()) {
        let edges = folders.entry(module[..1].to_vec()).or_default();
        edges.extend(
            targets.iter().map(|target| target[..1].to_vec()).filter(|target| target[0] != module[0]),
        );
    }
    folders
}

/// The modules that can reach themselves, in groups that reach each other.
fn circles(graph: &Graph) -> BTreeSet<Vec<String>> {
    let reach = |from: &Module| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = open.pop() {
            for target in graph.get(&module).into_iter().flatten() {
                if seen.insert(target.clone()) {
                    open.push(target.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = graph.keys().map(|module| (module, reach(module))).collect();
    let circles =
        reached.iter().filter(|(module, targets)| targets.contains(**module)).map(|(module, targets)| {
            let back = targets
                .iter()
                .filter(|target| reached.get(target).is_some_and(|seen| seen.contains(*module)));
            back.map(|module| module.join("::")).collect()
        });
    circles.collect()
}

fn read(room: &str) -> BTreeMap<Module, String> {
    let files = rust_files(&format!("{room}/src")).into_iter();
    let found: BTreeMap<Module, String> = files.map(|(path, text)| (module(&path), text)).collect();
    assert!(found.len() > 5, "{room} is read: {:?}", found.keys());
    found
}

fn assert_no_circles(room: &str) {
    let graph = graph(&read(room));
    let folders = circles(&folders(&graph));
    assert!(folders.is_empty(), "folders of {room} import each other: {folders:#?}");
    let files = circles(&graph);
    assert!(files.is_empty(), "files of {room} import each other: {files:#?}");
}

#[test]
fn nothing_in_the_controller_goes_round_in_a_circle() {
    assert_no_circles("controller");
}

#[test]
fn nothing_in_infra_goes_round_in_a_circle() {
    assert_no_circles("infra");
}

#[test]
fn nothing_in_the_node_goes_round_in_a_circle() {
    assert_no_circles("node");
}

#[test]
fn nothing_in_secure_serving_goes_round_in_a_circle() {
    assert_no_circles("lib/secure-serving");
}

#[test]
fn nothing_in_the_ccm_goes_round_in_a_circle() {
    assert_no_circles("ccm");
}

fn planted(files: &[(&str, &str)]) -> Graph {
    graph(&files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect())
}

#[test]
fn a_planted_circle_is_found() {
    let clean = planted(&[
        ("a", "use crate::b::{self, x::Y};"),
        ("b", "mod x; pub use x::Y; #[cfg(test)]\nmod tests { use crate::a::Z; }"),
        ("b/x", "use super::T; // crate::a\nfn f() -> crate::c::U {}"),
        ("c", ""),
    ]);
    assert!(circles(&clean).is_empty() && circles(&folders(&clean)).is_empty(), "{clean:?}");
    let grouped =
        planted(&[("a", "use crate::{c::D,\n    b::{x as z, y}};"), ("b", "fn f(a: &super::a::A) {}")]);
    assert_eq!(circles(&grouped), [vec!["a".to_owned(), "b".to_owned()]].into());
    let (deep, below) = (("a/p", "use crate::b::q::Q;"), ("b/q", "use super::super::c;"));
    let folders_only = planted(&[("a", ""), deep, ("b", ""), below, ("c", "use crate::a;")]);
    assert!(circles(&folders_only).is_empty(), "no file imports itself by a detour");
    assert_eq!(circles(&folders(&folders_only)).len(), 1, "but the folders do");
    let brothers = planted(&[("a", ""), ("a/p", "use super::q::Q;"), ("a/q", "use super::p::P;")]);
    assert_eq!(circles(&brothers), [vec!["a::p".to_owned(), "a::q".to_owned()]].into());
}
