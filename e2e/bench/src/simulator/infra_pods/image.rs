//! The images that infra's nodes can run, by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Container;

/// Images by name (no tag, no digest).
pub type Images = BTreeMap<String, Image>;

/// The `PATH` of a program that comes without an image.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A program of the bench, which runs over the host's `/usr` as if that were its image.
    Program(PathBuf),
    /// A real image, unpacked.
    Layers {
        /// The folder with its layers' content.
        root: PathBuf,
        /// What its containers run, inside.
        entry_point: PathBuf,
        /// The `PATH` that it sets.
        search_path: String,
    },
}

impl Image {
    /// The folder that is the container's root, if the image has one.
    pub(super) fn root(&self) -> Option<&Path> {
        match self {
            Self::Program(_) => None,
            Self::Layers { root, .. } => Some(root),
        }
    }

    /// The `PATH` of its containers.
    pub(super) fn search_path(&self) -> &str {
        match self {
            Self::Program(_) => SEARCH_PATH,
            Self::Layers { search_path, .. } => search_path,
        }
    }

    /// What `container` runs: a file inside the image, for a program without an image a file of the host, whatever path
    /// the container's command names.
    pub(super) fn program<'a>(&'a self, container: &'a Container) -> &'a Path {
        match (self, container.command.iter().flatten().next()) {
            (Self::Program(program), _) => program,
            (Self::Layers { .. }, Some(command)) => Path::new(command),
            (Self::Layers { entry_point, .. }, None) => entry_point,
        }
    }
}

/// The name of an image without tag and digest.
pub fn image_name(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    name[last..].find(':').map_or(name, |colon| &name[..last + colon])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_has_no_tag() {
        for image in [
            "r.local:5000/a/b",
            "r.local:5000/a/b:v1",
            "r.local:5000/a/b@sha256:00",
            "r.local:5000/a/b:v1@sha256:00",
        ] {
            assert_eq!(image_name(image), "r.local:5000/a/b");
        }
        assert_eq!(image_name("busybox:1"), "busybox");
    }

    #[test]
    fn a_command_replaces_the_entry_point() {
        let image =
            Image::Layers { root: "/r".into(), entry_point: "/bin/x".into(), search_path: "/bin".into() };
        let mut container = Container::default();
        assert_eq!(image.program(&container), Path::new("/bin/x"));
        container.command = Some(vec!["/bin/y".into(), "z".into()]);
        assert_eq!(image.program(&container), Path::new("/bin/y"));
        assert_eq!(Image::Program("/host/x".into()).program(&container), Path::new("/host/x"));
    }
}
