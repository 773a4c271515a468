//! Every task and thread has an owner, and every poisoned lock is treated alike ("Rules" and "Style" in
//! `CONTRIBUTING.md`). The test reads the source outside tests.

mod source;

use std::collections::BTreeSet;

use source::{Sources, program, rust_files};

/// The folders of the programs' crates, and the folder of their libraries.
const ROOMS: [&str; 6] = ["infra", "controller", "node", "driver", "ccm", "lib"];

/// What starts a task or a thread without `serving::Tasks`, or counts tasks that do.
const STARTS: [&str; 8] = [
    "tokio::spawn",
    "task::spawn",
    "spawn_local",
    "spawn_blocking",
    "JoinSet",
    "TaskTracker",
    "thread::spawn",
    "thread::Builder",
];

/// Where one of them may stand, and why no panic is lost there.
const STARTED_HERE: [(&str, &str, &str); 9] = [
    (
        "lib/secure-serving/src/connections.rs",
        "TaskTracker",
        "one connection, which ends in time; no client may end the process",
    ),
    (
        "lib/secure-serving/src/tls.rs",
        "tokio::spawn",
        "one handshake, which ends in time; no client may end the process",
    ),
    (
        "controller/src/vm_queue.rs",
        "TaskTracker",
        "starts nothing: takes tokens for calls that the stop must wait for",
    ),
    ("lib/csi-call/src/operation.rs", "TaskTracker", "one operation: its caller gets the panic as an error"),
    ("lib/serving/src/rpc.rs", "TaskTracker", "starts nothing: takes tokens for RPCs in flight"),
    ("lib/serving/src/shutdown.rs", "TaskTracker", "counts the parts, which the owner supervises"),
    ("lib/serving/src/tasks.rs", "TaskTracker", "the owner"),
    (
        "node/src/linux/command.rs",
        "thread::Builder",
        "one child process: its caller gets the panic as an error",
    ),
    ("node/src/pool.rs", "thread::Builder", "one job: its caller gets the panic as an error"),
];

/// Other ways to take a poisoned lock.
const POISON_SPREADS: [&str; 6] = [
    ".lock().unwrap()",
    ".lock().expect(",
    ".read().unwrap()",
    ".read().expect(",
    ".write().unwrap()",
    ".write().expect(",
];

/// Path in the repository → program, without what is there for tests.
fn sources() -> Sources {
    let mut found: Sources = ROOMS
        .iter()
        .flat_map(|room| {
            rust_files(room).into_iter().map(move |(path, text)| (format!("{room}/{path}"), text))
        })
        .collect();
    let of_tests: BTreeSet<String> = found
        .iter()
        .flat_map(|(path, text)| test_modules(text).map(move |name| beside(path, name)))
        .collect();
    found.retain(|path, _| path.contains("/src/") && !of_tests.contains(path));
    for text in found.values_mut() {
        *text = program(text);
    }
    assert!(found.len() > 100, "the source is read: {:?}", found.keys());
    found
}

/// The modules that a file declares for tests only.
fn test_modules(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[cfg(test)]\n").skip(1).filter_map(|after| {
        let (declaration, _) = after.split_once('\n')?;
        Some(declaration.strip_suffix(';')?.rsplit_once("mod ")?.1)
    })
}

/// The file of a module that the file at `path` declares.
fn beside(path: &str, module: &str) -> String {
    let folder = path.strip_suffix(".rs").unwrap_or(path);
    let folder = folder.strip_suffix("/lib").or_else(|| folder.strip_suffix("/main")).unwrap_or(folder);
    format!("{folder}/{module}.rs")
}

/// The text without white space: a call may be broken into lines.
fn joined(text: &str) -> String {
    text.split_whitespace().collect()
}

/// Which of `words` stand in which file.
fn places<'a>(sources: &'a Sources, words: &[&'static str]) -> BTreeSet<(&'a str, &'static str)> {
    let found = sources.iter().map(|(path, text)| (path.as_str(), joined(text)));
    found
        .flat_map(|(path, text)| {
            words.iter().filter(move |word| text.contains(**word)).map(move |word| (path, *word))
        })
        .collect()
}

#[test]
fn tasks_and_threads_start_only_where_no_panic_is_lost() {
    let sources = sources();
    let allowed: BTreeSet<_> = STARTED_HERE.iter().map(|(path, word, _)| (*path, *word)).collect();
    let found = places(&sources, &STARTS);
    let strange: Vec<_> = found.difference(&allowed).collect();
    assert!(strange.is_empty(), "start it with serving::Tasks, or list it with its reason: {strange:?}");
    let gone: Vec<_> = allowed.difference(&found).collect();
    assert!(gone.is_empty(), "nothing starts there any more: {gone:?}");
}

#[test]
fn a_poisoned_lock_is_used_on() {
    let sources = sources();
    let found = places(&sources, &POISON_SPREADS);
    assert!(found.is_empty(), "lock().unwrap_or_else(PoisonError::into_inner) instead: {found:?}");
}

#[test]
fn what_is_planted_is_found() {
    let planted = "fn f() {\n    x\n        .lock()\n        .expect(\"\");\n    tokio::spawn(y); // thread::spawn\n}\n\
                   #[cfg(test)]\nmod tests {\n    fn g() { JoinSet }\n}\n";
    let sources = Sources::from([("a/src/b.rs".to_owned(), program(planted))]);
    assert_eq!(places(&sources, &STARTS), [("a/src/b.rs", "tokio::spawn")].into());
    assert_eq!(places(&sources, &POISON_SPREADS), [("a/src/b.rs", ".lock().expect(")].into());
    let root = "mod a;\n#[cfg(test)]\nmod model;\n#[cfg(test)]\npub(crate) mod fake;\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(test_modules(root).collect::<Vec<_>>(), ["model", "fake"]);
    let files = ["a/src/lib.rs", "a/src/b.rs"].map(|path| beside(path, "model"));
    assert_eq!(files, ["a/src/model.rs", "a/src/b/model.rs"]);
}
