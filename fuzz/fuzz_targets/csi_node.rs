//! Requests of the CSI Node service: the first byte chooses the RPC, the rest is the message. What is accepted names only
//! paths below the root, a serial that one disk can have, and options that do not change what is mounted.
#![no_main]

use std::path::{Component, Path};

use csi_proto::v1;
use fuzz::{assert_bounded, chosen};
use libfuzzer_sys::fuzz_target;
use node::{
    mount_options::MountOptions,
    request::{Access, Capability, ExpandRequest, PublishRequest, RemoveRequest, StageRequest, StatsRequest},
};
use prost::Message;

fuzz_target!(|input: &[u8]| {
    let Some((rpc, message)) = chosen(input) else { return };
    match rpc {
        b's' => {
            if let Some(stage) = read::<v1::NodeStageVolumeRequest, StageRequest>(message) {
                assert_plain(&stage.staging);
                assert_mountable(&stage.capability);
                assert!(stage.serial.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
        b'p' => {
            if let Some(publish) = read::<v1::NodePublishVolumeRequest, PublishRequest>(message) {
                assert_plain(&publish.target);
                publish.staging.iter().for_each(|path| assert_plain(path));
                assert_mountable(&publish.capability);
            }
        }
        b'u' => {
            if let Some(unstage) = read::<v1::NodeUnstageVolumeRequest, RemoveRequest>(message) {
                assert_plain(&unstage.path);
            }
        }
        b'r' => {
            if let Some(unpublish) = read::<v1::NodeUnpublishVolumeRequest, RemoveRequest>(message) {
                assert_plain(&unpublish.path);
            }
        }
        b't' => {
            if let Some(stats) = read::<v1::NodeGetVolumeStatsRequest, StatsRequest>(message) {
                assert!(!stats.volume.is_empty() && !stats.path.as_os_str().is_empty());
            }
        }
        b'e' => {
            if let Some(expand) = read::<v1::NodeExpandVolumeRequest, ExpandRequest>(message) {
                expand.staging.iter().for_each(|path| assert_plain(path));
                assert!(i64::try_from(expand.required).is_ok(), "{expand:?}");
            }
        }
        _ => {}
    }
});

fn read<M: Message + Default, T: TryFrom<M, Error = node::Error>>(message: &[u8]) -> Option<T> {
    match T::try_from(M::decode(message).ok()?) {
        Ok(read) => Some(read),
        Err(error) => {
            let status = tonic::Status::from(error);
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
            assert_bounded(status.message());
            None
        }
    }
}

fn assert_plain(path: &Path) {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    assert!(path.is_absolute() && plain && path.file_name().is_some(), "{}", path.display());
    assert!(!path.as_os_str().as_encoded_bytes().contains(&0), "{}", path.display());
}

/// Options that were accepted are accepted again as they are printed, and mean the same.
fn assert_mountable(capability: &Capability) {
    let Access::Filesystem { options, .. } = &capability.access else { return };
    let printed = options.to_string();
    let again = MountOptions::parse(&[printed.as_str()]).expect("printed options are accepted");
    let words = |options: &MountOptions| {
        options.data.iter().filter(|word| *word != "defaults").cloned().collect::<Vec<_>>()
    };
    assert_eq!((&again.flags, words(&again)), (&options.flags, words(options)), "{printed:?}");
    let refused = ["bind", "rbind", "move", "remount", "loop"];
    assert!(!options.data.iter().any(|word| refused.contains(&word.as_str())), "{printed:?}");
}
