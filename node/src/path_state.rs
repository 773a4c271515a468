//! What lies at a path, as a value that planners decide on.

use std::fmt;

use crate::device_number::DeviceNumber;

/// What lies at a path, symbolic links not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathState {
    /// Nothing.
    Missing,
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its size.
        bytes: u64,
    },
    /// A block device node.
    Node(DeviceNumber),
    /// Anything else, as text.
    Other(&'static str),
    /// It answers as mounts of lost disks and servers do, as text.
    Corrupted(String),
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("nothing"),
            Self::Directory => f.write_str("a directory"),
            Self::File { .. } => f.write_str("a file"),
            Self::Node(number) => write!(f, "a device node ({number})"),
            Self::Other(what) => f.write_str(what),
            Self::Corrupted(reason) => write!(f, "a broken mount ({reason})"),
        }
    }
}
