//! An infra API in memory, under the real client. It carries calls out as far as the driver notices, and panics on a call
//! that the driver must never make, whatever was asked of it:
//!
//! - a URL of another namespace, or with a part that no name can be;
//! - a change of an object that is not this guest's, by its labels and its name;
//! - a disk for a VM that is labelled as another guest's, or a disk of a volume that is not this guest's.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use controller::{Controller, ControllerSettings, StorageClassPolicy};
use http::{Method, Request, Response, Uri};
use infra::{Infra, WriteRate, is_dns_label};
use kube::client::Body;
use serde_json::{Value, json};
use serving::Tasks;

/// The infra namespace.
pub const NAMESPACE: &str = "infra";
/// The label of this guest's objects.
pub const LABEL: (&str, &str) = ("csi-driver/cluster", "tenant");
/// The prefix of this guest's volumes.
pub const PREFIX: &str = "pvc";

const CLAIMS: &str = "persistentvolumeclaims";
const DATA_VOLUMES: &str = "datavolumes";
const SNAPSHOTS: &str = "volumesnapshots";
const VMIS: &str = "virtualmachineinstances";
const VMS: &str = "virtualmachines";
/// What may stand in the query of a call.
const QUERY_KEYS: [&str; 10] = [
    "allowWatchBookmarks",
    "continue",
    "fieldManager",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "timeoutSeconds",
    "watch",
];
/// The deadline of each call, in virtual time.
const DEADLINE: Duration = Duration::from_secs(3);

/// The objects of the infra namespace, by resource and name. Cheap to clone.
#[derive(Clone, Default)]
pub struct InfraApi {
    objects: Arc<Mutex<BTreeMap<(String, String), Value>>>,
}

/// Runs `work` on a clock that jumps to the next timer while nothing else is to be done.
///
/// # Panics
/// No runtime can be made, or `work` panics.
pub fn run<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work)
}

/// A request with the deadline of these targets.
pub fn within_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

impl InfraApi {
    /// Puts an object there, under this name. Its labels and all else may be anything.
    pub fn put(&self, resource: &str, name: &str, mut object: Value) {
        if let Some(fields) = object.as_object_mut() {
            let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
            if let Some(metadata) = metadata.as_object_mut() {
                // The API server keeps these two as they are in the URL.
                metadata.insert("name".into(), name.into());
                metadata.insert("namespace".into(), NAMESPACE.into());
            }
        }
        self.change(|objects| objects.insert((resource.into(), name.into()), object));
    }

    /// The controller role over this infra cluster. Call it in [`run`].
    ///
    /// # Panics
    /// The settings are wrong.
    pub fn controller(&self) -> Controller {
        let settings = infra::InfraSettings {
            kubeconfig: None,
            namespace: NAMESPACE.into(),
            labels: [(LABEL.0.to_owned(), LABEL.1.to_owned())].into(),
            volume_prefix: PREFIX.into(),
            vm_labels: BTreeMap::new(),
            write_rate: WriteRate::default(),
        };
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::io::Error>(api.answer(request).await) }
        });
        let tasks = Tasks::default();
        let client = kube::Client::new(service, NAMESPACE);
        let infra = Infra::from_client(client, settings, &tasks).expect("an infra cluster");
        let settings = ControllerSettings {
            driver_name: "csi.kubevirt.io".into(),
            vendor_version: "0.1.0".into(),
            storage_classes: StorageClassPolicy::default(),
        };
        Controller::new(infra, settings, &tasks)
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<(String, String), Value>) -> T) -> T {
        change(&mut self.objects.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.change(|objects| objects.get(&(resource.to_owned(), name.to_owned())).cloned())
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = checked_path(&parts.uri);
        let body = body.collect_bytes().await.expect("a body in memory");
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).expect("the client writes JSON")
        };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match (&parts.method, path.as_slice()) {
            (&Method::GET, [resource]) => self.list(resource),
            (&Method::GET, [resource, name]) => {
                self.get(resource, name).map_or_else(|| absent(resource, name), |found| answer(200, &found))
            }
            (&Method::POST, [resource]) => self.create(resource, &body),
            (&Method::PATCH, [resource, name]) => self.patch(resource, name, &body),
            (&Method::DELETE, [resource, name]) => self.delete(resource, name),
            (&Method::PUT, [resource, vm, verb]) => self.hotplug(resource, vm, verb, &body),
            (method, path) => panic!("the driver has no use for {method} {path:?}"),
        }
    }

    fn list(&self, resource: &str) -> Response<Body> {
        let items = self.change(|objects| {
            let of_resource = objects.iter().filter(|((other, _), _)| other == resource);
            of_resource.map(|(_, object)| object.clone()).collect::<Vec<_>>()
        });
        answer(200, &json!({"metadata": {"resourceVersion": "1"}, "items": items}))
    }

    fn create(&self, resource: &str, body: &Value) -> Response<Body> {
        let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
        assert!(is_dns_label(&name), "{name:?} is to be the name of a volume");
        assert!(is_ours(body, &name), "a new {resource} without our label or prefix: {body}");
        if self.get(resource, &name).is_some() {
            return status(409, "AlreadyExists");
        }
        let mut object = body.clone();
        object["metadata"]["uid"] = "5d307ca9-b3ef-428c-8861-06e72d69f223".into();
        object["metadata"]["creationTimestamp"] = "2026-11-29T10:00:00Z".into();
        self.put(resource, &name, object.clone());
        answer(201, &object)
    }

    fn patch(&self, resource: &str, name: &str, body: &Value) -> Response<Body> {
        assert_eq!(resource, CLAIMS, "only claims are patched");
        let Some(object) = self.get(resource, name) else { return absent(resource, name) };
        // The tests of a JSON patch, which the API server carries out, may be the guard.
        let is_tested = body.as_array().into_iter().flatten().any(|op| {
            op["op"] == "test"
                && op["path"] == "/metadata/labels/csi-driver~1cluster"
                && op["value"] == LABEL.1
        });
        assert!(
            is_tested || is_ours(&object, name),
            "a foreign {resource} would be changed: {object} {body}"
        );
        if !is_ours(&object, name) {
            return status(422, "Invalid");
        }
        answer(200, &object)
    }

    fn delete(&self, resource: &str, name: &str) -> Response<Body> {
        let Some(object) = self.get(resource, name) else { return absent(resource, name) };
        assert!(is_ours(&object, name), "a foreign {resource} would be deleted: {object}");
        self.change(|objects| objects.remove(&(resource.to_owned(), name.to_owned())));
        answer(200, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
    }

    fn hotplug(&self, resource: &str, vm: &str, verb: &str, body: &Value) -> Response<Body> {
        assert!([VMS, VMIS].contains(&resource), "{resource} has no {verb}");
        let Some(_) = self.get(resource, vm) else { return absent(resource, vm) };
        for labelled in [VMS, VMIS] {
            let found = self.get(labelled, vm).and_then(|object| label(&object));
            let is_foreign = found.is_some_and(|found| found != LABEL.1);
            assert!(verb != "addvolume" || !is_foreign, "a disk for a foreign VM");
        }
        if verb == "addvolume" {
            let name = body["volumeSource"]["dataVolume"]["name"].as_str().expect("a DataVolume");
            let object = self.get(DATA_VOLUMES, name).unwrap_or_default();
            assert!(is_ours(&object, name), "a disk of a foreign volume: {object} {body}");
        }
        answer(202, &Value::Null)
    }
}

/// Resource, name and subresource.
fn checked_path(uri: &Uri) -> Vec<String> {
    let path = uri.path();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    // A subdomain (RFC 1123) as Kubernetes reads it, whose labels have no length of their own.
    let is_label = |label: &str| {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(legal) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_name = |part: &&str| part.len() <= 253 && part.split('.').all(is_label);
    assert!(parts.iter().all(|part| is_name(part)), "{path:?} has a part that is no name");
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let key = pair.split('=').next().unwrap_or_default();
        assert!(QUERY_KEYS.contains(&key), "{uri} has an unknown key {key:?}");
    }
    let at = parts.iter().position(|part| *part == "namespaces").expect("a namespaced call");
    assert_eq!(parts.get(at + 1), Some(&NAMESPACE), "{path:?} is in another namespace");
    parts[at + 2..].iter().map(|part| (*part).to_owned()).collect()
}

fn label(object: &Value) -> Option<String> {
    object["metadata"]["labels"][LABEL.0].as_str().map(str::to_owned)
}

fn is_ours(object: &Value, name: &str) -> bool {
    // A snapshot has the name that csi-snapshotter gave it, or that of the clone for which it is taken: its labels are its guard.
    let is_named = object["kind"] == "VolumeSnapshot"
        || name.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('-'));
    is_named && label(object).as_deref() == Some(LABEL.1)
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(Body::from(body)).expect("an answer")
}

fn status(code: u16, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    });
    answer(code, &status)
}

/// The proof that an object does not exist.
fn absent(resource: &str, name: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "not found", "reason": "NotFound", "code": 404, "details": {"kind": resource, "name": name},
    });
    answer(404, &status)
}

/// The resources of [`InfraApi`], in the order of the documents of an input.
pub const RESOURCES: [&str; 5] = [DATA_VOLUMES, CLAIMS, VMS, VMIS, SNAPSHOTS];
