//! What `make demo` shows: the six steps of a volume, then the three of a load balancer.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::{
    bring_up::Bench,
    paths,
    report::{Console, Progress, Table, human, mebibytes},
    scenario::{HCP_NAMESPACE, STORAGE_CLASS, SixSteps, Step, ThreeSteps, three_steps},
};

/// The guest namespace of both flows.
const NAMESPACE: &str = "default";

/// Shows both flows, step by step as they come, and how to look around.
pub(super) async fn show(bench: &Arc<Bench>, console: &Console) -> Result<()> {
    Box::pin(six_steps(bench)).await?;
    Box::pin(three_steps(bench)).await?;
    println!("Memory of each part\n\n{}", memory(bench));
    console.step(&format!("every step was seen; logs: {}", bench.run.logs().display()));
    let bench = paths::program()?;
    let bench = bench.strip_prefix(paths::repository()).unwrap_or(&bench).display();
    println!(
        "To look around: `{bench} up` brings a bench up that stays, `{bench} shell` opens a shell in it, where\n\
         `kubectl --context infra -n {HCP_NAMESPACE} get vmi,dv,pvc` and `kubectl --context tenant get pods,pvc,pv,volumeattachments`\n\
         work; `{bench} worker worker-1 -- lsblk` looks into a worker, `{bench} logs` lists the logs, `{bench} down` ends it."
    );
    Ok(())
}

/// Shows the six steps, then the chain.
async fn six_steps(bench: &Bench) -> Result<()> {
    let workers = bench.workers();
    let (first, last) = (workers.first().context("no worker")?, workers.last().context("no worker")?);
    let flow = SixSteps {
        infra: bench.clusters.infra.client.clone(),
        guest: bench.clusters.tenant.client.clone(),
        namespace: NAMESPACE,
        name: "demo",
        storage_class: STORAGE_CLASS,
        first_worker: &first.name,
        second_worker: &last.name,
    };
    println!("\nOne guest PVC reaches one pod (seconds since the claim was created)\n");
    let steps = flow.run(&|step, detail, at| println!("  {:>6}  {:<52}  {detail}", human(at), title(step)));
    let chain = Box::pin(steps).await?;
    println!("\nThe chain, while the first pod ran\n\n{chain}");
    Ok(())
}

/// Shows the three steps.
async fn three_steps(bench: &Bench) -> Result<()> {
    let workers = bench.workers();
    let flow = ThreeSteps {
        infra: bench.clusters.infra.client.clone(),
        guest: bench.clusters.tenant.client.clone(),
        namespace: NAMESPACE,
        name: "demo-web",
        worker: &workers.first().context("no worker")?.name,
    };
    println!("\nA client reaches one pod through a load balancer (seconds since the Service was created)\n");
    let steps = flow.run(&|step, detail, at| {
        println!("  {:>6}  {:<52}  {detail}", human(at), title_of_three(step));
    });
    Box::pin(steps).await?;
    println!();
    Ok(())
}

fn title_of_three(step: three_steps::Step) -> &'static str {
    match step {
        three_steps::Step::GuestService => "1  a LoadBalancer Service in the guest",
        three_steps::Step::InfraService => "2  a Service in infra mirrors it",
        three_steps::Step::Address => "   the guest's Service shows infra's address",
        three_steps::Step::Answer => "3  a pod in the VM answers a client at that address",
        three_steps::Step::Deleted => "   the Service is deleted, nobody answers",
    }
}

fn title(step: Step) -> &'static str {
    match step {
        Step::GuestClaim => "1  a PersistentVolumeClaim in the guest",
        Step::DataVolume => "2  a DataVolume in infra mirrors it",
        Step::InfraVolume => "3  infra storage provisioned a PersistentVolume",
        Step::Hotplug => "4  the disk is plugged into the worker's VM, Ready",
        Step::GuestVolume => "5  the guest's PersistentVolume is bound",
        Step::FirstPod => "6  a pod in the VM wrote a file",
        Step::Unplugged => "   the pod is gone, the disk unplugged",
        Step::SecondPod => "   a new pod read the file",
        Step::Deleted => "   the claim is deleted, infra is clean",
    }
}

fn memory(bench: &Bench) -> Table {
    let mut table = Table::new(["part", "resident"]);
    let mut total = 0;
    for part in bench.supervisor.list() {
        let rss = part.rss_kib.unwrap_or_default();
        total += rss;
        table.row([part.name, mebibytes(rss)]);
    }
    table.row(["all".to_owned(), mebibytes(total)]);
    table
}
