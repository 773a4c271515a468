//! A kubeconfig. Making a client of it calls nothing, and no error shows a token, password or key of it.
#![no_main]

use std::{fs, path::PathBuf, sync::OnceLock};

use cluster::{ApiServer, Source, Unmetered};
use fuzz::text;
use kube::config::Kubeconfig;
use libfuzzer_sys::fuzz_target;
use serving::chain;

/// Stands for a token, a password or a key.
const SECRET: &str = "s3cr3t";

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    let parsed = Kubeconfig::from_yaml(text);
    if parsed.as_ref().is_ok_and(reaches_the_machine) {
        return;
    }
    let shows_names = parsed.is_ok_and(|read| has_secret_name(&read));
    let path = place();
    fs::write(path, text).expect("a file");
    let (setting, kubeconfig) = ("--kubeconfig", Some(path.clone()));
    let source = Source { cluster: "guest", setting, kubeconfig, address: String::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(ApiServer::open(source, Unmetered)) {
        let texts = [chain(&error), error.to_string(), format!("{error:?}")];
        assert!(shows_names || texts.iter().all(|shown| !shown.contains(SECRET)), "{texts:?}");
    }
});

/// The one file of this process.
fn place() -> &'static PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| tempfile::tempdir().expect("a folder").keep().join("kubeconfig"))
}

/// Such an input is not tried: it would run a program, or read a file without an end, that the fuzzer made up.
fn reaches_the_machine(read: &Kubeconfig) -> bool {
    let users = read.auth_infos.iter().filter_map(|user| user.auth_info.as_ref());
    let mut clusters = read.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref());
    let by_user = users.into_iter().any(|user| {
        let files = [&user.client_certificate, &user.client_key, &user.token_file];
        user.exec.is_some() || user.auth_provider.is_some() || files.into_iter().any(Option::is_some)
    });
    by_user || clusters.any(|cluster| cluster.certificate_authority.is_some())
}

/// Names are no secrets, and errors show them.
fn has_secret_name(read: &Kubeconfig) -> bool {
    let clusters = read.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref());
    let of_clusters = clusters.flat_map(|cluster| [&cluster.server, &cluster.tls_server_name]);
    let contexts = read.contexts.iter().filter_map(|context| context.context.as_ref());
    let named = contexts
        .flat_map(|context| [Some(&context.cluster), context.user.as_ref(), context.namespace.as_ref()]);
    let texts = of_clusters.map(Option::as_ref).chain(named).flatten();
    texts.chain(&read.current_context).any(|text| text.contains(SECRET))
}
