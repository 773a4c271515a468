//! Operations behind a real server on a real socket: deadline, callers that hang up, one operation per volume, panics
//! and the stop.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use csi_call::{Deadline, Operation, Operations, Scope, Unanswered};
use csi_proto::v1::{
    self as csi,
    node_client::NodeClient,
    node_server::{Node, NodeServer},
};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// A volume whose staging panics.
const PANICS: &str = "pvc-panics";

/// An error of the service under test.
struct Refused(Status);

impl From<Unanswered> for Refused {
    fn from(unanswered: Unanswered) -> Self {
        Self(Status::new(unanswered.code(), unanswered.to_string()))
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        refused.0
    }
}

/// `NodeStageVolume` works until it is released; nothing else is served.
#[derive(Clone)]
struct Service {
    operations: Operations,
    entered: Arc<Notify>,
    release: Arc<Semaphore>,
    staged: Arc<AtomicUsize>,
}

impl Service {
    async fn stage(&self, request: Request<csi::NodeStageVolumeRequest>) -> Result<(), Status> {
        let deadline = Deadline::read(request.metadata());
        let volume = request.into_inner().volume_id;
        let lock = self
            .operations
            .in_flight()
            .lock("NodeStageVolume", &volume, Scope::Volume, deadline)
            .map_err(|busy| Status::aborted(busy.to_string()))?;
        let operation = Operation::new(deadline, Some(&lock));
        let (service, reports) = (self.clone(), operation.clone());
        let work = async move {
            reports.report("formatting sda");
            service.entered.notify_one();
            service.release.acquire().await.unwrap().forget();
            assert_ne!(volume, PANICS, "the test wants it");
            service.staged.fetch_add(1, Ordering::SeqCst);
            Ok::<(), Refused>(())
        };
        Ok(self.operations.run(&operation, Some(lock), work).await?)
    }
}

fn not_served<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("only NodeStageVolume is served"))
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        self.stage(request).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        not_served()
    }

    async fn node_publish_volume(
        &self,
        _: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        not_served()
    }

    async fn node_unpublish_volume(
        &self,
        _: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        not_served()
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        not_served()
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        not_served()
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        not_served()
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        not_served()
    }
}

struct Fixture {
    service: Service,
    client: NodeClient<Channel>,
    _directory: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("csi.sock");
        let service = Service {
            operations: Operations::default(),
            entered: Arc::default(),
            release: Arc::new(Semaphore::new(0)),
            staged: Arc::default(),
        };
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = Server::builder().add_service(NodeServer::new(service.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let endpoint = Endpoint::try_from(format!("unix://{}", path.display())).unwrap();
        let client = NodeClient::new(endpoint.connect().await.unwrap());
        Self { service, client, _directory: directory }
    }

    async fn stage(&self, volume: &str, timeout: Option<Duration>) -> Result<(), Status> {
        let mut request =
            Request::new(csi::NodeStageVolumeRequest { volume_id: volume.into(), ..Default::default() });
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        self.client.clone().node_stage_volume(request).await.map(drop)
    }

    /// Waits until the work of a call has begun.
    async fn entered(&self) {
        timeout(PATIENCE, self.service.entered.notified()).await.expect("the work begins");
    }

    /// Lets one piece of work end.
    fn release(&self) {
        self.service.release.add_permits(1);
    }

    /// Waits until no operation has a volume.
    async fn idle(&self) {
        let idle = async {
            while self.service.operations.in_flight().oldest().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, idle).await.expect("the lock is released");
    }

    fn staged(&self) -> usize {
        self.service.staged.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn the_answer_comes_before_the_callers_time_is_over_and_names_the_last_report() {
    let fixture = Fixture::new().await;
    let (timeout, began) = (Duration::from_secs(1), Instant::now());
    let status = fixture.stage("pvc-1", Some(timeout)).await.unwrap_err();
    let took = began.elapsed();
    // tonic's own answer, sent when the time is over, has another code and no reason.
    assert_eq!(
        (status.code(), status.message()),
        (Code::DeadlineExceeded, "not finished in time: formatting sda")
    );
    assert!(took >= timeout * 8 / 10 && took < timeout, "{took:?}");

    fixture.release();
    fixture.idle().await;
    assert_eq!(fixture.staged(), 1, "the work went on without its caller");
}

#[tokio::test]
async fn a_caller_that_hangs_up_cancels_nothing_and_its_volume_stays_locked_until_the_work_ends() {
    let fixture = Arc::new(Fixture::new().await);
    let caller = Arc::clone(&fixture);
    let call = tokio::spawn(async move { caller.stage("pvc-1", None).await });
    fixture.entered().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let status = fixture.stage("pvc-1", None).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);

    fixture.release();
    fixture.idle().await;
    assert_eq!(fixture.staged(), 1);
    fixture.release();
    fixture.stage("pvc-1", None).await.unwrap();
}

#[tokio::test]
async fn a_volume_has_one_operation_at_a_time_and_another_volume_is_free() {
    let fixture = Arc::new(Fixture::new().await);
    let caller = Arc::clone(&fixture);
    let first = tokio::spawn(async move { caller.stage("pvc-1", None).await });
    fixture.entered().await;
    let status = fixture.stage("pvc-1", None).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    let text = "NodeStageVolume of volume pvc-1 has been under way for 0 s (formatting sda)";
    assert!(status.message().contains(text), "{status}");

    let caller = Arc::clone(&fixture);
    let other = tokio::spawn(async move { caller.stage("pvc-2", None).await });
    fixture.entered().await;
    fixture.release();
    fixture.release();
    first.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    assert_eq!(fixture.staged(), 2);
}

#[tokio::test]
async fn a_panic_is_an_answer_that_is_not_final_and_frees_the_volume() {
    let fixture = Fixture::new().await;
    fixture.release();
    let status = fixture.stage(PANICS, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("internal error"), "{status}");
    fixture.idle().await;
}

#[tokio::test]
async fn a_stop_answers_each_caller_and_waits_for_the_work() {
    let fixture = Arc::new(Fixture::new().await);
    let caller = Arc::clone(&fixture);
    let call = tokio::spawn(async move { caller.stage("pvc-1", None).await });
    fixture.entered().await;
    fixture.service.operations.close();
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("the driver is being stopped, try again"), "{status}");
    assert!(!fixture.service.operations.shutdown(Duration::from_millis(20)).await, "it is still at work");
    fixture.release();
    assert!(fixture.service.operations.shutdown(PATIENCE).await);
    assert_eq!(fixture.staged(), 1);
}
