//! What restored clones of one saved state must not share.

use std::{net::Ipv4Addr, time::SystemTime};

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;

use super::guest::Guest;
use crate::sandbox::network::{PREFIX_LENGTH, SECOND_PREFIX_LENGTH, second};

/// Fresh entropy for a restored guest: twice the kernel generator's state (see `guest/reseed.c`).
const ENTROPY_BYTES: usize = 64;

/// Gives a restored worker what is its own: random numbers, the time, a machine id, its card's address and its network address.
///
/// The guest's driver keeps the saved card's address, whatever QEMU's new command line contains, hence the `ip link`.
pub(super) async fn refresh(guest: &Guest, mac: &str, address: Ipv4Addr) -> Result<()> {
    let entropy = host_entropy().await?;
    guest.check(&["/usr/local/sbin/reseed"], Some(&entropy)).await.context("reseed the guest")?;
    guest.set_time(SystemTime::now()).await?;
    let script = r#"
        tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id &&
        ip link set eth0 down && ip addr flush dev eth0 && ip link set eth0 address "$1" &&
        ip addr add "$2" dev eth0 && ip addr add "$3" dev eth0 && ip link set eth0 up"#;
    let first = format!("{address}/{PREFIX_LENGTH}");
    let second = format!("{}/{SECOND_PREFIX_LENGTH}", second(address));
    guest
        .check(&["/bin/sh", "-c", script, "sh", mac, &first, &second], None)
        .await
        .context("readdress the guest")?;
    Ok(())
}

async fn host_entropy() -> Result<Vec<u8>> {
    let mut bytes = vec![0; ENTROPY_BYTES];
    let mut source = tokio::fs::File::open("/dev/urandom").await.context("open /dev/urandom")?;
    source.read_exact(&mut bytes).await.context("read /dev/urandom")?;
    Ok(bytes)
}
