//! What one half of the driver writes and the other half reads. Installed clusters hold these values in their
//! `PersistentVolumes` and Nodes, so they never change.

use std::fmt;

/// Key of the volume context: the serial of the disk, by which the node finds it.
pub const SERIAL: &str = "serial";
/// Key of the volume context: the bus of the disk. Only the controller reads it; the node finds a disk on any bus.
pub const BUS: &str = "bus";

/// Key of the volume context: the filesystem type, where the `StorageClass` names it by the older parameter and the
/// capability does not have it.
pub const FILESYSTEM: &str = "fsType";

/// Key of the volume context: when a volume was made that is to hold a filesystem and was made blank, in seconds since
/// 1970. Volumes with other content, block volumes, and volumes of versions before do not have it.
pub const BLANK_SINCE: &str = "blankSince";
/// Key of the volume context: `true` where the `StorageClass` allows to format data of an unknown kind. Only volumes that
/// were made blank have it.
pub const ALLOW_FORMAT_NONZERO: &str = "allowFormatNonzero";
/// Key of the volume context: `true` where the volume was restored or cloned and is to hold a filesystem. Volumes of versions before
/// do not have it.
pub const COPIED: &str = "copied";
/// The value of [`ALLOW_FORMAT_NONZERO`] and [`COPIED`].
pub const TRUE: &str = "true";

/// The id of a node: `<namespace>/<vm>`, as kubevirt/csi-driver writes it. The node gives it, the controller reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    namespace: String,
    vm: String,
}

impl NodeId {
    /// `None` where either half can't be the name of an object.
    pub fn new(namespace: &str, vm: &str) -> Option<Self> {
        let id = || Self { namespace: namespace.to_owned(), vm: vm.to_owned() };
        (is_name(namespace) && is_name(vm)).then(id)
    }

    /// Reads an id; `None` where it has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, vm) = text.split_once('/')?;
        Self::new(namespace, vm)
    }

    /// The namespace of the VM.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.vm)
    }
}

/// Characters of Kubernetes object names; a slash would make an id ambiguous.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = NodeId::new("hcp-1", "worker.0").unwrap();
        assert_eq!(id.to_string(), "hcp-1/worker.0");
        assert_eq!(NodeId::parse(&id.to_string()), Some(id));
    }

    #[rstest]
    #[case("")]
    #[case("worker")]
    #[case("/worker")]
    #[case("hcp/")]
    #[case("hcp/a/b")]
    #[case("hcp/a b")]
    fn another_form_is_no_id(#[case] text: &str) {
        assert_eq!(NodeId::parse(text), None);
    }
}
