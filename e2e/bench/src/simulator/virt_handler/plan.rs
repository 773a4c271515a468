//! Decides what virt-handler does next with a VMI. Pure: no clock, no client, no machine.
//!
//! Follows `pkg/virt-handler/vm.go` of KubeVirt 1.9.0, functions `sync`, `calculateVmPhaseForStatusReason`,
//! `updateHotplugVolumeStatus`, `canUpdateToMounted`, `canUpdateToUnmounted`, `checkVolumesForMigration`. One machine is
//! read, acted upon, read again, and then the status is written, as virt-handler does.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::vmi::{ClaimInfo, Vmi, VolumeStatus};

/// A moment at which a fault can hold virt-handler up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Before the machine is started.
    Start,
    /// Before a volume is `MountedToPod`.
    Mount,
    /// Before the disk is plugged into the machine.
    Plug,
    /// After the disk was plugged, before the volume is `Ready`: the guest sees a disk that the infra does not vouch for.
    Ready,
    /// Before the disk is unplugged from the machine.
    Unplug,
    /// Before a plugged disk grows with its claim. Held for ever, it is a KubeVirt before 1.8.2 without its gate `ExpandDisks`: a
    /// plugged disk keeps its size.
    Grow,
    /// After the disk was unplugged, before the volume is `UnMountedFromPod`.
    Unmount,
    /// Before a machine that migrates belongs to its target node.
    HandOver,
}

/// The machine of a VMI as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Domain {
    /// There is none.
    #[default]
    Absent,
    /// It runs.
    Alive(Alive),
    /// It ended without being asked to.
    Ended {
        /// The guest shut down, as opposed to a crash.
        clean: bool,
    },
}

/// A machine that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// The volumes whose disks it has by hotplug.
    pub plugged: BTreeSet<String>,
    /// The addresses of its guest, the first first, and the MAC of its interface; `None` when no guest runs in it.
    pub addresses: Option<(Vec<IpAddr>, String)>,
    /// Whether its guest agent answers.
    pub agent: bool,
}

/// Something to do to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Start it.
    Start,
    /// Shut it down.
    Stop,
    /// Plug this volume's disk.
    Plug(String),
    /// Unplug this volume's disk.
    Unplug(String),
}

/// Something to write into the VMI's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new phase.
    Phase(Phase),
    /// A new state of one volume.
    Volume {
        /// The volume's name.
        name: String,
        /// Its new phase; `None` leaves phase, reason and message.
        phase: Option<VolumePhase>,
        /// Its new target.
        target: String,
    },
}

/// The phases that virt-handler writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The machine runs.
    Running,
    /// It shut down.
    Succeeded,
    /// It crashed, or went away.
    Failed,
}

/// The volume phases that virt-handler writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumePhase {
    /// In the launcher pod, not yet in the machine.
    MountedToPod,
    /// In the machine.
    Ready,
    /// No longer in the launcher pod.
    UnMountedFromPod,
}

/// Asked before each step with the volume's name (empty for the machine itself); false holds the step back.
pub type Gate<'a> = dyn FnMut(Step, &str) -> bool + 'a;

/// What to do to the machine now.
pub fn acts(vmi: &Vmi, domain: &Domain, may: &mut Gate<'_>) -> Vec<Act> {
    let over = vmi.deleting || vmi.is_final();
    match domain {
        Domain::Alive(_) | Domain::Ended { .. } if over => vec![Act::Stop],
        Domain::Alive(alive) if vmi.status.phase == "Running" => disk_acts(vmi, alive, may),
        Domain::Absent if !over && vmi.status.phase == "Scheduled" && may(Step::Start, "") => {
            vec![Act::Start]
        }
        _ => Vec::new(),
    }
}

/// What the status has to say now.
pub fn changes(vmi: &Vmi, domain: &Domain, may: &mut Gate<'_>) -> Vec<Change> {
    if vmi.is_final() {
        return Vec::new();
    }
    let phase = match (vmi.status.phase.as_str(), domain) {
        ("Scheduled", Domain::Alive(_)) if !vmi.deleting => Some(Phase::Running),
        ("Running", Domain::Absent) if vmi.deleting => Some(Phase::Succeeded),
        ("Running", Domain::Ended { clean }) => Some(if *clean { Phase::Succeeded } else { Phase::Failed }),
        ("Running", Domain::Absent) | ("Scheduled", Domain::Ended { .. }) => Some(Phase::Failed),
        ("Scheduled", Domain::Absent) if vmi.deleting => Some(Phase::Failed),
        _ => None,
    };
    let mut changes: Vec<Change> = phase.map(Change::Phase).into_iter().collect();
    if let ("Running" | "Scheduled", Domain::Alive(alive), false) =
        (vmi.status.phase.as_str(), domain, vmi.deleting)
    {
        changes.extend(volume_changes(vmi, alive, may));
    }
    changes
}

/// Why the VMI can't be migrated, as virt-handler words it; `None` when it can. Only the volumes are checked.
pub fn not_migratable(vmi: &Vmi) -> Option<String> {
    const RULE: &str =
        "live migration requires that all PVCs must be shared (using ReadWriteMany access mode)";
    vmi.spec.volumes.iter().find_map(|volume| {
        let claim = volume.claim()?;
        let status = vmi.status.volumes.iter().find(|status| status.name == volume.name);
        match status.and_then(|status| status.persistent_volume_claim_info.as_ref()) {
            None => Some(format!("cannot migrate VMI: Unable to determine if PVC {claim} is shared, {RULE}")),
            Some(info) if info.access_modes.iter().any(|mode| mode == "ReadWriteMany") => None,
            Some(_) => Some(format!("cannot migrate VMI: PVC {claim} is not shared, {RULE}")),
        }
    })
}

/// Whether a migration copies disks: some volume is not a PVC, or is a PVC that is not shared.
pub fn migrates_blocks(vmi: &Vmi) -> bool {
    vmi.spec.volumes.iter().any(|volume| volume.claim().is_none()) || not_migratable(vmi).is_some()
}

/// The volumes whose plugged disks follow the size of their claim: those that are wanted and whose claim is known
/// (`isPVCBacked`).
pub fn growing<'a>(vmi: &'a Vmi, domain: &'a Domain) -> impl Iterator<Item = (&'a str, &'a ClaimInfo)> {
    let alive = match domain {
        Domain::Alive(alive) if vmi.status.phase == "Running" && !vmi.deleting => Some(alive),
        _ => None,
    };
    let plugged = move |name: &str| alive.is_some_and(|alive| alive.plugged.contains(name));
    vmi.status
        .volumes
        .iter()
        .filter(move |status| plugged(&status.name) && vmi.volume(&status.name).is_some())
        .filter_map(|status| Some((status.name.as_str(), status.persistent_volume_claim_info.as_ref()?)))
}

fn disk_acts(vmi: &Vmi, alive: &Alive, may: &mut Gate<'_>) -> Vec<Act> {
    let mut acts = Vec::new();
    for volume in &alive.plugged {
        if vmi.volume(volume).is_none() && may(Step::Unplug, volume) {
            acts.push(Act::Unplug(volume.clone()));
        }
    }
    for status in hotplugged(vmi) {
        let mounted = matches!(status.phase.as_str(), "MountedToPod" | "Ready");
        let wanted =
            vmi.volume(&status.name).is_some() && vmi.disk(&status.name).is_some_and(|d| can_plug(d.bus()));
        if wanted && mounted && !alive.plugged.contains(&status.name) && may(Step::Plug, &status.name) {
            acts.push(Act::Plug(status.name.clone()));
        }
    }
    acts
}

fn volume_changes(vmi: &Vmi, alive: &Alive, may: &mut Gate<'_>) -> Vec<Change> {
    let mut used: BTreeSet<String> = vmi.status.volumes.iter().map(|s| s.target.clone()).collect();
    let mut changes = Vec::new();
    for status in &vmi.status.volumes {
        let next = match &status.hotplug_volume {
            Some(_) => next_hotplugged(vmi, status, alive, may),
            None if status.target.is_empty() && vmi.disk(&status.name).is_some() => Some((None, true)),
            None => None,
        };
        let Some((phase, has_target)) = next else { continue };
        let target = if !has_target {
            String::new()
        } else if status.target.is_empty() {
            free_target(vmi.disk(&status.name).map_or("", |disk| disk.bus()), &mut used)
        } else {
            status.target.clone()
        };
        changes.push(Change::Volume { name: status.name.clone(), phase, target });
    }
    changes
}

/// The next phase of a hotplugged volume and whether it then has a target; `None` when nothing is to be written.
fn next_hotplugged(
    vmi: &Vmi,
    status: &VolumeStatus,
    alive: &Alive,
    may: &mut Gate<'_>,
) -> Option<(Option<VolumePhase>, bool)> {
    let name = &status.name;
    let in_spec = vmi.volume(name).is_some();
    let plugged = alive.plugged.contains(name);
    let pod_ready = status.hotplug_volume.as_ref().is_some_and(|hotplug| !hotplug.attach_pod_uid.is_empty());
    match (in_spec, plugged, status.phase.as_str()) {
        // Successfully attached: one event.
        (true, true, "Ready") if !status.target.is_empty() => None,
        (true, true, _) => may(Step::Ready, name).then_some((Some(VolumePhase::Ready), true)),
        (true, false, "" | "Bound" | "Pending" | "AttachedToNode") if pod_ready => {
            may(Step::Mount, name).then_some((Some(VolumePhase::MountedToPod), false))
        }
        (false, false, "Ready" | "MountedToPod" | "AttachedToNode") if may(Step::Unmount, name) => {
            Some((Some(VolumePhase::UnMountedFromPod), false))
        }
        // The target is the domain's: it goes with the disk, whatever the phase.
        (_, false, _) if !status.target.is_empty() => Some((None, false)),
        // Still plugged and no longer wanted: the domain still has it, so the status does not change.
        _ => None,
    }
}

fn hotplugged(vmi: &Vmi) -> impl Iterator<Item = &VolumeStatus> {
    vmi.status.volumes.iter().filter(|status| status.hotplug_volume.is_some())
}

/// Only virtio and scsi disks are hotplugged (`getAttachedDisks` of virt-launcher); others wait for ever.
fn can_plug(bus: &str) -> bool {
    matches!(bus, "virtio" | "scsi")
}

/// The first free device name of the bus, as the domain converter gives it. It is not the name that the guest gives.
fn free_target(bus: &str, used: &mut BTreeSet<String>) -> String {
    let prefix = if bus == "virtio" { "vd" } else { "sd" };
    // One more name than there are in use: at least one is free.
    let names = (0_u32..).map(|index| format!("{prefix}{}", letters(index))).take(used.len() + 1);
    let name = names.into_iter().find(|name| !used.contains(name)).expect("more names than volumes");
    used.insert(name.clone());
    name
}

/// `a` to `z`, then `aa`: the kernel's numbering of disks.
fn letters(mut index: u32) -> String {
    let mut name = Vec::new();
    loop {
        name.push(b'a' + u8::try_from(index % 26).expect("a remainder of 26 fits a byte"));
        if index < 26 {
            break;
        }
        index = index / 26 - 1;
    }
    name.reverse();
    String::from_utf8(name).expect("ASCII letters")
}

#[cfg(test)]
mod tests;
