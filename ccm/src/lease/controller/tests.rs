use super::*;
use crate::fake_api::FakeApi;
use serde_json::{Value, json};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/ccm";
const TIMING: Timing =
    Timing { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) };

fn lease(api: &FakeApi) -> Lease {
    Lease::new(&GuestCluster::over(api.client()), "kube-system", "ccm", "me".into(), TIMING).unwrap()
}

fn held_by(holder: &str, version: &str) -> Value {
    // Nobody can read this time, and the duration is 68 years.
    json!({"metadata": {"name": "ccm", "resourceVersion": version},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": i32::MAX,
            "renewTime": "9999-12-31T23:59:59.999999Z"}})
}

/// The API server shows this holder, and accepts our writes.
fn shows(api: &FakeApi, holder: &str, version: &str) {
    api.answer(&format!("GET {PATH}"), 200, held_by(holder, version));
    api.answer(&format!("PUT {PATH}"), 200, held_by("me", &format!("{version}-ours")));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_waited_for_again_and_taken_when_it_expires() {
    let api = FakeApi::default();
    shows(&api, "", "1");
    let mut held = lease(&api).acquire().await;
    shows(&api, "thief", "2");
    let lost = held.keep().await;
    assert!(matches!(&lost, LeaseError::Taken(by) if by == "thief"), "{lost}");

    let began = Instant::now();
    let _held = held.lost().acquire().await;
    let waited = began.elapsed().as_secs();
    assert!((120..125).contains(&waited), "the thief's 68 years count for 2 min, not for {waited} s");
    let written = api.made("PUT").pop().unwrap().body;
    assert_eq!(written["spec"]["holderIdentity"], "me");
    assert_ne!(written["spec"]["renewTime"], "9999-12-31T23:59:59.999999Z");
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_the_own_lease_is_taken_at_once() {
    let api = FakeApi::default();
    shows(&api, "", "1");
    let mut held = lease(&api).acquire().await;
    api.answer(&format!("GET {PATH}"), 503, json!({}));
    let lost = held.keep().await;
    assert!(matches!(lost, LeaseError::NotRenewed(_)), "{lost}");
    shows(&api, "me", "1-ours");
    let began = Instant::now();
    let _held = held.lost().acquire().await;
    assert_eq!(began.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_thief_that_renews_is_respected() {
    let api = FakeApi::default();
    shows(&api, "", "1");
    let mut held = lease(&api).acquire().await;
    shows(&api, "thief", "2");
    held.keep().await;
    let renewals = async {
        for version in 3.. {
            sleep(Duration::from_secs(30)).await;
            shows(&api, "thief", &version.to_string());
        }
    };
    tokio::select! {
        _ = held.lost().acquire() => panic!("two replicas lead"),
        () = renewals => unreachable!("it goes on for ever"),
        () = sleep(Duration::from_mins(30)) => {}
    }
}
