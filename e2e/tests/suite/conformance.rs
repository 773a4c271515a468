//! Kubernetes' own tests of a CSI driver, "External Storage", with the definition in `deploy/conformance` that users run them with.
//!
//! The pods' images are plugged into the workers as a disk for the time of a test, since no registry can be reached.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bench::{
    command::{conformance, goal::Plan},
    control::Request,
    paths,
    report::Table,
    vm::{Bus, Disk, DiskFaults},
};
use tokio::process::Command;

use crate::{
    fixture::{Fixture, setting},
    ginkgo::{Report, Spec, State},
};

tests! {
    Shared:
        a_choice_of_specs;
    Exclusive, long:
        every_spec;
}

/// What Kubernetes calls the tests of one driver.
const DRIVER: &str = "External Storage \\[Driver: csi.kubevirt.io\\]";

/// What users run the tests with. Beside it there is a definition for block volumes that two nodes use at once: QEMU locks the file of a
/// disk, so the bench can't run those tests.
const DEFINITION: &str = "deploy/conformance/testdriver.yaml";

/// A run of the tests.
struct Run {
    /// Names its log and its table.
    name: &'static str,
    /// A regular expression after the driver's name.
    focus: String,
    /// How many processes run them at the same time.
    processes: u8,
    /// After this it is a failure.
    limit: Duration,
}

/// A filesystem and a block device; each pod takes half a minute of an emulated processor, and these need the fewest. Snapshots,
/// clones and expansion in the short list are our own tests of them. Each is one test.
const CHOICE: [&str; 2] = [
    "Dynamic PV \\(block volmode\\)\\] volumes should store data",
    "Dynamic PV \\(default fs\\)\\] subPath should support existing single file",
];

/// The tests that the bench can't run.
const LEFT_OUT: [&str; 2] = [
    // They stop kubelet over ssh, which no worker has. Our own tests kill the node role and reset workers.
    "\\[Disruptive\\]",
    // It installs a populator and a validator of other projects, whose images can't be made here.
    "any volume data source",
];

/// For what reasons Kubernetes' tests may leave themselves out: words of their messages. Any other fails the run, so that no capability
/// is lost unseen.
const REASONS: &[&str] = &[
    // Kubernetes has each test for all kinds of volumes, and tells those that make no sense only when they run.
    "does not support volume type",
    "Cluster doesn't support",
    "doesn't support ntfs",
    "doesn't work with pre-provisioned volume",
    "does not support Pre",
    "does not support Inline",
    "does not support CSIInline",
    "is ephemeral",
    "is not ephemeral",
    "Driver supports dynamic provisioning",
    "should be covered by block volume case",
    "Block volumes do not support mount options",
    "not valid for Block volume mode",
    "does not support non-filesystem volume mode",
    "not implemented",
    "for block mode",
    "raw block volumes",
    // What this driver does not have (`deploy/conformance/testdriver.yaml`).
    "does not support ROX access mode",
    "doesn't support RWX",
    "does not support topology",
    "storage capacity",
    "volume limits",
    "VolumeAttributesClass",
    "group snapshots",
    "snapshot metadata",
    "SELinuxMount",
    "performance test options",
];

/// Those that `make test` has time for.
async fn a_choice_of_specs(fixture: Fixture) -> Result<()> {
    let run = Run { name: "choice", focus: CHOICE.join("|"), processes: 2, limit: Duration::from_mins(10) };
    let report = specs(&fixture, &run).await?;
    let (passed, all) = (report.of(State::Passed).len(), report.specs.len());
    ensure!(
        passed == CHOICE.len() && all == passed,
        "expected each of {} to be one test that passes, saw {all}, of which {passed} passed",
        CHOICE.len()
    );
    Ok(())
}

/// All that apply to this driver.
async fn every_spec(fixture: Fixture) -> Result<()> {
    let run = Run {
        name: "all",
        focus: setting(conformance::FOCUS)?.unwrap_or_default(),
        processes: 3,
        limit: Duration::from_hours(4),
    };
    let report = specs(&fixture, &run).await?;
    ensure!(!report.of(State::Passed).is_empty(), "expected tests that pass, saw none");
    Ok(())
}

/// Runs the tests, writes their table, then checks it.
async fn specs(fixture: &Fixture, run: &Run) -> Result<Report> {
    let workers = fixture.control.workers().await?;
    let archive = Plan::read(&fixture.run)?.artifacts.conformance_images;
    for worker in &workers {
        import_images(fixture, worker, &archive).await?;
    }
    let report = execute(fixture, run).await?;
    for worker in &workers {
        remove_images(fixture, worker).await?;
    }
    let count = |state| report.of(state).len();
    let (passed, failed, skipped) = (count(State::Passed), report.of(State::Failed), count(State::Skipped));
    let table = conformance::table_file(&fixture.run, run.name);
    std::fs::write(&table, table_of(&report)).with_context(|| format!("write {}", table.display()))?;
    fixture.figures.add(
        &format!("Kubernetes External Storage, {}", run.name),
        format!("{passed} passed, {} failed, {skipped} skipped", failed.len()),
        "skipped: what the driver does not have",
    )?;
    ensure!(
        failed.is_empty(),
        "expected no failed test, saw {}; the table: {}\n  {}",
        failed.len(),
        table.display(),
        failed.iter().map(|spec| first_line(spec)).collect::<Vec<_>>().join("\n  ")
    );
    let unexpected: Vec<String> = report
        .of(State::Skipped)
        .into_iter()
        .filter(|spec| !REASONS.iter().any(|reason| spec.message.contains(reason)))
        .map(first_line)
        .collect();
    ensure!(unexpected.is_empty(), "expected known reasons for leaving tests out, saw also {unexpected:#?}");
    Ok(report)
}

/// Gives containerd of a worker the images of the tests' pods.
async fn import_images(fixture: &Fixture, worker: &str, archive: &Path) -> Result<()> {
    let name = format!("{}-{worker}", fixture.word);
    // QEMU locks the file of a disk that may be written.
    let image = fixture.run.join(format!("{name}.images"));
    std::fs::copy(archive, &image).with_context(|| format!("copy {}", archive.display()))?;
    let disk = Disk {
        name: name.clone(),
        image: image.clone(),
        bus: Bus::Virtio,
        serial: format!("images-{worker}"),
        faults: DiskFaults::default(),
        by_test: true,
    };
    let serial = disk.serial.clone();
    fixture.control.ask(&Request::PlugDisk { machine: worker.to_owned(), disk }).await?;
    let script = r#"
        tries=0
        until [ -b "$1" ]; do [ $((tries += 1)) -le 1500 ] || exit 4; usleep 20000; done
        exec ctr -n k8s.io images import --local --snapshotter overlayfs "$1""#;
    let device = format!("/dev/disk/by-id/virtio-{serial}");
    let output = fixture.control.run(worker, &["/bin/sh", "-c", script, "sh", &device]).await?;
    ensure!(output.code == 0, "{worker} does not import the images: {} {}", output.stdout, output.stderr);
    fixture.control.ask(&Request::UnplugDisk { machine: worker.to_owned(), name }).await?;
    std::fs::remove_file(&image).with_context(|| format!("remove {}", image.display()))
}

/// Frees the memory that the images take: they lie in a filesystem in the worker's memory.
async fn remove_images(fixture: &Fixture, worker: &str) -> Result<()> {
    // The part of their names that all images of Kubernetes' tests share.
    let script = "ctr -n k8s.io images ls -q | grep /e2e-test-images/ | xargs ctr -n k8s.io images rm --sync";
    let output = fixture.control.run(worker, &["/bin/sh", "-c", script]).await?;
    ensure!(output.code == 0, "{worker} does not remove the images: {} {}", output.stdout, output.stderr);
    Ok(())
}

/// One run of the program.
async fn execute(fixture: &Fixture, run: &Run) -> Result<Report> {
    let folder = fixture.run.join("conformance").join(run.name);
    std::fs::create_dir_all(&folder)?;
    let programs = Plan::read(&fixture.run)?.artifacts.programs;
    // ginkgo takes a program for tests by this ending.
    let tests = folder.join("external-storage.test");
    std::os::unix::fs::symlink(programs.path("external-storage")?, &tests)?;
    let log = fixture.run.join("logs").join(format!("conformance-{}.log", run.name));
    let output = std::fs::File::create(&log)?;
    let definition = paths::repository().join(DEFINITION);
    let began = Instant::now();
    let status = Command::new(programs.path("ginkgo")?)
        .arg("run")
        .arg(format!("--procs={}", run.processes))
        .arg(format!("--focus={DRIVER}.*({})", run.focus))
        .arg(format!("--skip={}", LEFT_OUT.join("|")))
        .arg(format!("--timeout={}s", run.limit.as_secs()))
        .arg(format!("--output-dir={}", folder.display()))
        .args(["--json-report=report.json", "--no-color", "--vv"])
        .arg(&tests)
        .arg("--")
        .arg(format!("-storage.testdriver={}", definition.display()))
        .arg(format!("-kubeconfig={}", paths::kubeconfig().display()))
        .arg("-context=tenant")
        .arg(format!("-kubectl-path={}", programs.path("kubectl")?.display()))
        .arg("-provider=skeleton")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .current_dir(&folder)
        .kill_on_drop(true)
        .status()
        .await
        .context("run ginkgo")?;
    let report = Report::read(&folder.join("report.json")).with_context(|| {
        let seconds = began.elapsed().as_secs();
        format!("expected a report, saw {status} after {seconds} s; the log: {}", log.display())
    })?;
    ensure!(
        status.success() || !report.of(State::Failed).is_empty(),
        "expected success or the name of a failed test, saw {status}; the log: {}",
        log.display()
    );
    Ok(report)
}

/// Failed and passed tests with their times, and the reasons of those that left themselves out.
fn table_of(report: &Report) -> String {
    let mut table = Table::new(["result", "time", "test", "why"]);
    for (state, word) in [(State::Failed, "failed"), (State::Passed, "passed")] {
        let mut specs = report.of(state);
        specs.sort_by(|one, other| one.name.cmp(&other.name));
        for spec in specs {
            let took = format!("{} s", spec.took.as_secs());
            let why = if state == State::Failed { summary(&spec.message) } else { String::new() };
            table.row([word.to_owned(), took, short_name(&spec.name), why]);
        }
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for spec in report.of(State::Skipped) {
        *reasons.entry(summary(&spec.message)).or_default() += 1;
    }
    let mut skipped = Table::new(["skipped", "why"]);
    for (reason, count) in reasons {
        skipped.row([count.to_string(), reason]);
    }
    let count = |state| report.of(state).len();
    format!(
        "{table}\n{skipped}\n{} passed, {} failed, {} skipped\n",
        count(State::Passed),
        count(State::Failed),
        count(State::Skipped)
    )
}

/// Without the words that all of them begin with.
fn short_name(name: &str) -> String {
    name.split_once("[Testpattern: ").map_or(name, |(_, rest)| rest).replacen("] ", ": ", 1)
}

fn first_line(spec: &Spec) -> String {
    format!("{}: {}", short_name(&spec.name), summary(&spec.message))
}

/// The first line of a message that says something.
fn summary(message: &str) -> String {
    message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
