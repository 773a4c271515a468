//! `ControllerExpandVolumeRequest`.

use csi_proto::v1::ControllerExpandVolumeRequest;

use super::{Capacity, Invalid, required, sharing_of};

/// A volume to expand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand {
    /// Volume id.
    pub volume: String,
    /// Least size of the disk in bytes; 0 = as it is.
    pub required: u64,
    /// Largest size of the disk in bytes.
    pub limit: Option<u64>,
}

impl Expand {
    /// Reads a `ControllerExpandVolumeRequest`.
    pub fn read(request: &ControllerExpandVolumeRequest) -> Result<Self, Invalid> {
        let volume = required("volume id", &request.volume_id)?;
        let range = request.capacity_range.as_ref().ok_or(Invalid::Missing("capacity range"))?;
        if range.required_bytes == 0 && range.limit_bytes == 0 {
            return Err(Invalid::Missing("capacity range"));
        }
        let Capacity { required, limit, .. } = Capacity::read(Some(range))?;
        // Optional; csi-resizer sends that of the PersistentVolume.
        request.volume_capability.as_ref().map(sharing_of).transpose()?;
        Ok(Self { volume, required, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi_proto::v1::{
        CapacityRange, VolumeCapability,
        volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    };
    use rstest::rstest;

    fn request(required_bytes: i64, limit_bytes: i64) -> ControllerExpandVolumeRequest {
        ControllerExpandVolumeRequest {
            volume_id: "pvc-1".into(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
            ..Default::default()
        }
    }

    fn capability(access_type: Option<AccessType>, mode: i32) -> VolumeCapability {
        VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) }
    }

    #[rstest]
    #[case(2, 0, 2, None)]
    #[case(2, 2, 2, Some(2))]
    #[case(0, 2, 0, Some(2))]
    fn a_range_is_read(
        #[case] required: i64,
        #[case] limit: i64,
        #[case] least: u64,
        #[case] most: Option<u64>,
    ) {
        let expected = Expand { volume: "pvc-1".into(), required: least, limit: most };
        assert_eq!(Expand::read(&request(required, limit)), Ok(expected));
    }

    #[rstest]
    #[case::nothing(request(0, 0), "capacity range is missing")]
    #[case::no_range(ControllerExpandVolumeRequest { capacity_range: None, ..request(2, 0) }, "capacity range is missing")]
    #[case::limit_below_required(request(2, 1), "not satisfiable")]
    #[case::negative(request(-1, 0), "not satisfiable")]
    #[case::negative_limit(request(2, -1), "not satisfiable")]
    #[case::no_id(ControllerExpandVolumeRequest { volume_id: String::new(), ..request(2, 0) }, "volume id is missing")]
    #[case::long_id(ControllerExpandVolumeRequest { volume_id: "v".repeat(129), ..request(2, 0) }, "longer than")]
    fn what_can_not_be_met_is_refused(#[case] request: ControllerExpandVolumeRequest, #[case] text: &str) {
        let error = Expand::read(&request).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }

    #[rstest]
    #[case::block(capability(Some(AccessType::Block(BlockVolume {})), Mode::MultiNodeMultiWriter.into()), true)]
    #[case::mount(capability(Some(AccessType::Mount(MountVolume::default())), Mode::SingleNodeWriter.into()), true)]
    #[case::shared_filesystem(
        capability(Some(AccessType::Mount(MountVolume::default())), Mode::MultiNodeMultiWriter.into()), false
    )]
    #[case::no_type(capability(None, Mode::SingleNodeWriter.into()), false)]
    #[case::unknown_mode(capability(Some(AccessType::Block(BlockVolume {})), 0), false)]
    #[case::new_mode(capability(Some(AccessType::Block(BlockVolume {})), 99), false)]
    fn a_capability_is_one_that_the_driver_serves(
        #[case] capability: VolumeCapability,
        #[case] served: bool,
    ) {
        let request = ControllerExpandVolumeRequest { volume_capability: Some(capability), ..request(2, 0) };
        assert_eq!(Expand::read(&request).is_ok(), served);
    }
}
