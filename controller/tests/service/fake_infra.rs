//! A small infra API in memory, under the real client: objects as JSON, hotplug as virt-api 1.9 does it with the gate
//! `DeclarativeHotplugVolumes`, and faults at chosen calls. The bench tests the real semantics; this fake shows wire
//! details.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, Uri};
use kube::client::Body;
use serde_json::{Value, json};

use crate::fake_resizer::{self, Resizer};

pub const NAMESPACE: &str = "infra";
pub const LABEL: (&str, &str) = ("csi-driver/cluster", "tenant");
const DATA_VOLUMES: &str = "datavolumes";
const CLAIMS: &str = "persistentvolumeclaims";
const SNAPSHOTS: &str = "volumesnapshots";
const VMS: &str = "virtualmachines";
/// virt-controller removes it once the pods of an ended VMI are gone.
const POD_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
const VMIS: &str = "virtualmachineinstances";

/// What happens to a call.
#[derive(Clone)]
pub enum Effect {
    /// The call is not carried out; this is the answer.
    Answer(u16, &'static str),
    /// The call is carried out, then the connection breaks.
    LoseReply,
    /// The call is carried out late.
    Delay(Duration),
    /// The task that makes the call panics.
    Panic(&'static str),
}

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String), Value>,
    calls: Vec<String>,
    faults: VecDeque<(String, Effect)>,
    next: u64,
    hotplugs_under_way: u32,
    most_hotplugs_at_once: u32,
}

/// The infra cluster. Cheap to clone.
#[derive(Clone, Default)]
pub struct FakeInfra {
    state: Arc<Mutex<State>>,
    /// Time from a hotplug call to the VMI's status; zero = at once.
    settle: Duration,
    /// Time from a `DataVolume` to its claim; zero = at once.
    claim: Duration,
    /// Time from a `VolumeSnapshot` to its being ready; zero = at once.
    snapshot: Duration,
    /// The answer to the question which rights the driver has.
    pub rights: Arc<Mutex<Value>>,
    /// What becomes of a larger request of a claim.
    resizer: Arc<Mutex<Resizer>>,
    /// Time that virt-api works on a hotplug call, in which it can lose the race.
    pub work: Duration,
}

impl FakeInfra {
    /// Disks take this long to come and go.
    pub fn settling_after(settle: Duration) -> Self {
        Self { settle, ..Self::default() }
    }

    /// Claims take this long to be made.
    pub fn claiming_after(claim: Duration) -> Self {
        Self { claim, ..Self::default() }
    }

    /// Snapshots take this long.
    pub fn snapshotting_after(snapshot: Duration) -> Self {
        Self { snapshot, ..Self::default() }
    }

    pub fn set_resizer(&self, resizer: Resizer) {
        *self.resizer.lock().unwrap() = resizer;
    }

    pub fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { fake.answer(request).await }
        });
        kube::Client::new(service, NAMESPACE)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A running VM and its VMI.
    pub fn vm(&self, name: &str) {
        self.put(VMS, name, json!({
            "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": {"runStrategy": "Always", "template": {"spec": {"volumes": [{"name": "root", "containerDisk": {}}]}}},
            "status": {"printableStatus": "Running"},
        }));
        self.put(
            VMIS,
            name,
            json!({
                "metadata": {"name": name, "finalizers": [POD_FINALIZER]},
                "spec": {"volumes": [{"name": "root", "containerDisk": {}}]},
                "status": {"phase": "Running", "activePods": {"launcher": "infra-1"}, "volumeStatus": []},
            }),
        );
    }

    /// An event of a claim.
    pub fn warn(&self, claim: &str, reason: &str, message: &str) {
        self.warn_about((CLAIMS, claim), reason, message);
    }

    /// An event about an object.
    pub fn warn_about(&self, (kind, name): (&'static str, &str), reason: &str, message: &str) {
        let uid = self.get(kind, name).unwrap()["metadata"]["uid"].clone();
        let about = json!({"name": name, "uid": uid});
        self.put("events", &format!("{name}.{reason}"), json!({"metadata": {}, "involvedObject": about,
            "type": "Warning", "reason": reason, "message": message, "lastTimestamp": "2026-11-29T10:00:00Z"}));
    }

    /// As an API server, with the one field selector that the driver uses.
    fn events(&self, query: &str) -> Response<Body> {
        let state = self.lock();
        let events = state.objects.iter().filter(|((kind, _), event)| {
            let uid = event["involvedObject"]["uid"].as_str().unwrap_or_default();
            kind == "events" && query.contains(&format!("involvedObject.uid%3D{uid}%2Ctype%3DWarning"))
        });
        let items: Vec<_> = events.map(|(_, event)| event.clone()).collect();
        json_answer(200, &json!({"metadata": {}, "items": items}))
    }

    /// A disk that is plugged into the VMI and not into its VM.
    pub fn plug_into_vmi(&self, vmi: &str, volume: &str) {
        self.edit(VMIS, vmi, |vmi| plug(vmi, volume));
    }

    /// As virt-controller, when the pods of an ended VMI are gone.
    pub fn pods_are_gone(&self, vmi: &str) {
        self.edit(VMIS, vmi, |vmi| {
            vmi["metadata"]["finalizers"] = json!([]);
            vmi["status"]["activePods"] = json!({});
        });
    }

    /// A `DataVolume` with its claim, ours or not.
    pub fn volume(&self, name: &str, ours: bool) {
        let (key, value) = LABEL;
        let labels = if ours { json!({ key: value }) } else { json!({}) };
        self.put(DATA_VOLUMES, name, json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": labels},
            "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "1073741824"}}}},
            "status": {"phase": "Succeeded"},
        }));
        self.put(CLAIMS, name, claim(name, &labels, "1073741824"));
    }

    pub fn put(&self, kind: &str, name: &str, mut object: Value) {
        let mut state = self.lock();
        state.next += 1;
        object["metadata"]["resourceVersion"] = state.next.to_string().into();
        state.objects.insert((kind.into(), name.into()), object);
    }

    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(kind.into(), name.into())).cloned()
    }

    pub fn remove(&self, kind: &str, name: &str) {
        self.lock().objects.remove(&(kind.into(), name.into()));
    }

    pub fn edit(&self, kind: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        edit(self.lock().objects.get_mut(&(kind.into(), name.into())).unwrap());
    }

    /// The next call whose `METHOD path` contains `at` meets `effect`.
    pub fn fault(&self, at: &str, effect: Effect) {
        self.lock().faults.push_back((at.into(), effect));
    }

    pub fn forget_faults(&self) {
        self.lock().faults.clear();
    }

    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    pub fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    pub fn most_hotplugs_at_once(&self) -> u32 {
        self.lock().most_hotplugs_at_once
    }

    pub fn holder(&self, volume: &str) -> Option<String> {
        let claim = self.get(CLAIMS, volume)?;
        claim["metadata"]["annotations"]["csi.kubevirt.io/holder"].as_str().map(str::to_owned)
    }

    /// VMs whose spec names the volume.
    pub fn plugged_into(&self, volume: &str) -> Vec<String> {
        let state = self.lock();
        let vms = state
            .objects
            .iter()
            .filter(|((kind, _), vm)| kind == VMS && position(vm_volumes(vm), volume).is_some());
        vms.map(|((_, name), _)| name.clone()).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, std::io::Error> {
        let call = format!("{} {}", request.method(), request.uri());
        let asks_for_rights = request.uri().path().ends_with("/selfsubjectrulesreviews");
        assert!(
            asks_for_rights || request.headers()["accept"].to_str().unwrap().contains("*/*"),
            "virt-api answers 406 to a client that does not accept */*"
        );
        let fault = {
            let mut state = self.lock();
            state.calls.push(call.clone());
            let position = state.faults.iter().position(|(at, _)| call.contains(at));
            position.and_then(|position| state.faults.remove(position)).map(|(_, effect)| effect)
        };
        match fault {
            Some(Effect::Answer(code, message)) => return Ok(status(code, message)),
            Some(Effect::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Effect::Panic(message)) => panic!("{message}"),
            Some(Effect::LoseReply) | None => {}
        }
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        let answer = self.carry_out(&parts.method, &parts.uri, &body).await;
        if matches!(fault, Some(Effect::LoseReply)) {
            return Err(std::io::Error::other("the connection broke"));
        }
        Ok(answer)
    }

    async fn carry_out(&self, method: &Method, uri: &Uri, body: &Value) -> Response<Body> {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        if path.ends_with("/selfsubjectrulesreviews") {
            return json_answer(201, &self.rights.lock().unwrap());
        }
        let at = path.split_once(&format!("/namespaces/{NAMESPACE}/")).map(|(_, at)| at).unwrap_or_default();
        let parts: Vec<_> = at.split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", [kind, name]) => {
                self.get(kind, name).map_or_else(|| absent(kind, name), |o| json_answer(200, &o))
            }
            ("GET", ["events"]) => self.events(query),
            ("GET", [kind]) => {
                let state = self.lock();
                let items: Vec<_> =
                    state.objects.iter().filter(|((k, _), _)| k == kind).map(|(_, o)| o.clone()).collect();
                json_answer(200, &json!({"metadata": {}, "items": items}))
            }
            ("POST", [DATA_VOLUMES]) => self.create(body),
            ("POST", [SNAPSHOTS]) => self.take_snapshot(body),
            ("DELETE", [kind @ (DATA_VOLUMES | CLAIMS | SNAPSHOTS), name]) => self.delete(kind, name, body),
            ("PATCH", [CLAIMS, name]) => self.patch(name, body),
            ("PUT", [VMS, vm, "addvolume" | "removevolume"]) => self.hotplug(vm, body).await,
            ("PUT", [VMIS, vmi, "removevolume"]) => self.unplug_from_vmi(vmi, body),
            _ => status(404, "the server could not find the requested resource"),
        }
    }

    fn create(&self, body: &Value) -> Response<Body> {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        if self.get(DATA_VOLUMES, &name).is_some() {
            return status(409, "datavolumes already exists");
        }
        let mut object = body.clone();
        object["metadata"]["uid"] = format!("uid-{name}").into();
        object["metadata"]["creationTimestamp"] = "2026-11-29T10:00:00Z".into();
        self.put(DATA_VOLUMES, &name, object.clone());
        let size = body["spec"]["storage"]["resources"]["requests"]["storage"].as_str().unwrap();
        let claim = claim(&name, &body["metadata"]["labels"], size);
        let (fake, delay) = (self.clone(), self.claim);
        if delay.is_zero() {
            self.put(CLAIMS, &name, claim);
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                fake.put(CLAIMS, &name, claim);
            });
        }
        json_answer(201, &object)
    }

    /// As the API server and infra's snapshot controller: the size is that of the claim.
    fn take_snapshot(&self, body: &Value) -> Response<Body> {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        if self.get(SNAPSHOTS, &name).is_some() {
            return status(409, "volumesnapshots already exists");
        }
        let mut object = body.clone();
        object["metadata"]["uid"] = format!("uid-{name}").into();
        object["metadata"]["creationTimestamp"] = "2026-11-29T10:00:00Z".into();
        self.put(SNAPSHOTS, &name, object.clone());
        if self.snapshot.is_zero() {
            self.finish_snapshot(&name);
        } else {
            let (fake, delay) = (self.clone(), self.snapshot);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                fake.finish_snapshot(&name);
            });
        }
        json_answer(201, &object)
    }

    /// The storage system has the whole snapshot.
    pub fn finish_snapshot(&self, name: &str) {
        let mut state = self.lock();
        let Some(snapshot) = state.objects.get(&(SNAPSHOTS.into(), name.into())).cloned() else { return };
        let claim = snapshot["spec"]["source"]["persistentVolumeClaimName"].as_str().unwrap().to_owned();
        let claim = state.objects.get(&(CLAIMS.into(), claim)).cloned().unwrap_or_default();
        let snapshot = state.objects.get_mut(&(SNAPSHOTS.into(), name.into())).unwrap();
        snapshot["status"] = json!({"readyToUse": true, "creationTime": "2026-11-29T10:00:01Z",
            "restoreSize": claim["spec"]["resources"]["requests"]["storage"]});
    }

    fn delete(&self, kind: &str, name: &str, body: &Value) -> Response<Body> {
        match self.get(kind, name) {
            None => absent(kind, name),
            Some(object) if object["metadata"]["uid"] != body["preconditions"]["uid"] => {
                status(409, "uid differs")
            }
            Some(_) => {
                self.remove(kind, name);
                if kind == DATA_VOLUMES {
                    self.remove(CLAIMS, name);
                }
                json_answer(200, &json!({}))
            }
        }
    }

    fn patch(&self, name: &str, ops: &Value) -> Response<Body> {
        let Some(before) = self.get(CLAIMS, name) else { return absent(CLAIMS, name) };
        let mut object = before.clone();
        for op in ops.as_array().unwrap() {
            let path = op["path"].as_str().unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            let key = key.replace("~1", "/").replace("~0", "~");
            let Some(parent) = object.pointer_mut(parent).and_then(Value::as_object_mut) else {
                return status(422, "the server rejected our request due to an error in our request");
            };
            let applied = match op["op"].as_str().unwrap() {
                "test" => parent.get(&key).unwrap_or(&Value::Null) == &op["value"],
                "add" => {
                    parent.insert(key, op["value"].clone());
                    true
                }
                _ => parent.remove(&key).is_some(),
            };
            if !applied {
                return status(422, "the server rejected our request due to an error in our request");
            }
        }
        if let Some((code, message)) = fake_resizer::refusal(&before, &object) {
            return status(code, &message);
        }
        let resized = fake_resizer::status(&self.resizer.lock().unwrap(), &object);
        self.put(CLAIMS, name, object);
        if let Some((delay, status)) = resized {
            self.resize_after(delay, name.to_owned(), status);
        }
        json_answer(200, &self.get(CLAIMS, name).unwrap())
    }

    fn resize_after(&self, delay: Duration, name: String, status: Value) {
        if delay.is_zero() {
            return self.edit(CLAIMS, &name, |claim| claim["status"] = status);
        }
        let fake = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            fake.edit(CLAIMS, &name, |claim| claim["status"] = status);
        });
    }

    /// As virt-api: reads the VM, works for a while, and loses the race if the spec changed in that time.
    async fn hotplug(&self, vm: &str, body: &Value) -> Response<Body> {
        let name = body["name"].as_str().unwrap();
        {
            let mut state = self.lock();
            state.hotplugs_under_way += 1;
            state.most_hotplugs_at_once = state.most_hotplugs_at_once.max(state.hotplugs_under_way);
        }
        let before = self.get(VMS, vm).map(|vm| vm_volumes(&vm).clone());
        tokio::time::sleep(self.work).await;
        let mut state = self.lock();
        state.hotplugs_under_way -= 1;
        let Some(before) = before else { return absent("virtualmachine", vm) };
        let adding = body.get("disk").is_some();
        let object = state.objects.get_mut(&(VMS.into(), vm.into())).unwrap();
        if *vm_volumes(object) != before {
            return status(422, "the server rejected our request due to an error in our request");
        }
        let volumes = object["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
        match (adding, volumes.iter().position(|volume| volume["name"] == name)) {
            (true, Some(_)) => {
                return status(409, "Unable to add volume because volume with that name already exists");
            }
            (false, None) => return status(409, "Unable to remove volume because it does not exist"),
            (true, None) => {
                volumes.push(json!({"name": name, "dataVolume": {"name": name, "hotpluggable": true}}));
            }
            (false, Some(at)) => drop(volumes.remove(at)),
        }
        drop(state);
        self.settle_later(vm.to_owned(), name.to_owned(), adding);
        Response::builder().status(StatusCode::ACCEPTED).body(Body::empty()).unwrap()
    }

    /// As virt-api with the gate `HotplugVolumes`.
    fn unplug_from_vmi(&self, vmi: &str, body: &Value) -> Response<Body> {
        let name = &body["name"];
        self.edit(VMIS, vmi, |vmi| {
            for list in ["/spec/volumes", "/status/volumeStatus"] {
                vmi.pointer_mut(list).unwrap().as_array_mut().unwrap().retain(|item| item["name"] != *name);
            }
        });
        Response::builder().status(StatusCode::ACCEPTED).body(Body::empty()).unwrap()
    }

    fn settle_later(&self, vm: String, volume: String, adding: bool) {
        let fake = self.clone();
        let settled = move || {
            let mut state = fake.lock();
            let Some(vmi) = state.objects.get_mut(&(VMIS.into(), vm)) else { return };
            for list in ["/spec/volumes", "/status/volumeStatus"] {
                let list = vmi.pointer_mut(list).unwrap().as_array_mut().unwrap();
                list.retain(|item| item["name"] != volume.as_str());
            }
            if adding {
                plug(vmi, &volume);
            }
        };
        if self.settle.is_zero() {
            settled();
        } else {
            let delay = self.settle;
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                settled();
            });
        }
    }
}

fn plug(vmi: &mut Value, volume: &str) {
    let plugged = json!({"name": volume, "dataVolume": {"name": volume, "hotpluggable": true}});
    let ready =
        json!({"name": volume, "phase": "Ready", "target": "sda", "hotplugVolume": {"attachPodName": "p"}});
    for (list, entry) in [("/spec/volumes", plugged), ("/status/volumeStatus", ready)] {
        vmi.pointer_mut(list).unwrap().as_array_mut().unwrap().push(entry);
    }
}

fn claim(name: &str, labels: &Value, size: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-of-{name}"), "labels": labels, "annotations": {"cdi.kubevirt.io/storage.pod.restarts": "0"}},
        "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": "standard",
            "resources": {"requests": {"storage": size}}},
        "status": {"phase": "Bound", "capacity": {"storage": size}},
    })
}

fn vm_volumes(vm: &Value) -> &Value {
    &vm["spec"]["template"]["spec"]["volumes"]
}

fn position(volumes: &Value, name: &str) -> Option<usize> {
    volumes.as_array()?.iter().position(|volume| volume["name"] == name)
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(serde_json::to_vec(value).unwrap())).unwrap()
}

/// An API server's answer about an object that does not exist.
fn absent(kind: &str, name: &str) -> Response<Body> {
    let details = json!({"name": name, "kind": kind});
    json_answer(
        404,
        &json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound",
            "details": details}),
    )
}

fn status(code: u16, message: &str) -> Response<Body> {
    json_answer(
        code,
        &json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "x"}),
    )
}
