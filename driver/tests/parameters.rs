//! `docs/reference/parameters.md`: rendered from the tables by which the code reads and writes its keys and from the
//! Deployment that reads the ConfigMap, and compared with the file.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use controller::keys::{INFRA_ANNOTATIONS, Key, PARAMETERS, POLICY, SNAPSHOT_PARAMETERS, VOLUME_CONTEXT};
use kubevirt::provider_id::PREFIX;
use node::node_id::{CLUSTER_NAMESPACE, INFRA_VM_NAME, INFRA_VM_NAMESPACE};
use serde_json::Value;

/// Set it to write the page instead of comparing it.
const REWRITE_ENV: &str = "UPDATE_DOCS";
const PAGE: &str = "docs/reference/parameters.md";
const DEPLOYMENT: &str = "deploy/controller-infra/base/deployment.yaml";
const CONFIG: &str = "deploy/controller-infra/base/driver-config.yaml";
/// The container of this program.
const CONTAINER: &str = "csi-driver";

const HEAD: &str = "# Parameters, annotations and configuration keys

<!-- Written by `UPDATE_DOCS=1 cargo test -p driver`; a test compares it. -->

What a cluster's users and administrators write for the driver, and what it writes itself, beside its [flags](flags.md).

## StorageClass, guest cluster

The provisioner is `csi.kubevirt.io`. A parameter that is not here has no effect; the controller's log names it. One that differs
from a long one by one or two letters, or from a shorter one by one letter, is refused (`unknown parameter`).

";

const SIDECAR: &str = "| `csi.storage.k8s.io/fstype` | `ext4` (default), `ext3`, `ext2`, `xfs` | csi-provisioner's: the filesystem \
    of volumes that are not raw block devices; the default is its `--default-fstype` |

Other keys that begin with `csi.storage.k8s.io/` are the sidecars' too and pass. `mountOptions` are given to the mount in the
guest; words that would make another mount (`bind`, `remount`, `loop`) are refused, and the guest's kernel refuses what the filesystem
does not know. `volumeBindingMode` may be either, whichever the infra class has.

";

const NODE: &str = "## Node, guest cluster

The node role reads from its own Node which VM it is, from the first of these that is complete:

";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn yaml(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn table(page: &mut String, head: &str, keys: &[Key]) {
    writeln!(page, "| {head} | value | meaning |\n|---|---|---|").expect("writes to a String");
    for Key { name, values, meaning } in keys {
        writeln!(page, "| `{name}` | {values} | {meaning} |").expect("writes to a String");
    }
}

/// How the driver's container gets a key of the ConfigMap: the flag that has its variable, or the variable itself.
fn config_keys() -> Vec<(String, String, bool)> {
    let deployments = yaml(DEPLOYMENT);
    let containers = deployments[0]["spec"]["template"]["spec"]["containers"].as_array().expect("containers");
    let driver = containers.iter().find(|container| container["name"] == CONTAINER).expect("our container");
    let flag = |variable: &str| {
        let flags = driver["args"].as_array().expect("arguments").iter().filter_map(Value::as_str);
        let mut of_variable = flags.filter(|flag| flag.contains(&format!("$({variable})")));
        of_variable.next().map(|flag| flag.split('=').next().unwrap_or_default().to_owned())
    };
    let variables = driver["env"].as_array().expect("environment").iter();
    variables
        .filter_map(|variable| {
            let reference = variable["valueFrom"]["configMapKeyRef"].as_object()?;
            let name = variable["name"].as_str()?;
            let goes_to = flag(name).unwrap_or_else(|| name.to_owned());
            Some((reference["key"].as_str()?.to_owned(), goes_to, reference.contains_key("optional")))
        })
        .collect()
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    table(&mut page, "parameter", &PARAMETERS);
    page.push_str(SIDECAR);
    page.push_str("## VolumeSnapshotClass, guest cluster\n\nThe driver is `csi.kubevirt.io`. Parameters that are not here are treated as those of a StorageClass.\n\n");
    table(&mut page, "parameter", &SNAPSHOT_PARAMETERS);
    page.push('\n');
    page.push_str("## Volume context, guest PersistentVolume\n\n`spec.csi.volumeAttributes`; the driver writes it, and it never changes.\n\n");
    table(&mut page, "key", &VOLUME_CONTEXT);
    page.push('\n');
    page.push_str(NODE);
    write!(
        page,
        "| from | value |\n|---|---|\n\
         | `spec.providerID` | `{PREFIX}<VM>` |\n\
         | with annotation `{CLUSTER_NAMESPACE}` | a namespace, which the controller does not read; Cluster API writes both |\n\
         | annotation `{INFRA_VM_NAME}` | the VM |\n\
         | with annotation `{INFRA_VM_NAMESPACE}` | a namespace, which the controller does not read |\n\n"
    )
    .expect("writes to a String");
    page.push_str("## Infra cluster\n\nEvery object that the driver makes carries the labels of `infraClusterLabels`, and a claim gets them from CDI. What does not\ncarry them is not touched.\n\n");
    table(&mut page, "annotation", &INFRA_ANNOTATIONS);
    page.push_str("\n## ConfigMap `driver-config`, infra cluster\n\nRead when the controller starts; a change needs a restart.\n\n");
    page.push_str("| key | goes to | |\n|---|---|---|\n");
    for (key, goes_to, optional) in config_keys() {
        let need = if optional { "optional" } else { "required" };
        writeln!(page, "| `{key}` | `{goes_to}` | {need} |").expect("writes to a String");
    }
    page.push_str("\n### `infraStorageClassEnforcement`\n\nYAML text. Without it every class is allowed; in a text, a key that is absent is false or empty. The first letter of a key may be\na capital. An unknown key is logged and has no effect; a value of another type ends the start.\n\n");
    table(&mut page, "key", &POLICY);
    page
}

#[test]
fn the_page_of_parameters_is_true() {
    let (path, wanted) = (repository(PAGE), page());
    if std::env::var_os(REWRITE_ENV).is_some() {
        fs::write(&path, &wanted).expect("writes the page");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{PAGE} is not up to date; run {REWRITE_ENV}=1 cargo test -p driver");
}

#[test]
fn the_shipped_config_has_the_keys_that_the_deployment_reads() {
    let mut read: Vec<String> = config_keys().into_iter().map(|(key, ..)| key).collect();
    let configs = yaml(CONFIG);
    let mut shipped: Vec<String> = configs[0]["data"].as_object().expect("data").keys().cloned().collect();
    read.sort();
    shipped.sort();
    assert_eq!(read, shipped);
}
