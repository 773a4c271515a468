//! Go programs, built from the modules that `e2e/go` pins: one `go build` per module, because programs of one module
//! share most of their packages.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::{
    Programs,
    process::{last_lines, run},
    store::{Key, cached},
};
use crate::{paths, report::Progress};

/// How often a running build reports its progress.
const REPORT_EVERY: Duration = Duration::from_secs(20);

/// Programs of one module in `e2e/go` that are built with the same flags.
struct Build {
    module: &'static str,
    /// Name in the bench, package.
    programs: &'static [(&'static str, &'static str)],
    tags: &'static str,
    ldflags: &'static str,
    /// The module whose version is stamped into Kubernetes' version variables, where the programs have them.
    stamp: Option<&'static str>,
    /// What is taken out of modules beside the programs, because the sandbox has no module cache.
    copies: &'static [Copied],
}

/// A file or a flat folder of a module.
struct Copied {
    /// Name in the bench.
    name: &'static str,
    module: &'static str,
    path: &'static str,
}

/// Neither symbol table nor DWARF: half the size, and these programs are not debugged here.
const SMALL: &str = "-s -w";

const BUILDS: &[Build] = &[
    Build {
        module: "kubernetes",
        programs: &[
            ("etcd", "go.etcd.io/etcd/server/v3"),
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ],
        tags: "",
        ldflags: SMALL,
        stamp: Some("k8s.io/kubernetes"),
        copies: &[],
    },
    Build {
        module: "worker",
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
            ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
        ],
        tags: "no_btrfs no_zfs no_devmapper no_aufs no_tracing netgo osusergo",
        ldflags: SMALL,
        stamp: None,
        copies: &[],
    },
    Build {
        module: "kubevirt",
        programs: &[
            ("virt-api", "kubevirt.io/kubevirt/cmd/virt-api"),
            ("virt-controller", "kubevirt.io/kubevirt/cmd/virt-controller"),
            ("kubevirt-objects", "./objects"),
        ],
        tags: "",
        ldflags: SMALL,
        stamp: None,
        copies: &[],
    },
    Build {
        module: "cdi",
        programs: &[
            ("cdi-apiserver", "kubevirt.io/containerized-data-importer/cmd/cdi-apiserver"),
            ("cdi-controller", "kubevirt.io/containerized-data-importer/cmd/cdi-controller"),
            ("cdi-objects", "./objects"),
        ],
        tags: "",
        ldflags: SMALL,
        stamp: None,
        copies: &[],
    },
    Build {
        module: "answerer",
        programs: &[("answerer", "./answerer")],
        tags: "netgo osusergo",
        ldflags: SMALL,
        stamp: None,
        copies: &[],
    },
    Build {
        module: "registrar",
        programs: &[("plugin-registrar", "./plugin-registrar")],
        tags: "",
        ldflags: SMALL,
        stamp: None,
        copies: &[],
    },
    Build {
        module: "sidecars",
        programs: &[
            ("csi-provisioner", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"),
            ("csi-attacher", "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"),
            ("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"),
            ("csi-snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"),
            (
                "snapshot-controller",
                "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
            ),
            ("csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"),
        ],
        tags: "",
        ldflags: SMALL,
        stamp: None,
        copies: SIDECAR_MANIFESTS,
    },
    Build {
        module: "conformance",
        programs: &[
            ("external-storage", "./external-storage"),
            ("agnhost", "./agnhost"),
            ("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
        ],
        tags: "",
        ldflags: SMALL,
        stamp: Some("k8s.io/kubernetes"),
        copies: &[],
    },
];

/// The rights that the sidecars' projects document, and the definitions of snapshots.
const SIDECAR_MANIFESTS: &[Copied] = &[
    Copied { name: "snapshot-definitions", module: SNAPSHOT_CLIENT, path: "config/crd" },
    Copied { name: "csi-provisioner-rights", module: PROVISIONER, path: "deploy/kubernetes/rbac.yaml" },
    Copied { name: "csi-resizer-rights", module: RESIZER, path: "deploy/kubernetes/rbac.yaml" },
    Copied {
        name: "csi-snapshotter-rights",
        module: SNAPSHOTTER,
        path: "deploy/kubernetes/csi-snapshotter/rbac-csi-snapshotter.yaml",
    },
    Copied {
        name: "snapshot-controller-rights",
        module: SNAPSHOTTER,
        path: "deploy/kubernetes/snapshot-controller/rbac-snapshot-controller.yaml",
    },
];

const PROVISIONER: &str = "github.com/kubernetes-csi/external-provisioner/v6";
const RESIZER: &str = "github.com/kubernetes-csi/external-resizer/v2";
const SNAPSHOTTER: &str = "github.com/kubernetes-csi/external-snapshotter/v8";
const SNAPSHOT_CLIENT: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";

/// Modules whose programs go into the worker's image.
const NODE_MODULES: &[&str] = &["kubernetes", "worker"];

/// Builds what isn't in the store.
pub(super) async fn build(progress: &dyn Progress) -> Result<Programs> {
    let all: usize = BUILDS.iter().map(|build| build.programs.len()).sum();
    let mut programs = Programs::default();
    let mut done = 0;
    for build in BUILDS {
        let dir = cached(&folder(build.module), &key(build).await?, async |dir: &Path| {
            let names: Vec<&str> = build.programs.iter().map(|(name, _)| *name).collect();
            let which = format!("{} ({} to {} of {all})", names.join(", "), done + 1, done + names.len());
            progress.step(&format!("building {which}"));
            compile(build, dir, progress).await.with_context(|| format!("build {which}"))
        })
        .await?;
        let names = build.programs.iter().map(|(name, _)| *name);
        for name in names.chain(build.copies.iter().map(|copied| copied.name)) {
            programs.add(name, dir.join(name));
        }
        done += build.programs.len();
    }
    Ok(programs)
}

/// Identifies the programs that the worker's image contains: their folders are named by their keys.
pub(super) fn keys_of_node_programs(programs: &Programs) -> Result<String> {
    let builds = BUILDS.iter().filter(|build| NODE_MODULES.contains(&build.module));
    let folders = builds.map(|build| {
        let path = programs.path(build.programs[0].0)?;
        Ok(path.parent().unwrap_or(path).display().to_string())
    });
    Ok(folders.collect::<Result<Vec<_>>>()?.join("\n"))
}

fn folder(module: &str) -> String {
    format!("go-{module}")
}

fn module_dir(module: &str) -> PathBuf {
    paths::repository().join("e2e/go").join(module)
}

/// Everything the programs depend on: the pinned modules, our own sources beside them, the compiler, the flags.
async fn key(build: &Build) -> Result<String> {
    let dir = module_dir(build.module);
    let version = run(Command::new("go").args(["env", "GOVERSION", "GOARCH"]).current_dir(&dir)).await?;
    let sources = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name == "go.mod" || name == "go.sum" || path.extension().is_some_and(|extension| extension == "go")
    };
    let key = Key::new()
        .tree(&dir, &sources)
        .with_context(|| format!("the Go module {}", dir.display()))?
        .text(&version);
    let packages = build.programs.iter().flat_map(|(name, package)| [*name, *package]);
    let copies = build.copies.iter().flat_map(|copied| [copied.name, copied.module, copied.path]);
    let key = packages.chain(copies).fold(key, Key::text).text(CGO);
    Ok(flags(build)?.iter().fold(key, |key, flag| key.text(flag)).finish())
}

/// The value of `CGO_ENABLED`: no program needs C, so none needs a C library in the worker.
const CGO: &str = "0";

/// `go build`'s flags.
fn flags(build: &Build) -> Result<Vec<String>> {
    let mut ldflags = build.ldflags.to_string();
    if let Some(module) = build.stamp {
        let path = module_dir(build.module).join("go.mod");
        let go_mod = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let version =
            required(&go_mod, module).with_context(|| format!("{} doesn't pin {module}", path.display()))?;
        ldflags += &stamps(version);
    }
    let flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-tags", build.tags, "-ldflags", &ldflags];
    Ok(flags.map(String::from).to_vec())
}

/// The linker's arguments that give Kubernetes' programs their version, as its own release build does; without them nodes
/// report a placeholder.
fn stamps(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let values = [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)];
    let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
    let words = packages.iter().flat_map(|package| {
        values.iter().map(move |(variable, value)| format!(" -X {package}.{variable}={value}"))
    });
    words.collect()
}

/// The version of `module` in a go.mod.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let words = line.trim().strip_prefix("require ").unwrap_or(line.trim());
        words.strip_prefix(module)?.strip_prefix(' ')?.split_whitespace().next()
    })
}

async fn compile(build: &Build, dir: &Path, progress: &dyn Progress) -> Result<()> {
    let mut go = Command::new("go")
        .arg("build")
        .args(flags(build)?)
        .args(["-v", "-o"])
        .arg(format!("{}/", dir.display()))
        .args(build.programs.iter().map(|(_, package)| package))
        .current_dir(module_dir(build.module))
        .env_remove("GOFLAGS")
        .env("CGO_ENABLED", CGO)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start go")?;
    let said = follow(&mut go, build.module, progress).await?;
    if !go.wait().await?.success() {
        bail!("{}\n{}", diagnose(&said), last_lines(&said, 20));
    }
    for (name, package) in build.programs {
        let given = default_name(package);
        if given != *name {
            std::fs::rename(dir.join(given), dir.join(name))
                .with_context(|| format!("rename {given} to {name}"))?;
        }
        ensure!(dir.join(name).is_file(), "go built no {name}");
    }
    for copied in build.copies {
        copy(build, copied, dir).await?;
    }
    Ok(())
}

/// Copies a file or a flat folder out of a module, of the version that go.mod pins.
async fn copy(build: &Build, copied: &Copied, dir: &Path) -> Result<()> {
    let list = ["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", copied.module];
    let module = run(Command::new("go").args(list).current_dir(module_dir(build.module))).await?;
    let (from, to) = (Path::new(module.trim_end()).join(copied.path), dir.join(copied.name));
    let doing = || format!("copy {}", from.display());
    if from.is_file() {
        std::fs::copy(&from, &to).with_context(doing)?;
        return Ok(());
    }
    std::fs::create_dir(&to).with_context(doing)?;
    for entry in std::fs::read_dir(&from).with_context(doing)? {
        let path = entry.with_context(doing)?.path();
        std::fs::copy(&path, to.join(path.file_name().unwrap_or_default())).with_context(doing)?;
    }
    Ok(())
}

/// Reads go's output until it ends, and reports now and then how many packages it has compiled. Returns the other lines.
async fn follow(go: &mut tokio::process::Child, module: &str, progress: &dyn Progress) -> Result<String> {
    let mut lines = BufReader::new(go.stderr.take().context("go has no standard error")?).lines();
    let began = Instant::now();
    let (mut told, mut packages, mut downloads) = (began, 0, 0);
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.context("read the output of go")? {
        if line.starts_with("go: downloading ") {
            downloads += 1;
        } else if line.contains(' ') {
            said += &line;
            said.push('\n');
        } else {
            packages += 1;
        }
        if told.elapsed() >= REPORT_EVERY {
            told = Instant::now();
            let seconds = began.elapsed().as_secs();
            progress.step(&format!(
                "{module}: {downloads} modules downloaded, {packages} packages compiled, {seconds} s"
            ));
        }
    }
    Ok(said)
}

/// The file name that `go build` gives a package's program: its last element that isn't a major version.
fn default_name(package: &str) -> &str {
    let is_version = |element: &str| {
        element
            .strip_prefix('v')
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    package.rsplit('/').find(|element| !is_version(element)).unwrap_or(package)
}

/// What a failed build most likely means, derived from go's output.
fn diagnose(said: &str) -> &'static str {
    let cases = [
        ("SECURITY ERROR", "a module's content is not what go.sum says; do not go on before you know why"),
        ("checksum mismatch", "a module's content is not what go.sum says; do not go on before you know why"),
        ("missing go.sum entry", "e2e/go was changed without `go mod tidy`"),
        ("updates to go.mod needed", "e2e/go was changed without `go mod tidy`"),
        (
            "403 Forbidden",
            "the module proxy refuses a module; ask its operators, or set GOPROXY to another one",
        ),
        ("404 Not Found", "the module proxy doesn't have a module; set GOPROXY to one that does"),
        ("410 Gone", "the module proxy doesn't have a module; set GOPROXY to one that does"),
        (
            "no such host",
            "the module proxy can't be reached; are you offline? once built, programs stay in the store",
        ),
        (
            "connection refused",
            "the module proxy can't be reached; are you offline? once built, programs stay in the store",
        ),
        ("i/o timeout", "the module proxy doesn't answer; try again"),
        ("GOPROXY=off", "GOPROXY forbids downloads; unset it"),
        ("no space left on device", "the disk is full; Go needs about 10 GB for its caches"),
        ("signal: killed", "the compiler or linker was killed, most likely for lack of memory"),
    ];
    cases.iter().find(|(words, _)| said.contains(words)).map_or("go build failed", |(_, meaning)| meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_names_programs_after_their_packages() {
        let names =
            ["go.etcd.io/etcd/server/v3", "./objects", "a.b/c/cmd/virt-api", "a.b/v"].map(default_name);
        assert_eq!(names, ["server", "objects", "virt-api", "v"]);
    }

    #[test]
    fn a_pinned_version_is_read_in_both_forms() {
        let go_mod = "require k8s.io/kubernetes v1.36.3\nrequire (\n\tk8s.io/kubernetes-other v9.0.0\n\ta.b/c v2.0.0 // indirect\n)\n";
        assert_eq!(required(go_mod, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(required(go_mod, "a.b/c"), Some("v2.0.0"));
        assert_eq!(required(go_mod, "a.b/d"), None);
    }

    #[test]
    fn every_program_has_a_name_of_its_own() {
        let programs = BUILDS.iter().flat_map(|build| build.programs).map(|(name, _)| *name);
        let copies = BUILDS.iter().flat_map(|build| build.copies).map(|copied| copied.name);
        let mut names: Vec<&str> = programs.chain(copies).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_refused_module_is_not_called_offline() {
        let said = "reading https://proxy.example/a.b/@v/v1.mod: 403 Forbidden";
        assert!(diagnose(said).contains("refuses"));
        assert!(diagnose("dial tcp: lookup proxy.example: no such host").contains("offline"));
        assert_eq!(diagnose("x.go:1:1: syntax error"), "go build failed");
    }
}
