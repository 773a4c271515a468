//! Volumes of every shape: what the guest sees, the bus of the disk, what infra storage offers, and when it binds.
//!
//! Not every combination is run, but every pair of two choices is, which a test of its own shows. Each shape is written on
//! one worker and read on the other; some by pods through kubelet and the real sidecars, the rest by direct RPCs. The short
//! list has every choice once, the long one every pair.

mod calls;
mod pods;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use bench::{
    cluster::storage_classes::{CLASSES, InfraClass},
    control::Lock::Shared,
    scenario::{Deadline, HCP_NAMESPACE, until},
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use libtest_mimic::{Failed, Trial};

use crate::{controller_process::VOLUME_BYTES, fixture::Fixture, trial::trial};

/// How much of its serial a virtio disk shows, in bytes (`VIRTIO_BLK_ID_BYTES`).
const VIRTIO_SERIAL: usize = 20;

/// What the test writes on one worker and reads on the other.
const WRITTEN: &str = "kept";

/// One combination.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How the guest uses the disk: `ext4`, `xfs`, or `block`.
    content: &'static str,
    /// `scsi` or `virtio`.
    bus: &'static str,
    /// The infra StorageClass, which decides access mode, volume mode and binding of the infra volume.
    class: &'static str,
    through: Through,
    list: List,
}

/// The list of tests that a shape is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// It is the first with one of its choices.
    Short,
    /// Its choices are in the short list each, in other pairs.
    Long,
}

/// Who calls the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    /// The sidecars and kubelet, for pods.
    Pods,
    /// The test.
    Calls,
    /// Another test has this shape: the six steps.
    SixSteps,
}

const fn shape(
    content: &'static str,
    bus: &'static str,
    class: &'static str,
    through: Through,
    list: List,
) -> Shape {
    Shape { content, bus, class, through, list }
}

/// The combinations. Three contents by four kinds of infra volume make twelve, and twelve are enough for every pair.
const SHAPES: [Shape; 12] = [
    shape("ext4", "scsi", "block-immediate", Through::SixSteps, List::Short),
    shape("block", "scsi", "block-wffc", Through::Pods, List::Long),
    shape("xfs", "virtio", "block-immediate", Through::Pods, List::Long),
    shape("xfs", "virtio", "block-rwo-wffc", Through::Calls, List::Short),
    shape("block", "scsi", "block-rwo", Through::Calls, List::Short),
    shape("ext4", "virtio", "block-rwo", Through::Calls, List::Long),
    shape("block", "virtio", "filesystem-rwx", Through::Pods, List::Short),
    shape("xfs", "scsi", "filesystem-rwx-wffc", Through::Calls, List::Long),
    shape("ext4", "scsi", "filesystem-rwx", Through::Pods, List::Long),
    shape("ext4", "scsi", "filesystem-rwo-wffc", Through::Calls, List::Short),
    shape("xfs", "scsi", "filesystem-rwo", Through::Calls, List::Long),
    shape("block", "virtio", "filesystem-rwo-wffc", Through::Calls, List::Long),
];

/// A trial per shape, and the one about the table.
pub fn trials() -> Vec<Trial> {
    let every_pair = Trial::test("shapes::every_pair_of_two_choices_is_run", || {
        every_pair().map_err(|error| Failed::from(format!("{error:#}")))
    });
    let shapes = SHAPES.into_iter().filter_map(|shape| {
        let name = format!("shapes::{}_on_{}_from_{}", shape.content, shape.bus, shape.class);
        let trial = match shape.through {
            Through::Pods => trial(name, Shared, move |fixture| pods::run(fixture, shape)),
            Through::Calls => trial(name, Shared, move |fixture| calls::run(fixture, shape)),
            Through::SixSteps => return None,
        };
        Some(trial.with_ignored_flag(shape.list == List::Long))
    });
    shapes.chain([every_pair]).collect()
}

/// Every value of one choice meets every value of each other in some shape, and is in the short list.
fn every_pair() -> Result<()> {
    let choices: Vec<[String; 4]> = SHAPES.iter().map(Shape::choices).collect::<Result<_>>()?;
    let short: Vec<[String; 4]> =
        SHAPES.iter().filter(|shape| shape.list == List::Short).map(Shape::choices).collect::<Result<_>>()?;
    for value in choices.iter().flatten() {
        let met = short.iter().flatten().any(|choice| choice == value);
        ensure!(met, "expected a shape of the short list with {value}, saw none");
    }
    for (one, other) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        let values = |index: usize| choices.iter().map(|choice| &choice[index]).collect::<BTreeSet<_>>();
        for a in values(one) {
            for b in values(other) {
                let met = choices.iter().any(|choice| choice[one] == *a && choice[other] == *b);
                ensure!(met, "expected a shape with {a} and {b}, saw none");
            }
        }
    }
    Ok(())
}

impl Shape {
    fn infra_class(&self) -> Result<&'static InfraClass> {
        CLASSES
            .iter()
            .find(|class| class.name == self.class)
            .with_context(|| format!("no class {}", self.class))
    }

    /// Content, bus, modes of the infra volume, when it binds.
    fn choices(&self) -> Result<[String; 4]> {
        let class = self.infra_class()?;
        Ok([self.content.into(), self.bus.into(), format!("{:?}", class.modes[0]), class.binding.into()])
    }

    fn volume_mode(&self) -> &'static str {
        if self.content == "block" { "Block" } else { "Filesystem" }
    }

    /// Checks that the infra claim is as the shape wants: otherwise the test would prove something else.
    async fn check_infra(&self, fixture: &Fixture, volume: &str) -> Result<()> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(fixture.infra.clone(), HCP_NAMESPACE);
        let spec = claims.get(volume).await?.spec.context("the infra claim has no spec")?;
        let modes = spec.access_modes.unwrap_or_default();
        let has = (modes.first().map(String::as_str), spec.volume_mode.as_deref());
        let (access, volume) = self.infra_class()?.modes[0];
        ensure!(
            has == (Some(access), Some(volume)),
            "expected the infra claim to be {access} {volume}, saw {has:?}"
        );
        ensure!(
            spec.storage_class_name.as_deref() == Some(self.class),
            "expected the class {}, saw {:?}",
            self.class,
            spec.storage_class_name
        );
        Ok(())
    }

    /// The worker has one disk with the serial as its bus shows it, and it is as large as was asked for.
    async fn check_disk(&self, fixture: &Fixture, worker: &str, serial: &str) -> Result<()> {
        let shown = if self.bus == "virtio" { &serial[..VIRTIO_SERIAL] } else { serial };
        until(&format!("one disk {shown} in {worker}"), Deadline::Reaction, async || {
            let output = fixture.control.run(worker, &["lsblk", "-bndo", "SERIAL,SIZE"]).await?;
            let words = output.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let sizes: Vec<i64> = words
                .filter(|words| words.first() == Some(&shown))
                .filter_map(|words| words.get(1)?.parse().ok())
                .collect();
            Ok(match sizes[..] {
                [size] if size >= VOLUME_BYTES => Ok(()),
                _ => Err(format!("disks of {sizes:?} bytes have it; there are {:?}", output.stdout)),
            })
        })
        .await
    }
}
