//! Before a gRPC server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::Ordering,
    time::Duration,
};

use csi_proto::v1::{GetPluginInfoRequest, ProbeRequest, identity_client::IdentityClient};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::servers::Plugin;
use crate::{Action, Address, GrpcProxy, Matcher, Reply, Rule};

const SOON: Duration = Duration::from_secs(10);
const METHOD: &str = "GetPluginInfo";

struct Fixture {
    proxy: GrpcProxy,
    plugin: Plugin,
    client: IdentityClient<Channel>,
    _folder: TempDir,
}

impl Fixture {
    async fn new(tcp: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let (real, front) = (folder.path().join("real.sock"), folder.path().join("front.sock"));
        let plugin = Plugin::default();
        plugin.serve(&real);
        let place =
            if tcp { Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) } else { Address::Unix(front) };
        let proxy = GrpcProxy::start(place, Address::Unix(real)).await.unwrap();
        let endpoint = match proxy.place() {
            Address::Unix(path) => Endpoint::try_from(format!("unix:{}", path.display())),
            Address::Tcp(address) => Endpoint::try_from(format!("http://{address}")),
        };
        let client = IdentityClient::new(endpoint.unwrap().connect().await.unwrap());
        Self { proxy, plugin, client, _folder: folder }
    }

    async fn name(&self) -> Result<String, Status> {
        let answer = self.client.clone().get_plugin_info(GetPluginInfoRequest {}).await?;
        Ok(answer.into_inner().name)
    }

    fn calls(&self) -> u32 {
        self.plugin.calls.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn answers_and_trailers_pass_over_a_unix_socket_and_over_tcp() {
    for tcp in [false, true] {
        let fixture = Fixture::new(tcp).await;
        assert_eq!(fixture.name().await.unwrap(), "real");
        let status = fixture.client.clone().probe(ProbeRequest {}).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "words of the plugin"));
        assert_eq!(fixture.proxy.faults().calls(&Matcher::of_method("Probe")).len(), 1);
    }
}

#[tokio::test]
async fn an_answer_in_its_place_is_a_grpc_status() {
    let fixture = Fixture::new(false).await;
    let action = Action::Answer(Reply::grpc(8, "nothing left"));
    let guard = fixture.proxy.faults().add(Rule::once(Matcher::of_method(METHOD), action));
    let status = fixture.name().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "nothing left"));
    assert_eq!((guard.count(), fixture.calls()), (1, 0));
}

#[tokio::test]
async fn a_lost_reply_breaks_the_connection_and_the_next_call_makes_another() {
    let fixture = Fixture::new(true).await;
    for (action, calls) in [(Action::LoseReply, 1), (Action::Cut, 0)] {
        let before = fixture.calls();
        let _guard = fixture.proxy.faults().add(Rule::once(Matcher::of_method(METHOD), action));
        let status = fixture.name().await.unwrap_err();
        // What a sidecar's own library makes of a broken connection is UNAVAILABLE; tonic says UNKNOWN for some.
        assert!(matches!(status.code(), Code::Unavailable | Code::Unknown), "{status:?}");
        assert_eq!(fixture.calls() - before, calls);
        assert_eq!(fixture.name().await.unwrap(), "real");
    }
}

#[tokio::test]
async fn a_frozen_call_does_not_hold_up_others_of_its_connection() {
    let fixture = Fixture::new(false).await;
    let guard = fixture.proxy.faults().add(Rule::once(Matcher::of_method(METHOD), Action::FreezeBefore));
    let (answer, ()) = tokio::join!(fixture.name(), async {
        timeout(SOON, guard.caught(1)).await.unwrap();
        let probe = timeout(SOON, fixture.client.clone().probe(ProbeRequest {})).await.unwrap();
        assert_eq!(probe.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(fixture.calls(), 0);
        drop(guard);
    });
    assert_eq!(answer.unwrap(), "real");
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable() {
    let fixture = Fixture::new(false).await;
    assert_eq!(fixture.name().await.unwrap(), "real");
    let away = fixture.proxy.faults().away();
    assert!(fixture.name().await.is_err());
    drop(away);
    assert_eq!(fixture.name().await.unwrap(), "real");
}
