//! Our own programs, as the repository builds them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::{
    CLOUD_CONTROLLER_MANAGER, DRIVER,
    process::run,
    store::{Key, cached, prune},
};
use crate::{paths, report::Progress};

/// The files of our programs.
#[derive(Clone, Debug)]
pub(super) struct OwnPrograms {
    /// The CSI driver.
    pub driver: PathBuf,
    /// The cloud controller manager.
    pub ccm: PathBuf,
}

/// The programs as they are shipped, from the store where it has them. What they are built from is the key, because cargo compares
/// times: in a fresh checkout all files are new, and it would link for minutes what an earlier checkout has linked.
pub(super) async fn build(progress: &dyn Progress) -> Result<OwnPrograms> {
    let sources = Sources::of_shipped().await?;
    let key = sources.key().await?;
    let dir = cached(STORED, &key, async |dir: &Path| {
        progress.step(&format!("building {}", PROGRAMS.join(", ")));
        let mut cargo = cargo();
        // One selection of packages: with each alone, cargo would build shared dependencies twice, with other features.
        cargo.args(["build", "--locked", "--release", "-p", "driver", "-p", "ccm"]);
        let messages = run(cargo.arg(MESSAGES).current_dir(paths::repository())).await?;
        for name in PROGRAMS {
            let built =
                executable(&messages, name).with_context(|| format!("cargo does not say where {name} is"))?;
            sources.hold_all_of(&built)?;
            std::fs::copy(&built, dir.join(name)).with_context(|| format!("copy {}", built.display()))?;
        }
        Ok(())
    })
    .await?;
    prune(STORED, &dir)?;
    Ok(OwnPrograms { driver: dir.join(DRIVER.program), ccm: dir.join(CLOUD_CONTROLLER_MANAGER.program) })
}

/// Their files' names.
const PROGRAMS: [&str; 2] = [DRIVER.program, CLOUD_CONTROLLER_MANAGER.program];

/// Their folder's name in the store.
const STORED: &str = "own-programs";

/// What the shipped programs are built from: the folders of the workspace's packages that no bench or test is in.
#[derive(Debug)]
struct Sources {
    repository: PathBuf,
    packages: Vec<PathBuf>,
}

impl Sources {
    /// The workspace's default members: all but the bench and its tests.
    async fn of_shipped() -> Result<Self> {
        let repository = paths::repository().canonicalize().context("the repository's path")?;
        let mut cargo = cargo();
        cargo.args(["metadata", "--locked", "--no-deps", "--format-version=1"]);
        let text = run(cargo.current_dir(&repository)).await?;
        let metadata: Metadata = serde_json::from_str(&text).context("parse what cargo metadata prints")?;
        let Metadata { packages, workspace_default_members: shipped } = metadata;
        let packages = packages.into_iter().filter(|package| shipped.contains(&package.id));
        let mut packages = packages
            .map(|package| package.manifest_path.parent().map(Path::to_path_buf))
            .collect::<Option<Vec<_>>>()
            .context("a package in no folder")?;
        packages.sort();
        Ok(Self { repository, packages })
    }

    /// Identifies the sources, the dependencies, the compiler and what its environment tells it.
    async fn key(&self) -> Result<String> {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        // In the repository, because its rust-toolchain.toml chooses the compiler.
        let compiler = run(rustc.arg("-vV").current_dir(&self.repository)).await?;
        let mut key = Key::new().text(&compiler);
        let mut flags: Vec<_> = std::env::vars().filter(|(name, _)| is_of_the_build(name)).collect();
        flags.sort();
        for (name, value) in flags {
            key = key.text(&name).text(&value);
        }
        for name in ["Cargo.toml", "Cargo.lock"] {
            key = key.file(&self.repository.join(name))?;
        }
        let settings = self.repository.join(".cargo/config.toml");
        if settings.exists() {
            key = key.file(&settings)?;
        }
        for package in &self.packages {
            let name =
                package.strip_prefix(&self.repository).context("a package outside of the repository")?;
            key = key.text(&name.to_string_lossy()).tree(package, &|path| !self.is_of_a_test(path))?;
        }
        Ok(key.finish())
    }

    /// Whether the file belongs to an integration test, which no program is built from.
    fn is_of_a_test(&self, path: &Path) -> bool {
        self.packages.iter().any(|package| path.starts_with(package.join("tests")))
    }

    /// Checks that cargo built `program` from nothing else of the repository. It names the files beside the program (The Cargo Book,
    /// "Build Cache", dep-info files).
    fn hold_all_of(&self, program: &Path) -> Result<()> {
        let path = program.with_extension("d");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for file in dependencies(&text) {
            let of_repository = file.starts_with(&self.repository) && file.is_file();
            let held =
                self.packages.iter().any(|package| file.starts_with(package)) && !self.is_of_a_test(&file);
            // What a build script wrote comes from sources that are in the key.
            let generated = file.components().any(|part| part.as_os_str() == "out");
            ensure!(
                !of_repository || held || generated,
                "{} is built from {}, which is no part of the key of the kept programs: add it in {}",
                program.display(),
                file.display(),
                file!()
            );
        }
        Ok(())
    }
}

/// Whether cargo or rustc reads a variable (The Cargo Book, "Environment Variables").
fn is_of_the_build(variable: &str) -> bool {
    const PREFIXES: [&str; 4] = ["CARGO_PROFILE_", "CARGO_BUILD_RUST", "CARGO_ENCODED_", "CARGO_TARGET_"];
    variable == "RUSTFLAGS"
        || (variable != "CARGO_TARGET_DIR" && PREFIXES.iter().any(|prefix| variable.starts_with(prefix)))
}

/// The files of a dep-info file: one rule, in which a space of a name is escaped.
fn dependencies(rule: &str) -> Vec<PathBuf> {
    const ESCAPED: char = '\0';
    let line = rule.lines().next().unwrap_or_default();
    let files = line.split_once(": ").map_or("", |(_, files)| files);
    let files = files.replace("\\ ", &ESCAPED.to_string());
    files.split(' ').filter(|file| !file.is_empty()).map(|file| file.replace(ESCAPED, " ").into()).collect()
}

/// What `cargo metadata` prints, as far as it is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_default_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    manifest_path: PathBuf,
}

/// Builds the end-to-end tests; the program that runs them. `--workspace`, because cargo chooses the features of shared dependencies
/// by the selection of packages.
pub(super) async fn suite(progress: &dyn Progress) -> Result<PathBuf> {
    progress.step("building the end-to-end tests");
    let mut cargo = cargo();
    cargo.args(["test", "--locked", "--workspace", "--test", SUITE, "--no-run"]);
    let messages = run(cargo.arg(MESSAGES).current_dir(paths::repository())).await?;
    executable(&messages, SUITE).context("cargo does not say where the end-to-end tests are")
}

/// The target with the end-to-end tests.
const SUITE: &str = "suite";

/// Makes cargo print a JSON object per finished target.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// cargo's message about one finished target (The Cargo Book, "External tools").
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let mut ours =
        messages.filter(|message| message.target.as_ref().is_some_and(|target| target.name == name));
    ours.find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_named_targets() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"bench"},"executable":"/t/bench"}
{"reason":"compiler-artifact","target":{"name":"driver"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kubevirt-csi-driver"},"executable":"/t/d"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "kubevirt-csi-driver"), Some("/t/d".into()));
        assert_eq!(executable(messages, "driver"), None);
    }

    #[test]
    fn dep_info_names_its_files() {
        let rule = "/t/release/ccm: /r/ccm/src/main.rs /r/a\\ name/src/lib.rs\n\n/r/ccm/src/main.rs:\n";
        assert_eq!(dependencies(rule), ["/r/ccm/src/main.rs", "/r/a name/src/lib.rs"].map(PathBuf::from));
        assert_eq!(dependencies(""), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_source_outside_of_the_key_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let repository = dir.path().canonicalize().expect("its path");
        let write = |path: &str, text: &str| {
            let path = repository.join(path);
            std::fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
            std::fs::write(&path, text).expect("a file");
            path
        };
        let (own, other) = (write("ccm/src/main.rs", ""), write("docs/page.md", ""));
        let test = write("ccm/tests/page.md", "");
        let sources = Sources { packages: vec![repository.join("ccm")], repository: repository.clone() };
        let held = |files: &[&Path]| {
            let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
            write("target/ccm.d", &format!("ccm: {}\n", files.join(" ")));
            sources.hold_all_of(&repository.join("target/ccm"))
        };
        held(&[&own, Path::new("/elsewhere/registry/lib.rs")]).expect("all of it is in the key");
        for outside in [&other, &test] {
            let error = held(&[&own, outside]).expect_err("not in the key").to_string();
            assert!(error.contains(&outside.display().to_string()), "{error}");
        }
    }

    #[test]
    fn the_key_follows_flags_and_not_the_place_of_the_target() {
        for variable in
            ["RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"]
        {
            assert!(is_of_the_build(variable), "{variable}");
        }
        for variable in ["CARGO_TARGET_DIR", "CARGO_HOME", "CARGO_INCREMENTAL", "PATH"] {
            assert!(!is_of_the_build(variable), "{variable}");
        }
    }
}
