//! The infra storage itself, without the driver: what the real sidecars and CDI make of its CSI plugin. Snapshots and clones have
//! the bytes of their moment, claims grow, and a fault shows where a real storage's would.

mod claims;

use std::{fs::File, os::unix::fs::FileExt};

use anyhow::{Context, Result, ensure};
use bench::{
    bring_up::Fault,
    control::Client as Control,
    scenario::{Deadline, data_volumes, until, until_gone},
    simulator::infra_storage::{self, Operation, Selector},
};
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use self::claims::{Claims, Origin, SIZE};
use crate::fixture::Fixture;

tests! {
    Calls:
        a_snapshot_and_a_clone_have_the_bytes_of_their_moment,
        a_claim_grows_where_its_class_says,
        cdi_restores_a_snapshot_into_a_larger_volume,
        each_fault_of_infra_storage_shows_where_a_real_one_would;
}

/// What a fault says.
const WORDS: &str = "said by the storage";

/// A snapshot is cut when it is taken: what is written to its volume later is not in it. So is a clone. Both outlive their
/// volume, and all files go with their objects.
async fn a_snapshot_and_a_clone_have_the_bytes_of_their_moment(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture).await?;
    for class in ["block-rwo", "filesystem-rwo"] {
        let image = claims.create("source", class, SIZE, Origin::Blank).await?;
        write(&image, "before")?;
        claims.snapshot("snapshot", "source").await?;
        claims.snapshot_ready("snapshot").await?;
        write(&image, "after!")?;
        let restored = claims.create("restored", class, 2 * SIZE, Origin::Snapshot("snapshot")).await?;
        let cloned = claims.create("cloned", class, SIZE, Origin::Claim("source")).await?;
        claims.delete("source").await?;
        ensure!(!image.exists(), "expected the source's image to go with its claim, saw {}", image.display());
        for (what, image, wanted) in [("restored", &restored, "before"), ("cloned", &cloned, "after!")] {
            let seen = read(image)?;
            ensure!(seen == wanted, "expected the {what} {class} to begin with {wanted:?}, saw {seen:?}");
        }
        if class == "block-rwo" {
            let bytes = std::fs::metadata(&restored)?.len();
            ensure!(bytes == 2 * SIZE, "expected a device of {} bytes, saw {bytes}", 2 * SIZE);
        }
        claims.delete_snapshot("snapshot").await?;
        for claim in ["restored", "cloned"] {
            claims.delete(claim).await?;
        }
        ensure!(!restored.exists() && !cloned.exists(), "expected the clones' images to be gone");
    }
    claims.end().await
}

/// A device is larger at once where no node has work to do; else the claim waits for a pod; a class that does not allow it
/// refuses.
async fn a_claim_grows_where_its_class_says(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture).await?;
    for (class, waits) in [
        ("block-rwo", false),
        ("block-rwo-node-expansion", true),
        ("filesystem-rwo", true),
        ("filesystem-rwo-storage-expansion", false),
    ] {
        let image = claims.create(class, class, SIZE, Origin::Blank).await?;
        claims.request(class, 2 * SIZE).await?;
        if waits {
            claims.waits_for_a_node(class).await?;
            claims.start_pod(class).await?;
        }
        claims.has_capacity(class, 2 * SIZE).await?;
        let bytes = std::fs::metadata(&image).map(|image| image.len()).unwrap_or_default();
        let is_device = class.starts_with("block");
        ensure!(!is_device || bytes == 2 * SIZE, "expected {class} to have {} bytes, saw {bytes}", 2 * SIZE);
        if waits {
            claims.stop_pod(class).await?;
        }
        claims.delete(class).await?;
    }
    claims.create("fixed", "block-rwo-fixed", SIZE, Origin::Blank).await?;
    let refused = claims.request("fixed", 2 * SIZE).await;
    let refusal = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(
        refusal.contains("can be resized"),
        "expected the API server to refuse the size, saw {refusal:?}"
    );
    claims.delete("fixed").await?;
    claims.end().await
}

/// A snapshot is smaller than the DataVolume that CDI restores from it: CDI expands the claim, of a class whose nodes have work
/// to do by means of a pod of its own.
async fn cdi_restores_a_snapshot_into_a_larger_volume(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture).await?;
    let namespace = claims.namespace.clone();
    let all = data_volumes(&fixture.infra, &namespace);
    for class in ["block-rwo", "block-rwo-node-expansion"] {
        let image = claims.create("source", class, SIZE, Origin::Blank).await?;
        write(&image, "before")?;
        claims.snapshot("snapshot", "source").await?;
        claims.snapshot_ready("snapshot").await?;
        let wanted = json!({
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": "restored"},
            "spec": {
                "source": {"snapshot": {"namespace": namespace, "name": "snapshot"}},
                "storage": {"storageClassName": class, "resources": {"requests": {"storage": (2 * SIZE).to_string()}}},
            },
        });
        all.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
        until(&format!("CDI to restore a snapshot of {class}"), Deadline::PodStart, async || {
            let status = all.get("restored").await?.data["status"].take();
            Ok(if status["phase"] == "Succeeded" { Ok(()) } else { Err(status.to_string()) })
        })
        .await?;
        let image = claims.image("restored").await?;
        let (bytes, seen) = (std::fs::metadata(&image)?.len(), read(&image)?);
        ensure!(
            seen == "before" && bytes == 2 * SIZE,
            "expected \"before\" on {} bytes, saw {seen:?} on {bytes}",
            2 * SIZE
        );
        all.delete("restored", &DeleteParams::default()).await?;
        until_gone(&all, "restored", "DataVolume", Deadline::PodStart).await?;
        claims.gone("restored").await?;
        claims.delete_snapshot("snapshot").await?;
        claims.delete("source").await?;
    }
    claims.end().await
}

/// Each fault shows on the object where a real storage's error shows, and the work is done soon after the fault is over.
async fn each_fault_of_infra_storage_shows_where_a_real_one_would(fixture: Fixture) -> Result<()> {
    let claims = Claims::new(&fixture).await?;
    let at = Selector { namespace: Some(claims.namespace.clone()), ..Selector::default() };
    let refuse = |code: &str, of| infra_storage::Fault::Refuse {
        code: code.to_owned(),
        message: WORDS.to_owned(),
        of,
        at: at.clone(),
    };

    let fault = inject(refuse("ResourceExhausted", Operation::Create)).await?;
    claims.apply("source", "block-rwo", SIZE, Origin::Blank).await?;
    let event = claims.event("source", "ProvisioningFailed").await?;
    // csi-provisioner writes more before it only where an answer is final.
    let wanted = format!("rpc error: code = ResourceExhausted desc = {WORDS}");
    ensure!(event == wanted, "expected the event {wanted:?}, saw {event:?}");
    drop(fault);
    claims.bound("source").await?;

    let fault = inject(refuse("Internal", Operation::Snapshot)).await?;
    claims.snapshot("snapshot", "source").await?;
    claims.snapshot_says("snapshot", WORDS).await?;
    drop(fault);
    claims.snapshot_ready("snapshot").await?;

    let fault = inject(infra_storage::Fault::Unready { calls: 2, at: at.clone() }).await?;
    claims.snapshot("slow", "source").await?;
    let times = claims.snapshot_ready("slow").await?;
    ensure!(times > 0, "expected the snapshot to be seen unready before it is ready");
    drop(fault);

    let fault = inject(refuse("Internal", Operation::Clone)).await?;
    claims.apply("cloned", "block-rwo", SIZE, Origin::Snapshot("snapshot")).await?;
    let event = claims.event("cloned", "ProvisioningFailed").await?;
    ensure!(event.contains(WORDS), "expected the event to contain {WORDS:?}, saw {event:?}");
    drop(fault);
    claims.bound("cloned").await?;

    let fault = inject(refuse("OutOfRange", Operation::Expand)).await?;
    claims.request("source", 2 * SIZE).await?;
    claims.is_infeasible("source").await?;
    drop(fault);
    claims.has_capacity("source", 2 * SIZE).await?;

    for name in ["snapshot", "slow"] {
        claims.delete_snapshot(name).await?;
    }
    for name in ["cloned", "source"] {
        claims.delete(name).await?;
    }
    claims.end().await
}

/// Puts a fault in force for as long as the connection lives.
async fn inject(fault: infra_storage::Fault) -> Result<Control> {
    let control = Control::connect().await?;
    control.fault(Fault::InfraStorage(fault)).await?;
    Ok(control)
}

/// Writes at the beginning of an image; one of a filesystem is made.
fn write(image: &std::path::Path, text: &str) -> Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(image);
    let file = file.with_context(|| format!("open {}", image.display()))?;
    file.write_all_at(text.as_bytes(), 0).with_context(|| format!("write {}", image.display()))
}

/// Six bytes at the beginning of an image.
fn read(image: &std::path::Path) -> Result<String> {
    let mut bytes = [0; 6];
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    file.read_exact_at(&mut bytes, 0).with_context(|| format!("read {}", image.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A quantity in a status, in bytes as this test writes it or as csi-provisioner rounds it.
fn is_size(quantity: &Value, bytes: u64) -> bool {
    let mebibytes = format!("{}Mi", bytes >> 20);
    quantity.as_str().is_some_and(|text| text == bytes.to_string() || text == mebibytes)
}
