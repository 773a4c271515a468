//! Calls on claims: get and patch.

use cluster::{Error, Failure, WhenPaused};
use http::header;
use kubevirt::ObjectName;

use crate::{
    claim::Claim,
    guest_guard::Owned,
    infra::Infra,
    json_patch::PatchOp,
    reader::{CLAIMS, accepting_all},
};

const JSON_PATCH: &str = "application/json-patch+json";
/// Where a claim has the size that it requests.
const REQUEST: &str = "/spec/resources/requests/storage";
/// The texts by which the API server's admission (`PersistentVolumeClaimResize`, `LimitRanger`) refuses a larger
/// claim. Their code is 403, as that of a missing right, which is something else.
const EXPANSION_REFUSALS: [&str; 2] =
    ["only dynamically provisioned pvc can be resized", "maximum storage usage per PersistentVolumeClaim"];

/// Sets the size that `claim` requests to `bytes`, unless it requests another one by now.
pub fn resize_ops(claim: &Claim, bytes: u64) -> Vec<PatchOp> {
    let unchanged = match claim.request() {
        Some(request) => PatchOp::test(REQUEST, request.as_written().clone()),
        None => PatchOp::test_absent(REQUEST),
    };
    vec![unchanged, PatchOp::add(REQUEST, bytes.to_string())]
}

/// Whether the error says that the claim may not be made larger, as opposed to a missing right or a used-up quota.
pub fn refuses_expansion(error: &Error) -> bool {
    match &*error.failure {
        Failure::Answer { code: 403, message, .. } => {
            EXPANSION_REFUSALS.iter().any(|mark| message.contains(mark))
        }
        _ => false,
    }
}

impl Infra {
    /// Gets a claim, ours or a foreign one.
    pub async fn claim(&self, name: &ObjectName) -> Result<Option<Claim>, Error> {
        self.shared.reader.find(CLAIMS, name).await
    }

    /// Patches a claim of ours. The same patch tests the guard's labels in the API server: on a foreign claim, or where
    /// a test of `ops` fails, the answer is 422 and nothing has changed.
    #[expect(clippy::missing_panics_doc, reason = "texts serialize")]
    pub async fn patch_claim(&self, name: &ObjectName, ops: Vec<PatchOp>) -> Result<Claim, Error> {
        let patch: Vec<_> = self.shared.guard.label_tests().into_iter().chain(ops).collect();
        let body = serde_json::to_vec(&patch).expect("texts serialize");
        let reader = &self.shared.reader;
        let uri = format!("{}/{name}", reader.requests(CLAIMS).url_path);
        let request = http::Request::patch(uri).header(header::CONTENT_TYPE, JSON_PATCH).body(body);
        let request = accepting_all(request.map_err(kube::core::request::Error::BuildRequest));
        reader.server.read(request, WhenPaused::Fail).await
    }

    /// Deletes exactly this claim, which was read under `name`: 409 if another one has taken the name since. Needs the right
    /// [`crate::DELETE_CLAIMS`].
    pub async fn delete_claim(&self, name: &ObjectName, claim: &Owned<Claim>) -> Result<(), Error> {
        self.delete(CLAIMS, name, &claim.metadata).await
    }
}
