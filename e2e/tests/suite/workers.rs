//! What two workers restored from one saved state must not share.

use anyhow::{Context, Result, ensure};

use crate::fixture::Fixture;

tests! {
    Shared:
        two_restored_from_one_state_differ;
}

/// What would be equal in two clones that were not renewed: the kernel's random numbers (and with them filesystem UUIDs),
/// the machine id, the network card's address; and the clock would be the saved one.
const IDENTITY: &str = "cat /proc/sys/kernel/random/uuid /etc/machine-id /sys/class/net/eth0/address; \
     truncate -s 8M /tmp/blank && mkfs.ext4 -q -F /tmp/blank && blkid -o value -s UUID /tmp/blank; rm -f /tmp/blank";

/// Seconds by which a guest's clock may differ from the machine's.
const CLOCK_TOLERANCE: i64 = 60;

/// Two workers differ in everything that identifies a machine, and both know the time.
async fn two_restored_from_one_state_differ(fixture: Fixture) -> Result<()> {
    let workers = fixture.control.workers().await?;
    let mut seen: Vec<String> = Vec::new();
    for worker in &workers {
        let output = fixture.control.run(worker, &["sh", "-c", IDENTITY]).await?;
        ensure!(output.code == 0, "expected the identity of {worker}, saw {}", output.stderr);
        let lines: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
        ensure!(lines.len() == 4, "expected 4 lines of {worker}, saw {lines:?}");
        for line in lines {
            ensure!(
                !seen.contains(&line),
                "expected {worker} to have an identity of its own, saw {line} in another worker too"
            );
            seen.push(line);
        }
        let clock = fixture.control.run(worker, &["date", "-u", "+%s"]).await?.stdout;
        let clock: i64 =
            clock.trim().parse().with_context(|| format!("expected a time of {worker}, saw {clock:?}"))?;
        let now = jiff::Timestamp::now().as_second();
        ensure!(
            (clock - now).abs() < CLOCK_TOLERANCE,
            "expected the clock of {worker} to be right, saw it {} s off",
            clock - now
        );
    }
    Ok(())
}
