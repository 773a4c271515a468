//! Converts requests from the wire and checks their shape, limits and parameters; reads no cluster. An id of another
//! form than ours is not an invalid request: the volume is found absent later.

mod expand;
mod invalid;
mod needs;
mod snapshots;
mod source;

use std::{collections::HashMap, fmt};

use csi_call::{Filesystem, contract, filesystems};
use csi_proto::v1::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability, volume_capability::AccessType,
};
use infra::ObjectName;

use crate::keys::{
    ALLOW_FORMAT_NONZERO, BUS, CLONE_METHOD, FILESYSTEM, Key, PARAMETERS, SERIAL, STORAGE_CLASS, TRUE,
    parameter, probably_meant,
};

pub(crate) use expand::Expand;
pub use invalid::Invalid;
pub(crate) use needs::Needs;
use needs::{needs, sharing_of};
pub(crate) use snapshots::{CreateSnapshot, ListSnapshots, read_delete_snapshot, read_get_snapshot};
pub use source::{CloneMethod, Source};

/// Longest string field (CSI specification, "Size Limits").
const MAX_STRING: usize = 128;
/// Largest map field: the sum of its keys and values (CSI specification, "Size Limits").
const MAX_MAP: usize = 4096;
/// Longest node id (CSI specification, `NodeGetInfoResponse`).
const MAX_NODE_ID: usize = 256;
/// Size if the CO asks for none. kubevirt/csi-driver passes 0 on, which CDI refuses (422).
const DEFAULT_SIZE: u64 = 1 << 30;
/// Longest serial that QEMU's SCSI disk shows; the UID of a `DataVolume` is exactly as long.
const MAX_SERIAL: usize = 36;
/// Keys with this prefix are the sidecars' own (names of claim and PersistentVolume, filesystem type, secrets).
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

/// Sizes that are computed here are multiples of this.
const MIB: u64 = 1 << 20;
/// A disk may be smaller than the size that was asked for by less than this part: CDI's `disk.img` was by 1.2 %
/// (kubevirt/containerized-data-importer#4024).
const MARGIN: u64 = 50;

/// Bus of a hotplugged disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// SCSI, the default.
    #[default]
    Scsi,
    /// virtio-blk: the guest sees 20 characters of the serial.
    Virtio,
}

impl Bus {
    /// As KubeVirt and the volume context write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scsi => "scsi",
            Self::Virtio => "virtio",
        }
    }

    fn parse(text: Option<&str>) -> Result<Self, Invalid> {
        match text {
            None | Some("" | "scsi") => Ok(Self::Scsi),
            Some("virtio") => Ok(Self::Virtio),
            Some(other) => Err(Invalid::Bus(other.to_owned())),
        }
    }
}

/// How many nodes may have the volume at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One node: every `SINGLE_NODE_*` mode.
    OneNode,
    /// Many nodes write to a block volume.
    ManyNodes,
}

/// The requested size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes to create; what the filesystem needs is in it.
    pub size: u64,
    /// Smallest size that satisfies the request, as the CO gave it. An existing volume is compared with it alone: an
    /// earlier version, or kubevirt/csi-driver, made it for the same request and knew nothing of what filesystems need.
    pub required: u64,
    /// Largest size that satisfies the request.
    pub limit: Option<u64>,
}

/// A volume to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Name that the CO chose.
    pub name: String,
    /// The requested size.
    pub capacity: Capacity,
    /// One node or many.
    pub sharing: Sharing,
    /// Infra storage class; `None` = infra's default.
    pub storage_class: Option<String>,
    /// Bus.
    pub bus: Bus,
    /// The filesystem of the parameter, where the capability has none.
    pub filesystem: Option<String>,
    /// Whether it is to hold a filesystem.
    pub holds_filesystem: bool,
    /// Whether data of an unknown kind on its new disk may be formatted.
    pub format_nonzero: bool,
    /// What to fill it with; `None` = nothing.
    pub source: Option<Source>,
    /// How to clone; `None` = as it fits.
    pub clone_method: Option<CloneMethod>,
}

/// The node of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeId {
    /// The name of a VM; the namespace before it is not read.
    Vm(ObjectName),
    /// Not an id that the node role gives.
    Unknown(String),
}

/// A volume to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Volume id.
    pub volume: String,
    /// Node.
    pub node: NodeId,
    /// One node or many.
    pub sharing: Sharing,
    /// Bus.
    pub bus: Bus,
    /// Serial of the volume context; `None` = the UID of the `DataVolume`.
    pub serial: Option<String>,
}

/// A volume to detach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublish {
    /// Volume id.
    pub volume: String,
    /// Node; `None` = all nodes.
    pub node: Option<NodeId>,
}

/// Capabilities to check.
#[derive(Clone, Debug, PartialEq)]
pub struct Validate {
    /// Volume id.
    pub volume: String,
    /// What the capabilities need; an error is the reason why the driver does not serve them.
    pub needs: Result<Needs, Invalid>,
}

impl Create {
    /// Reads a `CreateVolumeRequest`.
    pub fn read(request: &CreateVolumeRequest) -> Result<Self, Invalid> {
        let name = required("name", &request.name)?;
        map_within_limit("parameters", &request.parameters)?;
        let parameters = known_parameters("StorageClass", &PARAMETERS, &request.parameters)?;
        let default = parameters.get(FILESYSTEM).copied().unwrap_or(filesystems::DEFAULT);
        let Needs { sharing, filesystem } = needs(&request.volume_capabilities, default)?;
        let capacity = Capacity::read(request.capacity_range.as_ref())?;
        if !request.mutable_parameters.is_empty() {
            return Err(Invalid::MutableParameters);
        }
        Ok(Self {
            name,
            capacity: filesystem.map_or(Ok(capacity), |filesystem| capacity.for_filesystem(filesystem))?,
            sharing,
            holds_filesystem: filesystem.is_some(),
            format_nonzero: parameters
                .get(ALLOW_FORMAT_NONZERO)
                .map_or(Ok(false), |value| boolean(ALLOW_FORMAT_NONZERO, value))?,
            storage_class: parameters.get(STORAGE_CLASS).map(|class| (*class).to_owned()),
            bus: Bus::parse(parameters.get(BUS).copied())?,
            clone_method: parameters
                .get(CLONE_METHOD)
                .map(|method| CloneMethod::parse(method))
                .transpose()?,
            source: request.volume_content_source.as_ref().map(Source::read).transpose()?,
            filesystem: parameters
                .get(FILESYSTEM)
                .filter(|_| request.volume_capabilities.iter().any(names_no_filesystem))
                .map(|kind| (*kind).to_owned()),
        })
    }
}

/// The parameters that are ours and not empty, by the names that we give them. Another key is logged and has no effect, as
/// with kubevirt/csi-driver: the parameters of a class cannot be corrected, and older ones have keys of sidecars
/// and of other drivers. One that resembles ours is refused, because what it asks for would not be done.
fn known_parameters<'a>(
    class: &'static str,
    table: &[Key],
    given: &'a HashMap<String, String>,
) -> Result<HashMap<&'static str, &'a str>, Invalid> {
    let mut known = HashMap::new();
    for (key, value) in given {
        match (parameter(table, key), probably_meant(table, key)) {
            (Some(name), _) if known.insert(name, value.as_str()).is_some() => {
                return Err(Invalid::RepeatedParameter(name));
            }
            (Some(_), _) => {}
            (None, _) if key.starts_with(SIDECAR_PREFIX) => {}
            (None, Some(meant)) => return Err(Invalid::MistypedParameter { key: key.clone(), meant }),
            (None, None) => {
                tracing::warn!(
                    key,
                    "the {class} has a parameter that this driver does not know; it has no effect"
                );
            }
        }
    }
    known.retain(|_, value| !value.is_empty());
    Ok(known)
}

fn boolean(key: &'static str, value: &str) -> Result<bool, Invalid> {
    match value {
        TRUE => Ok(true),
        "false" => Ok(false),
        other => Err(Invalid::Boolean { key, value: other.to_owned() }),
    }
}

fn names_no_filesystem(capability: &VolumeCapability) -> bool {
    matches!(&capability.access_type, Some(AccessType::Mount(mount)) if mount.fs_type.is_empty())
}

impl Capacity {
    fn read(range: Option<&CapacityRange>) -> Result<Self, Invalid> {
        let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
        let unsatisfiable = || Invalid::Capacity { required, limit };
        let least = u64::try_from(required).map_err(|_| unsatisfiable())?;
        let most = u64::try_from(limit).map_err(|_| unsatisfiable())?;
        if most != 0 && most < least {
            return Err(unsatisfiable());
        }
        let most = (most != 0).then_some(most);
        let size = if least == 0 { most.map_or(DEFAULT_SIZE, |most| most.min(DEFAULT_SIZE)) } else { least };
        Ok(Self { size, required: least, limit: most })
    }

    /// With at least the size that mkfs needs, as long as the request allows that: a smaller volume would be bound and
    /// never mounted. Only the size of a new volume changes.
    fn for_filesystem(self, filesystem: Filesystem) -> Result<Self, Invalid> {
        let Filesystem { name, least_bytes: least } = filesystem;
        let with_margin = (least + least / MARGIN).next_multiple_of(MIB);
        let enough = self.size.max(with_margin);
        match self.limit {
            Some(limit) if limit < least => Err(Invalid::TooSmall { filesystem: name, least, limit }),
            limit => Ok(Self { size: limit.map_or(enough, |limit| enough.min(limit)), ..self }),
        }
    }

    /// Whether a volume of this size satisfies the request.
    pub fn admits(&self, size: u64) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }
}

/// What operations on the node are locked by: the same for all ids that name one VM.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(name) => name.fmt(f),
            Self::Unknown(id) => f.write_str(id),
        }
    }
}

impl NodeId {
    fn read(id: &str) -> Self {
        let vm = contract::NodeId::parse(id).and_then(|id| ObjectName::parse(id.vm()));
        vm.map_or_else(|| Self::Unknown(id.to_owned()), Self::Vm)
    }
}

impl Publish {
    /// Reads a `ControllerPublishVolumeRequest`.
    pub fn read(request: &ControllerPublishVolumeRequest) -> Result<Self, Invalid> {
        let volume = required("volume id", &request.volume_id)?;
        let node = NodeId::read(&node_id(&request.node_id)?);
        let capability = request.volume_capability.as_ref().ok_or(Invalid::Missing("volume capability"))?;
        let sharing = sharing_of(capability)?;
        if request.readonly {
            return Err(Invalid::Readonly);
        }
        map_within_limit("volume context", &request.volume_context)?;
        let serial = request.volume_context.get(SERIAL).filter(|serial| !serial.is_empty());
        if let Some(serial) = serial
            && !is_serial(serial)
        {
            return Err(Invalid::Serial(serial.clone()));
        }
        Ok(Self {
            volume,
            node,
            sharing,
            bus: Bus::parse(request.volume_context.get(BUS).map(String::as_str))?,
            serial: serial.cloned(),
        })
    }
}

impl Unpublish {
    /// Reads a `ControllerUnpublishVolumeRequest`.
    pub fn read(request: &ControllerUnpublishVolumeRequest) -> Result<Self, Invalid> {
        let volume = required("volume id", &request.volume_id)?;
        let node = match request.node_id.as_str() {
            "" => None,
            id => Some(NodeId::read(&node_id(id)?)),
        };
        Ok(Self { volume, node })
    }
}

/// Reads a `DeleteVolumeRequest`: the volume id.
pub fn read_delete(request: &DeleteVolumeRequest) -> Result<String, Invalid> {
    required("volume id", &request.volume_id)
}

impl Validate {
    /// Reads a `ValidateVolumeCapabilitiesRequest`.
    pub fn read(request: &ValidateVolumeCapabilitiesRequest) -> Result<Self, Invalid> {
        let volume = required("volume id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Invalid::Missing("volume capabilities"));
        }
        let default = request.volume_context.get(FILESYSTEM).map_or("", String::as_str);
        match needs(&request.volume_capabilities, default) {
            Err(missing @ Invalid::Missing(_)) => Err(missing),
            needs => Ok(Self { volume, needs }),
        }
    }
}

fn required(field: &'static str, value: &str) -> Result<String, Invalid> {
    match value.len() {
        0 => Err(Invalid::Missing(field)),
        1..=MAX_STRING => Ok(value.to_owned()),
        _ => Err(Invalid::TooLong { field, limit: MAX_STRING }),
    }
}

fn node_id(id: &str) -> Result<String, Invalid> {
    match id.len() {
        0 => Err(Invalid::Missing("node id")),
        1..=MAX_NODE_ID => Ok(id.to_owned()),
        _ => Err(Invalid::TooLong { field: "node id", limit: MAX_NODE_ID }),
    }
}

fn map_within_limit(field: &'static str, map: &HashMap<String, String>) -> Result<(), Invalid> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size <= MAX_MAP { Ok(()) } else { Err(Invalid::TooLong { field, limit: MAX_MAP }) }
}

fn is_serial(serial: &str) -> bool {
    serial.len() <= MAX_SERIAL && serial.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b))
}

#[cfg(test)]
mod tests;
