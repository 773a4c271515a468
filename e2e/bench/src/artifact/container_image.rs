//! Container images without a registry or a container tool: docker-archive tars of one layer, written by hand (Docker
//! Image Specification v1.2, "Combined Image JSON + Filesystem Changeset Format").

use std::{io::Write, path::Path};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tokio::process::Command;

use super::process::run;

/// The image of test pods: a shell and the usual tools.
const BUSYBOX: &str = "bench.local/busybox:1";

/// The stand-in of node-driver-registrar; `e2e/installation/` puts it into the manifests.
const REGISTRAR: &str = "bench.local/csi-node-driver-registrar:bench";

/// The image of pods behind Services.
pub const ANSWERER: &str = "bench.local/answerer:1";

/// The sandbox image (`guest/containerd.toml` names it).
const PAUSE: &str = "bench.local/pause:1";

/// Writes the busybox image from a static busybox.
pub(super) async fn busybox(program: &Path, archive: &Path) -> Result<()> {
    let applets = run(Command::new(program).arg("--list")).await?;
    let mut layer = Layer::default();
    for folder in ["bin", "etc", "tmp", "mnt", "root"] {
        layer.folder(folder)?;
    }
    layer.file("bin/busybox", &read(program)?, 0o755)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        0o644,
    )?;
    layer.file("etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644)?;
    write(layer, BUSYBOX, &json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}), archive)
}

/// Writes the registrar's image from the static program.
pub(super) fn registrar(program: &Path, archive: &Path) -> Result<()> {
    let mut layer = Layer::default();
    layer.file("csi-node-driver-registrar", &read(program)?, 0o755)?;
    write(layer, REGISTRAR, &json!({"Entrypoint": ["/csi-node-driver-registrar"]}), archive)
}

/// Writes the answerer's image from the static program.
pub(super) fn answerer(program: &Path, archive: &Path) -> Result<()> {
    let mut layer = Layer::default();
    layer.file("answerer", &read(program)?, 0o755)?;
    write(layer, ANSWERER, &json!({"Entrypoint": ["/answerer"]}), archive)
}

/// Writes the pause image.
pub(super) fn pause(program: &Path, archive: &Path) -> Result<()> {
    let mut layer = Layer::default();
    layer.file("pause", &read(program)?, 0o755)?;
    write(layer, PAUSE, &json!({"Entrypoint": ["/pause"]}), archive)
}

/// A layer's tar; no times and no owners in it, so that the same files give the same image.
struct Layer(Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Layer {
    fn folder(&mut self, path: &str) -> Result<()> {
        let mode = if path == "tmp" { 0o1777 } else { 0o755 };
        let mut header = header(EntryType::Directory, 0, mode);
        self.0
            .append_data(&mut header, format!("{path}/"), std::io::empty())
            .with_context(|| format!("add {path}"))
    }

    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let mut header = header(EntryType::Regular, content.len() as u64, mode);
        self.0.append_data(&mut header, path, content).with_context(|| format!("add {path}"))
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0, 0o777);
        self.0.append_link(&mut header, path, target).with_context(|| format!("add {path}"))
    }
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The archive: the configuration under its digest, the layer, and the manifest that names both.
fn write(layer: Layer, reference: &str, config: &serde_json::Value, archive: &Path) -> Result<()> {
    let layer = layer.0.into_inner().context("finish the layer")?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
        "history": [{"created_by": "kubevirt-bench"}],
    }))?;
    let config_name = format!("{}.json", digest(&config));
    let manifest = json!([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]);
    let mut files = Layer::default();
    files.file(&config_name, &config, 0o644)?;
    files.file("layer.tar", &layer, 0o644)?;
    files.file("manifest.json", &serde_json::to_vec(&manifest)?, 0o644)?;
    let tar = files.0.into_inner().context("finish the archive")?;
    let mut file = std::fs::File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    file.write_all(&tar).with_context(|| format!("write {}", archive.display()))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    #[test]
    fn the_manifest_names_what_the_archive_holds() {
        let dir = tempfile::tempdir().expect("a folder");
        let (program, archive) = (dir.path().join("p"), dir.path().join("a.tar"));
        std::fs::write(&program, "elf").expect("written");
        pause(&program, &archive).expect("an archive");

        let mut files = BTreeMap::new();
        let mut tar = tar::Archive::new(std::fs::File::open(&archive).expect("the archive"));
        for entry in tar.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            files.insert(name, content);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"][0], PAUSE);
        let config = &files[manifest[0]["Config"].as_str().expect("a name")];
        let config: serde_json::Value = serde_json::from_slice(config).expect("JSON");
        let layer = &files[manifest[0]["Layers"][0].as_str().expect("a name")];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(layer)));
    }
}
