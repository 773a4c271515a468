//! The volumes of a program's pod: folders that hold what its Secrets, `ConfigMap`s, tokens and fields say, kept up to date.
//!
//! They lie in the sandbox's own tmpfs, so no secret reaches a disk. A file changes by rename, so a reader sees the old
//! content or the new. All can read them; modes are not modelled. Other than a kubelet, which links whole sets of files at once, each file changes by itself.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{
        DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccount, ServiceAccountTokenProjection, Volume,
        VolumeProjection,
    },
};
use kube::{Api, Client, ResourceExt, api::PostParams};

use super::{
    environment::pod_field,
    sources::{Data, SourceNames, Sources},
};

/// A real kubelet updates volumes about once a minute; tests need not wait that long.
const REFRESH_PERIOD: Duration = Duration::from_secs(5);
/// A kubelet asks for a new token when so much of the old one's time is over, in percent (`token_manager.go`).
const TOKEN_RENEWAL_PERCENT: i64 = 80;
/// The time that a token gets when its volume does not say.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Files by path inside their volume.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A pod's volumes.
pub(super) struct Volumes {
    client: Client,
    pod: Pod,
    folder: PathBuf,
    wanted: SourceNames,
    tokens: BTreeMap<(String, PathBuf), Token>,
    written: BTreeMap<String, Files>,
}

struct Token {
    text: String,
    renewal: Timestamp,
}

impl Volumes {
    /// The volumes of `pod` below `folder`.
    pub(super) fn new(client: Client, pod: &Pod, folder: PathBuf) -> Self {
        let wanted = SourceNames::of_volumes(volumes_of(pod));
        Self { client, pod: pod.clone(), folder, wanted, tokens: BTreeMap::new(), written: BTreeMap::new() }
    }

    /// Where the volume of that name lies.
    pub(super) fn path(folder: &Path, volume: &str) -> PathBuf {
        folder.join(volume)
    }

    /// Brings all volumes up to date.
    ///
    /// # Errors
    /// When an object that is not optional is missing (the text is kubelet's), or the volume is of a kind that is not served.
    pub(super) async fn bring_up(&mut self) -> Result<()> {
        let sources = self.wanted.read(&self.client, &self.pod).await?;
        for volume in volumes_of(&self.pod.clone()) {
            let doing = || format!("MountVolume.SetUp failed for volume \"{}\"", volume.name);
            self.renew_tokens(volume).await.with_context(doing)?;
            let folder = Self::path(&self.folder, &volume.name);
            std::fs::create_dir_all(&folder).with_context(doing)?;
            if volume.empty_dir.is_some() {
                // As kubelet makes them: the container's user is not known to the volume.
                std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).with_context(doing)?;
                continue;
            }
            let files = self.files(volume, &sources).with_context(doing)?;
            let before = self.written.get(&volume.name).cloned().unwrap_or_default();
            write(&folder, &before, &files).with_context(doing)?;
            self.written.insert(volume.name.clone(), files);
        }
        Ok(())
    }

    /// Keeps them up to date for ever.
    pub(super) async fn keep(mut self) {
        loop {
            tokio::time::sleep(REFRESH_PERIOD).await;
            if let Err(error) = self.bring_up().await {
                tracing::warn!(pod = self.pod.name_any(), "{error:#}; its volumes stay as they are");
            }
        }
    }

    fn files(&self, volume: &Volume, sources: &Sources) -> Result<Files> {
        if let Some(map) = &volume.config_map {
            return keys("configmap", &map.name, map.optional, map.items.as_deref(), &sources.config_maps);
        }
        if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            return keys("secret", name, secret.optional, secret.items.as_deref(), &sources.secrets);
        }
        if let Some(downward) = &volume.downward_api {
            return fields(&self.pod, downward.items.as_deref());
        }
        let Some(projected) = &volume.projected else {
            bail!("this kubelet does not serve volumes of its kind")
        };
        let mut files = Files::new();
        for source in projected.sources.iter().flatten() {
            files.extend(self.projection(&volume.name, source, sources)?);
        }
        Ok(files)
    }

    fn projection(&self, volume: &str, source: &VolumeProjection, sources: &Sources) -> Result<Files> {
        if let Some(map) = &source.config_map {
            return keys("configmap", &map.name, map.optional, map.items.as_deref(), &sources.config_maps);
        }
        if let Some(secret) = &source.secret {
            return keys("secret", &secret.name, secret.optional, secret.items.as_deref(), &sources.secrets);
        }
        if let Some(downward) = &source.downward_api {
            return fields(&self.pod, downward.items.as_deref());
        }
        let Some(token) = &source.service_account_token else {
            bail!("this kubelet does not serve such a projection")
        };
        let path = inside(&token.path)?;
        let held =
            self.tokens.get(&(volume.to_owned(), path.clone())).context("its token is not there yet")?;
        Ok(Files::from([(path, held.text.clone().into_bytes())]))
    }

    async fn renew_tokens(&mut self, volume: &Volume) -> Result<()> {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for wanted in sources.filter_map(|source| source.service_account_token.as_ref()) {
            let key = (volume.name.clone(), inside(&wanted.path)?);
            if self.tokens.get(&key).is_none_or(|token| token.renewal <= Timestamp::now()) {
                let token = self.request_token(wanted).await.context("ask for a token")?;
                self.tokens.insert(key, token);
            }
        }
        Ok(())
    }

    /// A token of the pod's service account that dies with the pod.
    async fn request_token(&self, wanted: &ServiceAccountTokenProjection) -> Result<Token> {
        let namespace = self.pod.namespace().unwrap_or_default();
        let account =
            self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        let seconds = wanted.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: wanted.audience.clone().map(|audience| vec![audience]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(self.pod.name_any()),
                    uid: self.pod.uid(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let status = answer.status.context("the answer has no status")?;
        let now = Timestamp::now();
        let end = status.expiration_timestamp.context("the token has no end")?.0;
        let lifetime = end.as_second() - now.as_second();
        let renewal = Timestamp::from_second(now.as_second() + lifetime * TOKEN_RENEWAL_PERCENT / 100)?;
        Ok(Token { text: status.token.context("the answer holds no token")?, renewal })
    }
}

/// The volumes of a pod.
pub(super) fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// The keys of an object as files: all of them under their names, or the listed ones under the listed paths.
fn keys(
    kind: &str,
    name: &str,
    optional: Option<bool>,
    items: Option<&[KeyToPath]>,
    all: &BTreeMap<String, Data>,
) -> Result<Files> {
    let optional = optional == Some(true);
    let Some(data) = all.get(name) else {
        ensure!(optional, "{kind} \"{name}\" not found");
        return Ok(Files::new());
    };
    let items = items.unwrap_or_default();
    if items.is_empty() {
        return data.iter().map(|(key, value)| Ok((inside(key)?, value.clone()))).collect();
    }
    let mut files = Files::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                files.insert(inside(&item.path)?, value.clone());
            }
            None => ensure!(optional, "references non-existent {kind} key: {}", item.key),
        }
    }
    Ok(files)
}

fn fields(pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>) -> Result<Files> {
    let mut files = Files::new();
    for item in items.unwrap_or_default() {
        let field = item.field_ref.as_ref().context("this kubelet only serves fieldRef")?;
        files.insert(inside(&item.path)?, pod_field(pod, &field.field_path)?.into_bytes());
    }
    Ok(files)
}

/// A path that stays inside its volume.
fn inside(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(plain && path.components().next().is_some(), "{} leads out of the volume", path.display());
    Ok(path.to_path_buf())
}

/// Makes a folder hold `files`, of which it holds `before` already.
fn write(folder: &Path, before: &Files, files: &Files) -> Result<()> {
    for gone in before.keys().filter(|path| !files.contains_key(*path)) {
        std::fs::remove_file(folder.join(gone)).with_context(|| format!("remove {}", gone.display()))?;
    }
    for (path, content) in files.iter().filter(|(path, content)| before.get(*path) != Some(*content)) {
        let target = folder.join(path);
        let doing = || format!("write {}", target.display());
        let parent = target.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(doing)?;
        let mut new = tempfile::NamedTempFile::new_in(parent).with_context(doing)?;
        std::io::Write::write_all(&mut new, content).with_context(doing)?;
        let readable = PermissionsExt::from_mode(0o644);
        new.as_file().set_permissions(readable).with_context(doing)?;
        new.persist(&target).with_context(doing)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, Data> {
        let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        BTreeMap::from([("o".to_owned(), data)])
    }

    #[test]
    fn keys_become_files() {
        let all = data(&[("a", "1"), ("b", "2")]);
        let files = keys("secret", "o", None, None, &all).expect("files");
        assert_eq!(files.keys().map(|path| path.display().to_string()).collect::<Vec<_>>(), ["a", "b"]);
        let item = |key: &str| KeyToPath { key: key.into(), path: "x/y".into(), ..KeyToPath::default() };
        let files = keys("secret", "o", None, Some(&[item("b")]), &all).expect("files");
        assert_eq!(files, Files::from([("x/y".into(), b"2".to_vec())]));
        let missing = keys("secret", "o", None, Some(&[item("c")]), &all).expect_err("required");
        assert_eq!(missing.to_string(), "references non-existent secret key: c");
        assert!(keys("secret", "o", Some(true), Some(&[item("c")]), &all).expect("optional").is_empty());
        assert!(keys("secret", "none", Some(true), None, &all).expect("optional").is_empty());
        assert_eq!(
            keys("secret", "none", None, None, &all).expect_err("required").to_string(),
            "secret \"none\" not found"
        );
    }

    #[test]
    fn no_file_leaves_its_volume() {
        for path in ["../x", "/x", "a/../../x", ""] {
            assert!(inside(path).is_err(), "{path}");
        }
        assert!(inside("a/b").is_ok());
    }

    #[test]
    fn a_folder_follows_its_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = Files::from([("a".into(), b"1".to_vec()), ("b/c".into(), b"2".to_vec())]);
        write(dir.path(), &Files::new(), &first).expect("written");
        let second = Files::from([("b/c".into(), b"3".to_vec())]);
        write(dir.path(), &first, &second).expect("written");
        assert!(!dir.path().join("a").exists());
        assert_eq!(std::fs::read(dir.path().join("b/c")).expect("read"), b"3");
    }
}
