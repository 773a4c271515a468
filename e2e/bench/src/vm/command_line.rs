//! QEMU's command line. Pure: the same machine gives the same arguments, on which a saved state depends.

use std::path::Path;

use super::{
    accelerator::Accelerator,
    machine_spec::{Boot, MachineSpec},
};
use crate::sandbox::network::{PREFIX_LENGTH, SECOND_PREFIX_LENGTH, second};

/// PCIe root ports for hotplugged virtio disks. KubeVirt leaves a VM at least as many as its volumes need; eight are
/// more than any test plugs at once.
pub(super) const ROOT_PORTS: u8 = 8;

/// The root port after those: the disk with the driver's image.
pub(super) const DRIVER_PORT: u8 = ROOT_PORTS;

/// The virtio-scsi controller's id.
pub(super) const SCSI_CONTROLLER: &str = "scsi0";

/// The guest agent's well-known port name (QEMU documentation, "QEMU Guest Agent").
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// PCI slot of the first root port; below it the chipset and the devices named here find their own places.
const FIRST_ROOT_PORT_SLOT: u8 = 0x10;

/// The kernel's part of every command line. `panic=-1` with `-no-reboot` ends QEMU when the guest's kernel dies.
/// Mitigations protect nobody in an emulated guest and cost a second of the boot. Without KVM the kernel distrusts the TSC and reads
/// the HPET instead: an emulated device and a system call for each look at the clock, at which an idle kubelet and containerd spent
/// most of a processor.
pub(super) const KERNEL_WORDS: &str =
    "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable clocksource=tsc";

/// Files of one machine that QEMU opens.
pub(super) struct Files<'a> {
    pub(super) monitor: &'a Path,
    pub(super) agent: &'a Path,
    pub(super) console: &'a Path,
}

/// The id of the root port at `place`.
pub(super) fn root_port(place: u16) -> String {
    format!("port{place}")
}

/// What every QEMU of the bench starts with: nothing that isn't asked for.
pub(super) fn bare(accelerator: Accelerator, memory_mib: u32) -> Vec<String> {
    let memory = memory_mib.to_string();
    let mut words = accelerator.words();
    words.extend(["-M", "q35", "-smp", "1", "-m", &memory].map(String::from));
    words.extend(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"].map(String::from));
    words
}

/// The arguments of `qemu-system-x86_64` for `spec`.
pub(super) fn arguments(spec: &MachineSpec, accelerator: Accelerator, files: &Files<'_>) -> Vec<String> {
    let mut words = bare(accelerator, spec.memory_mib);
    let mut add = |flag: &str, value: String| words.extend([flag.to_string(), value]);
    add("-name", spec.name.clone());
    add("-qmp", format!("unix:{},server=on,wait=off", option(files.monitor)));
    add("-device", format!("virtio-scsi-pci,id={SCSI_CONTROLLER}"));
    for port in 0..=DRIVER_PORT {
        let (id, chassis, slot) = (root_port(port.into()), port + 1, FIRST_ROOT_PORT_SLOT + port);
        add("-device", format!("pcie-root-port,id={id},chassis={chassis},slot={chassis},addr={slot:#x}"));
    }
    match &spec.boot {
        Boot::Nothing => {
            // Removal through ACPI, q35's default, waits for a guest; a PCIe slot that nobody has powered does not.
            add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off".into());
            words.push("-S".into());
        }
        Boot::Worker { image, mac, address, tap, state } => {
            add("-kernel", image.kernel.display().to_string());
            add("-initrd", image.initrd.display().to_string());
            let second = format!("{}/{SECOND_PREFIX_LENGTH}", second(*address));
            let addresses = format!("bench.address={address}/{PREFIX_LENGTH} bench.address={second}");
            add("-append", format!("{KERNEL_WORDS} {addresses}"));
            add("-serial", format!("file:{}", files.console.display()));
            add("-chardev", format!("socket,id=agent,path={},server=on,wait=off", option(files.agent)));
            add("-device", "virtio-serial-pci".into());
            add("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT}"));
            add("-netdev", format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
            add("-device", format!("virtio-net-pci,netdev=net0,romfile=,mac={mac}"));
            add("-device", "virtio-rng-pci".into());
            let root = option(&image.root);
            add(
                "-blockdev",
                format!("driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={root}"),
            );
            add("-device", "virtio-blk-pci,drive=root,serial=bench-root".into());
            if let Some(state) = state {
                add("-incoming", format!("exec:zstd -dcq {}", shell_word(state)));
            }
        }
    }
    words
}

/// A path as a value in one of QEMU's comma-separated options: commas doubled.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A path as one word of the shell that QEMU's `exec:` starts.
pub(super) fn shell_word(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::artifact::worker_image::WorkerImage;

    fn words(boot: Boot) -> String {
        let spec = MachineSpec { name: "m".into(), memory_mib: 512, boot };
        let files = Files { monitor: "/r/qmp".as_ref(), agent: "/r/a,b".as_ref(), console: "/l/c".as_ref() };
        arguments(&spec, Accelerator::Tcg, &files).join(" ")
    }

    fn worker(state: Option<&str>) -> Boot {
        let image = WorkerImage {
            kernel: "/k".into(),
            initrd: "/i".into(),
            root: "/r".into(),
            driver: Some("/d".into()),
            key: "key".into(),
        };
        Boot::Worker {
            image,
            mac: "52:54:00:77:00:0b".into(),
            address: Ipv4Addr::new(10, 77, 0, 11),
            tap: "tap-worker-1".into(),
            state: state.map(Into::into),
        }
    }

    #[test]
    fn a_machine_without_guest_stays_stopped_and_has_both_buses() {
        let words = words(Boot::Nothing);
        assert!(
            words.contains(" -S") && words.contains("virtio-scsi-pci,id=scsi0") && words.contains("id=port7")
        );
        assert!(!words.contains("-kernel") && !words.contains("tap"));
    }

    #[test]
    fn a_worker_is_addressed_on_its_command_line_and_never_has_user_networking() {
        let words = words(worker(None));
        assert!(words.contains("bench.address=10.77.0.11/24 bench.address=fd00:10:77::11/64"), "{words}");
        assert!(words.contains("ifname=tap-worker-1"));
        assert!(!words.contains("-netdev user") && !words.contains("-incoming"));
        assert!(words.contains("path=/r/a,,b,"), "{words}");
    }

    #[test]
    fn a_saved_state_is_quoted_for_the_shell() {
        let words = words(worker(Some("/it's/state")));
        assert!(words.ends_with(r"-incoming exec:zstd -dcq '/it'\''s/state'"), "{words}");
    }
}
