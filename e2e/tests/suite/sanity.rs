//! csi-sanity against the real sockets: the controller's on this machine, the node plugin's inside the worker. Its directories
//! are made, removed and checked in the worker, by commands that the test passes to it.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use bench::command::goal::Plan;
use tokio::process::Command;

use crate::{
    controller_process::{Controller, VOLUME_BYTES},
    fixture::Fixture,
    ginkgo::{Report, State},
    node_socket::NodeSocket,
};

tests! {
    OneWorker:
        mounted_volumes;
    OneWorker, long:
        block_volumes;
}

/// csi-sanity's messages for a capability that the driver does not advertise: the only reasons for which a test may be skipped.
/// The last is its message for a node that names no limit of volumes (`max_volumes_per_node`).
const NOT_ADVERTISED: [&str; 5] = [
    "not supported",
    "not implemented",
    "No storage-class-specific",
    "Service does not have",
    "testnodevolumeattachlimit not enabled",
];

/// What csi-sanity does in the worker, one shell script each; `$1` is the path.
const COMMANDS: [(&str, &str); 3] = [
    ("create", "mkdir -p \"$1\" && echo \"$1\""),
    ("remove", "rmdir \"$1\" 2>/dev/null || [ ! -e \"$1\" ]"),
    (
        "check",
        "if [ -f \"$1\" ]; then echo file; elif [ -d \"$1\" ]; then echo directory; \
         elif [ -e \"$1\" ]; then echo other; else echo not_found; fi",
    ),
];

/// Mounted volumes.
async fn mounted_volumes(fixture: Fixture) -> Result<()> {
    run(&fixture, "mount").await
}

/// Raw block volumes.
async fn block_volumes(fixture: Fixture) -> Result<()> {
    run(&fixture, "block").await
}

async fn run(fixture: &Fixture, access_type: &str) -> Result<()> {
    let worker = fixture.worker()?;
    // It counts all snapshots twice, and other tests make and delete some meanwhile.
    let controller = Controller::of_own_guest(fixture, access_type).await?;
    let node = NodeSocket::connect(fixture, worker).await?;

    let folder = fixture.run.join("sanity").join(access_type);
    std::fs::create_dir_all(&folder)?;
    let commands = write_commands(&folder, worker)?;
    let report = folder.join("report.json");
    let program = Plan::read(&fixture.run)?.artifacts.programs.path("csi-sanity")?.to_path_buf();
    let log = fixture.run.join("logs").join(format!("csi-sanity-{access_type}.log"));
    let inside = format!("/var/lib/kubelet/sanity-{access_type}");
    node.run(&["mkdir", "-p", &inside]).await?;
    let output = std::fs::File::create(&log)?;
    let status = Command::new(program)
        .arg(format!("--csi.endpoint={}", node.address()))
        .arg(format!("--csi.controllerendpoint=unix://{}", controller.socket().display()))
        .arg(format!("--csi.mountdir={inside}/mount"))
        .arg(format!("--csi.stagingdir={inside}/staging"))
        .arg(format!("--csi.testvolumeaccesstype={access_type}"))
        .arg(format!("--csi.testvolumesize={VOLUME_BYTES}"))
        .args(["mount", "staging"].map(|path| format!("--csi.create{path}pathcmd={}", commands[0].display())))
        .args(["mount", "staging"].map(|path| format!("--csi.remove{path}pathcmd={}", commands[1].display())))
        .arg(format!("--csi.checkpathcmd={}", commands[2].display()))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .args(["--ginkgo.no-color", "--ginkgo.timeout=10m"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .status()
        .await
        .context("run csi-sanity")?;
    let outcome = Report::read(&report)
        .with_context(|| format!("expected a report, saw {status}; csi-sanity's log: {}", log.display()))?;
    let (failed, skipped) = (outcome.of(State::Failed), outcome.of(State::Skipped));
    let passed = outcome.of(State::Passed).len();
    fixture.figures.add(
        &format!("csi-sanity 5.6, {access_type}"),
        format!("{passed} passed, {} failed, {} skipped", failed.len(), skipped.len()),
        "skipped: what is not advertised",
    )?;
    ensure!(
        failed.is_empty(),
        "expected no failed test, saw {}; csi-sanity's log: {}\n  {}",
        failed.len(),
        log.display(),
        failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
    );
    let unexpected: Vec<String> = skipped
        .iter()
        .filter(|skipped| !NOT_ADVERTISED.iter().any(|reason| skipped.message.contains(reason)))
        .map(ToString::to_string)
        .collect();
    ensure!(
        unexpected.is_empty(),
        "expected no skipped test of an advertised capability, saw {unexpected:?}"
    );
    ensure!(
        status.success() && passed > 0,
        "expected csi-sanity to succeed with passed tests, saw {status} and {passed} passed"
    );
    Ok(())
}

/// Writes the commands as scripts that reach into `worker` through the bench.
fn write_commands(folder: &Path, worker: &str) -> Result<[PathBuf; 3]> {
    let bench = bench_program()?;
    let mut written = Vec::new();
    for (name, script) in COMMANDS {
        let path = folder.join(name);
        let text = format!(
            "#!/bin/sh\nexec {} worker-inside {worker} -- sh -c '{script}' sh \"$1\"\n",
            bench.display()
        );
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        written.push(path);
    }
    written.try_into().ok().context("as many files as commands")
}

/// The bench's program, which cargo builds beside the folder of the tests.
fn bench_program() -> Result<PathBuf> {
    let test = std::env::current_exe().context("the path of this test")?;
    let folder = test.ancestors().nth(2).with_context(|| format!("{} is in no folder", test.display()))?;
    let bench = folder.join("bench");
    ensure!(bench.exists(), "expected {}, saw nothing there: `make bench` builds it", bench.display());
    Ok(bench)
}
