//! Container images without a registry or a container tool: docker-archive tars, written by hand (Docker
//! Image Specification v1.2, "Combined Image JSON + Filesystem Changeset Format").

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

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
    write(busybox_layer(program, &[]).await?, BUSYBOX, &shell(), archive)
}

/// What the images of Kubernetes' storage tests are made of.
pub(super) struct StorageTests<'a> {
    /// A static busybox.
    pub(super) busybox: &'a Path,
    /// The `dd` of coreutils: busybox's has no `nocache`.
    pub(super) dd: &'a Path,
    /// What `dd` loads, and where.
    pub(super) libraries: &'a [(PathBuf, String)],
    /// The static program.
    pub(super) agnhost: &'a Path,
}

/// Writes the images of the pods of Kubernetes' storage tests into one archive. `names` has the name that each of them has in the
/// tests: of `agnhost`, which finds itself at the root, and of others, whose pods only call a shell.
pub(super) async fn storage_tests(
    parts: &StorageTests<'_>,
    names: &BTreeMap<&str, &str>,
    archive: &Path,
) -> Result<()> {
    let mut tools = busybox_layer(parts.busybox, &["dd"]).await?;
    tools.file("bin/dd", &read(parts.dd)?, 0o755)?;
    for (library, place) in parts.libraries {
        tools.file(place, &read(library)?, 0o755)?;
    }
    let mut program = Layer::default();
    program.file("agnhost", &read(parts.agnhost)?, 0o755)?;
    let (tools, program) = (tools.finish()?, program.finish()?);
    let agnhost = *names.get(AGNHOST).context("the tests name no agnhost")?;
    let others = names.iter().filter(|(name, _)| **name != AGNHOST).map(|(_, reference)| *reference);
    let with_entry = json!({"Env": ["PATH=/bin:/"], "Entrypoint": ["/agnhost"], "Cmd": ["pause"]});
    let images = [
        Image { references: others.collect(), layers: vec![&tools], config: &shell() },
        Image { references: vec![agnhost], layers: vec![&tools, &program], config: &with_entry },
    ];
    write_all(&images, archive)
}

/// An image of [`storage_tests`] by its name in the tests.
const AGNHOST: &str = "agnhost";

/// The configuration of an image whose pods call a shell.
fn shell() -> serde_json::Value {
    json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]})
}

/// A shell and the usual tools, but not `without`.
async fn busybox_layer(program: &Path, without: &[&str]) -> Result<Layer> {
    let applets = run(Command::new(program).arg("--list")).await?;
    let mut layer = Layer::default();
    for folder in ["bin", "etc", "tmp", "mnt", "root"] {
        layer.folder(folder)?;
    }
    layer.file("bin/busybox", &read(program)?, 0o755)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox" && !without.contains(applet)) {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        0o644,
    )?;
    layer.file("etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644)?;
    Ok(layer)
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

    fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("finish a tar")
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

/// An image of an archive.
struct Image<'a> {
    references: Vec<&'a str>,
    /// The lowest first.
    layers: Vec<&'a [u8]>,
    config: &'a serde_json::Value,
}

/// An archive of one image of one layer.
fn write(layer: Layer, reference: &str, config: &serde_json::Value, archive: &Path) -> Result<()> {
    let layer = layer.finish()?;
    write_all(&[Image { references: vec![reference], layers: vec![&layer], config }], archive)
}

/// The archive: configurations and layers, each under its digest, and the manifest that names them.
fn write_all(images: &[Image<'_>], archive: &Path) -> Result<()> {
    let mut manifest = Vec::new();
    let mut content = BTreeMap::new();
    for image in images {
        let digests: Vec<String> = image.layers.iter().map(|layer| digest(layer)).collect();
        let names: Vec<String> = digests.iter().map(|digest| format!("{digest}.tar")).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": image.config,
            "rootfs": {
                "type": "layers",
                "diff_ids": digests.iter().map(|digest| format!("sha256:{digest}")).collect::<Vec<_>>(),
            },
            "history": vec![json!({"created_by": "kubevirt-bench"}); digests.len()],
        }))?;
        let config_name = format!("{}.json", digest(&config));
        manifest.push(json!({"Config": config_name, "RepoTags": image.references, "Layers": names}));
        content.insert(config_name, config);
        content.extend(names.into_iter().zip(image.layers.iter().map(|layer| layer.to_vec())));
    }
    let mut files = Layer::default();
    for (name, bytes) in content {
        files.file(&name, &bytes, 0o644)?;
    }
    files.file("manifest.json", &serde_json::to_vec(&manifest)?, 0o644)?;
    let tar = files.finish()?;
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
    use std::io::Read;

    use super::*;

    #[test]
    fn the_manifest_names_what_the_archive_holds() {
        let dir = tempfile::tempdir().expect("a folder");
        let (program, archive) = (dir.path().join("p"), dir.path().join("a.tar"));
        std::fs::write(&program, "elf").expect("written");
        pause(&program, &archive).expect("an archive");

        let files = files(&archive);
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"][0], PAUSE);
        check_layers(&files, &manifest[0]);
    }

    #[test]
    fn images_of_one_archive_share_their_layers() {
        let dir = tempfile::tempdir().expect("a folder");
        let archive = dir.path().join("a.tar");
        let images = [
            Image { references: vec!["a:1", "b:1"], layers: vec![&b"low"[..]], config: &json!({}) },
            Image { references: vec!["c:1"], layers: vec![&b"low"[..], &b"high"[..]], config: &json!({}) },
        ];
        write_all(&images, &archive).expect("an archive");

        let files = files(&archive);
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"], json!(["a:1", "b:1"]));
        assert_eq!(manifest[0]["Layers"][0], manifest[1]["Layers"][0]);
        for image in [&manifest[0], &manifest[1]] {
            check_layers(&files, image);
        }
        assert_eq!(files.len(), 5, "two configurations, two layers, the manifest: {:?}", files.keys());
    }

    /// Each layer that the manifest names has the digest that the configuration names.
    fn check_layers(files: &BTreeMap<String, Vec<u8>>, image: &serde_json::Value) {
        let config = &files[image["Config"].as_str().expect("a name")];
        let config: serde_json::Value = serde_json::from_slice(config).expect("JSON");
        let layers = image["Layers"].as_array().expect("layers");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(layers.len()));
        for (index, layer) in layers.iter().enumerate() {
            let layer = &files[layer.as_str().expect("a name")];
            assert_eq!(config["rootfs"]["diff_ids"][index], format!("sha256:{}", digest(layer)));
        }
    }

    fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut tar = tar::Archive::new(std::fs::File::open(archive).expect("the archive"));
        for entry in tar.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            files.insert(name, content);
        }
        files
    }
}
