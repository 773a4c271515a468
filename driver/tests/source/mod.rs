//! The source of the repository as text, for tests on the house itself.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Path from the folder that was read, with `/` → text of the file.
pub type Sources = BTreeMap<String, String>;

/// The folder of the workspace.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files below a folder of the repository, without files and folders named `tests`.
pub fn rust_files(folder: &str) -> Sources {
    let mut found = Sources::new();
    read(&repository().join(folder), "", &mut found);
    found
}

fn read(folder: &Path, above: &str, found: &mut Sources) {
    for entry in fs::read_dir(folder).expect("is a folder") {
        let path = entry.expect("is readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("is a name");
        if matches!(name, "tests" | "tests.rs") {
            continue;
        }
        if path.is_dir() {
            read(&path, &format!("{above}{name}/"), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(format!("{above}{name}"), fs::read_to_string(&path).expect("is text"));
        }
    }
}

/// The program in a file: without comments and without the tests at its end.
pub fn program(text: &str) -> String {
    let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    program.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}
