//! Documents refer only to what exists: files and folders of the repository, links, headings, and numbers of decisions.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Documents at the top of the repository; the test finds those in `docs`.
const TOP_DOCUMENTS: [&str; 5] =
    ["README.md", "CONTRIBUTING.md", "GLOSSARY.md", "CHANGELOG.md", "SECURITY.md"];
/// Folders at the top that a build makes.
const BUILT: [&str; 2] = ["target", ".git"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.expect("the folder can be read").path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}

/// Path and text of every document.
fn documents() -> Vec<(PathBuf, String)> {
    let root = repository();
    let top = TOP_DOCUMENTS.iter().map(|name| root.join(name));
    let pages = files_below(&root.join("docs")).into_iter();
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    top.chain(pages)
        .map(|path| {
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, text)
        })
        .collect()
}

/// The text without its code blocks.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Link texts and targets: `[text](target)`.
fn links(prose: &str) -> Vec<(&str, &str)> {
    let ends = prose.match_indices("](");
    ends.filter_map(|(at, _)| {
        let text = prose[..at].rsplit('[').next()?;
        let target = prose[at + 2..].split(')').next()?;
        Some((text, target))
    })
    .collect()
}

/// The anchors of a page, as GitHub makes them from its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|heading| {
            let words = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn each_link_leads_to_a_page_and_a_heading() {
    for (page, text) in documents() {
        for (words, target) in links(&prose(&text)) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let found = if file.is_empty() { page.clone() } else { page.with_file_name("").join(file) };
            assert!(found.exists(), "{}: [{words}]({target}) leads nowhere", page.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&found).expect("a page");
                assert!(anchors(&text).contains(anchor), "{}: no heading #{anchor}", page.display());
            }
        }
    }
}

#[test]
fn each_decision_is_cited_by_its_number() {
    for (page, text) in documents() {
        for (words, target) in links(&prose(&text)) {
            let words = words.to_lowercase().replace(['\n', ' '], "");
            let Some(cited) = words.strip_prefix("decision").and_then(|number| number.parse::<usize>().ok())
            else {
                continue;
            };
            let name = target.rsplit('/').next().unwrap_or_default();
            let is_it = name.starts_with(&format!("{cited:04}-"));
            assert!(is_it, "{}: decision {cited} is linked to {name}", page.display());
        }
    }
}

#[test]
fn the_index_of_decisions_has_each_with_its_title() {
    let folder = repository().join("docs/decisions");
    let index = fs::read_to_string(folder.join("README.md")).expect("the index");
    for path in files_below(&folder) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        if name == "README.md" {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a decision");
        let heading = text.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a heading");
        let (number, title) = heading.split_once(". ").expect("a number");
        let number: usize = number.parse().expect("a number");
        assert!(name.starts_with(&format!("{number:04}-")), "{name} has number {number}");
        let row = format!("| [{number:04}]({name}) | {title} |");
        assert!(index.contains(&row), "the index lacks: {row}");
    }
}

/// Pages whose tables name the test of each promise.
const PROMISES: [&str; 3] =
    ["docs/explanation/data-safety.md", "docs/explanation/field-reports.md", "docs/explanation/security.md"];

#[test]
fn each_test_that_shows_a_promise_exists() {
    let rust = files_below_rooms(&["ccm", "controller", "driver", "e2e/tests", "infra", "lib", "node"]);
    let sources: String =
        rust.iter().map(|path| fs::read_to_string(path).expect("a source")).collect::<Vec<_>>().join("\n");
    for page in PROMISES {
        let text = fs::read_to_string(repository().join(page)).expect("a page");
        let rows = text.lines().filter(|line| line.starts_with("| "));
        let tests: Vec<&str> = rows
            .flat_map(|row| row.split('`').skip(1).step_by(2))
            .filter(|quoted| quoted.contains("::") && !quoted.contains(' '))
            .filter_map(|quoted| quoted.rsplit("::").next())
            .collect();
        assert!(tests.len() > 5, "{page}: the tests are read: {tests:?}");
        // A page may cut a name: `attach::a_volume…`.
        let is_there = |test: &str| match test.strip_suffix('…') {
            Some(begin) => sources.contains(&format!("fn {begin}")),
            None => sources.contains(&format!("fn {test}(")),
        };
        let lost: Vec<_> = tests.iter().filter(|test| !is_there(test)).collect();
        assert!(lost.is_empty(), "{page} names tests that do not exist: {lost:?}");
    }
}

/// The Rust files below these folders of the repository.
fn files_below_rooms(rooms: &[&str]) -> Vec<PathBuf> {
    let all = rooms.iter().flat_map(|room| files_below(&repository().join(room)));
    all.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn each_path_in_the_documents_exists() {
    let root = repository();
    let top: BTreeSet<String> = fs::read_dir(&root)
        .expect("the repository")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !BUILT.contains(&name.as_str()))
        .collect();
    let mut checked = 0;
    for (page, text) in documents() {
        let prose = prose(&text);
        for quoted in prose.split('`').skip(1).step_by(2) {
            let is_path = quoted.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
            let first = quoted.split('/').next().unwrap_or_default();
            if is_path && quoted.contains('/') && top.contains(first) {
                checked += 1;
                assert!(root.join(quoted).exists(), "{}: `{quoted}` does not exist", page.display());
            }
        }
    }
    assert!(checked > 20, "paths are found: {checked}");
}
