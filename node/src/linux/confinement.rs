//! What a program may do that reads the bytes of a guest's disk: with one of its bugs, whoever wrote the disk may run code in
//! it, as root. It has the capabilities that it needs and can gain no other, no network, and bounded memory.
//!
//! Capabilities and the network namespace belong to a thread, and what a thread starts has the thread's. So [`enter`] is for
//! a thread that does nothing else than to start one program and to wait for it (`docs/decisions/0021-the-programs-are-confined.md`).

use std::{io, process::Child};

use nix::{
    sched::{CloneFlags, unshare},
    sys::sysinfo::sysinfo,
};
use rustix::{
    process::{Pid, Resource, Rlimit, getrlimit, prlimit},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs},
};

/// Address space of blkid, which reads a few MiB.
const PROBE_MEMORY: u64 = 256 << 20;
/// Address space of every other program on a worker with less memory than this. e2fsck takes most: its maps grow with the blocks and
/// inodes of the filesystem, to some GiB for some ten TiB. A volume that it can't check is not mounted, so a worker with more
/// memory gives it that.
const MEMORY: u64 = 4 << 30;

/// The bounds of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    capabilities: CapabilitySet,
    memory: u64,
}

impl Confinement {
    /// Of a program that the node role runs. One that is not named needs no capability: all run as root, who owns the device
    /// nodes.
    pub fn of(program: &str) -> Self {
        let capabilities = match program {
            // BLKBSZSET. It runs on disks that are proved blank.
            "mkfs.xfs" => CapabilitySet::SYS_ADMIN,
            // XFS_IOC_FSGROWFSDATA. Pods own the root directory of their volume and may have closed it to others.
            "xfs_growfs" => CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH,
            // The kernel's `ext4_resize_begin`, and the root directory.
            "resize2fs" => CapabilitySet::SYS_RESOURCE | CapabilitySet::DAC_READ_SEARCH,
            _ => CapabilitySet::empty(),
        };
        Self {
            capabilities,
            memory: if program == "blkid" { PROBE_MEMORY } else { MEMORY.max(installed_memory()) },
        }
    }

    /// Most address space, in bytes.
    pub const fn memory(self) -> u64 {
        self.memory
    }

    /// Confines the calling thread, and what it starts, for good.
    ///
    /// # Errors
    /// The kernel keeps a capability: nothing must be started.
    pub fn enter(self) -> io::Result<()> {
        // A container that may not have namespaces made has no more of the network than the node role itself.
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            tracing::warn!(%error, "the filesystem programs have this container's network: no namespace can be made");
        }
        let kept = capabilities(None)?.permitted & self.capabilities;
        let inheritable = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
        // With this, root gains no capability by starting a program (capabilities(7), the kernel's `cap_bprm_creds_from_file`).
        Ok(set_no_new_privs(true)?)
    }

    /// Bounds a program that was just started, before it has read much: its memory, and that it leaves no image of that.
    ///
    /// # Errors
    /// The kernel refuses it: the program must not go on.
    pub fn bound(self, child: &Child) -> io::Result<()> {
        let pid = Some(Pid::from_child(child));
        for (resource, most) in [(Resource::As, self.memory()), (Resource::Core, 0)] {
            // The child has our limits. What they allow less of can't be raised.
            let own = getrlimit(resource);
            let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
            let limit = Rlimit { current: lower(own.current), maximum: lower(own.maximum) };
            match prlimit(pid, resource, limit) {
                // It has ended already.
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The worker's memory in bytes; 0 if the kernel does not tell.
fn installed_memory() -> u64 {
    sysinfo().map_or(0, |system| system.ram_total())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, process::Command, thread};

    use rstest::rstest;

    use super::*;

    /// What a program reads of itself that a thread has started for `program`.
    fn status_of(program: &'static str) -> (BTreeMap<String, String>, String, String) {
        let confined = thread::spawn(move || {
            Confinement::of(program).enter().unwrap();
            let read = |path: &str| {
                let output = Command::new("cat").arg(path).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            let link = Command::new("readlink").arg("/proc/self/ns/net").output().unwrap();
            (read("/proc/self/status"), read("/proc/self/net/dev"), String::from_utf8(link.stdout).unwrap())
        });
        let (status, devices, namespace) = confined.join().unwrap();
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        let fields = fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        (fields.collect(), devices, namespace.trim().to_owned())
    }

    #[rstest]
    #[case::probe("blkid", CapabilitySet::empty())]
    #[case::check("e2fsck", CapabilitySet::empty())]
    #[case::make_ext("mkfs.ext4", CapabilitySet::empty())]
    #[case::make_xfs("mkfs.xfs", CapabilitySet::SYS_ADMIN)]
    #[case::grow_ext("resize2fs", CapabilitySet::SYS_RESOURCE | CapabilitySet::DAC_READ_SEARCH)]
    #[case::grow_xfs("xfs_growfs", CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH)]
    #[case::unknown("anything", CapabilitySet::empty())]
    fn a_program_has_the_capabilities_that_it_needs_needs_root(
        #[case] program: &'static str,
        #[case] needed: CapabilitySet,
    ) {
        let own = capabilities(None).unwrap();
        assert!(own.permitted.contains(CapabilitySet::SYS_ADMIN), "the test needs root: {own:?}");
        let (status, devices, namespace) = status_of(program);
        // Some machines' root does not have all of them.
        let kept = format!("{:016x}", (needed & own.permitted).bits());
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status[set], kept, "{set} of {program}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} of {program}");
        }
        assert_eq!((status["NoNewPrivs"].as_str(), status["Uid"].split('\t').next()), ("1", Some("0")));
        let names: Vec<&str> =
            devices.lines().skip(2).filter_map(|line| line.trim().split(':').next()).collect();
        assert!(names.iter().all(|name| *name == "lo"), "{names:?}");
        assert_ne!(namespace, fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy());
        assert_eq!(capabilities(None).unwrap(), own, "only the thread that starts the program is confined");
    }

    #[test]
    fn only_what_reads_a_whole_filesystem_has_much_memory() {
        assert_eq!(Confinement::of("blkid").memory, PROBE_MEMORY);
        for program in ["e2fsck", "mkfs.ext4", "mkfs.xfs", "resize2fs", "xfs_growfs"] {
            let memory = Confinement::of(program).memory;
            assert!(
                memory >= MEMORY && memory >= installed_memory() && installed_memory() > 0,
                "{program}: {memory}"
            );
        }
    }
}
