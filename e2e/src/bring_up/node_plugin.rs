//! The node role in a worker: started from the args and env of `deploy/`'s own DaemonSet, as its ServiceAccount, as
//! plain processes in the guest; beside it the plugin registrar.
//!
//! What kubelet would do for the pod is done here: `$(VAR)` in args, the ServiceAccount's token and CA file, the API
//! server's address in the environment, the plugin directory at `/csi`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::manifests::{container, find};
use crate::{
    cluster::ApiServer,
    vm::{Guest, PROGRAMS_MOUNT as PROGRAMS},
};

/// Name of the DaemonSet in `deploy/`, the reference's.
pub const DAEMON_SET: &str = "kubevirt-csi-node";

/// The driver's container in it.
pub const DRIVER_CONTAINER: &str = "csi-driver";

/// The registrar's container in it.
pub const REGISTRAR_CONTAINER: &str = "csi-node-driver-registrar";

/// Where a pod finds its ServiceAccount's files (Kubernetes' in-cluster configuration).
const SERVICE_ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The plugin's directory on the node; pods see it as `/csi` (the manifest's `plugin-dir` volume).
pub const PLUGIN_FOLDER: &str = "/var/lib/kubelet/plugins/csi.kubevirt.io";

/// Lifetime of the token: a run of the bench is shorter (kubelet would rotate it).
const TOKEN_LIFETIME_SECONDS: i64 = 24 * 3600;

/// Lines of a log that an error message quotes.
const LOG_LINES: &str = "15";

/// Mode of files that hold a token.
const SECRET_MODE: u32 = 0o600;

/// The two processes of the node plugin in one guest.
#[derive(Debug)]
pub struct NodePlugin<'a> {
    guest: &'a Guest,
    node: &'a str,
    daemon_set: &'a Value,
}

impl<'a> NodePlugin<'a> {
    /// The plugin of `node`, as `objects` (the rendered tenant manifests) describe it.
    pub fn new(guest: &'a Guest, node: &'a str, objects: &'a [Value]) -> Result<Self> {
        Ok(Self { guest, node, daemon_set: find(objects, "DaemonSet", DAEMON_SET)? })
    }

    /// Writes the ServiceAccount's files and starts both processes.
    pub async fn start(&self, tenant: &ApiServer) -> Result<()> {
        self.write_service_account(tenant).await?;
        self.run(
            "mkdir",
            &["-p", PLUGIN_FOLDER, "/var/lib/kubelet/plugins_registry", "/csi", "/registration"],
        )
        .await?;
        for (host, pod) in [(PLUGIN_FOLDER, "/csi"), ("/var/lib/kubelet/plugins_registry", "/registration")] {
            let mounted = self.guest.run(&["mountpoint", "-q", pod], None).await?;
            if mounted.code != 0 {
                self.run("mount", &["--bind", host, pod]).await?;
            }
        }
        self.start_container(DRIVER_CONTAINER, "kubevirt-csi-driver", &tenant.url).await?;
        self.start_container(REGISTRAR_CONTAINER, "plugin-registrar", &tenant.url).await
    }

    /// Ends both processes, the driver as kubelet would (SIGTERM).
    pub async fn stop(&self) -> Result<()> {
        for program in ["plugin-registrar", "kubevirt-csi-driver"] {
            // 1: no such process, which is what is wanted.
            let killed =
                self.guest.run(&["pkill", "-TERM", "-f", &format!("{PROGRAMS}/{program}")], None).await?;
            if killed.code > 1 {
                bail!("pkill {program}: {}", String::from_utf8_lossy(&killed.stderr));
            }
        }
        Ok(())
    }

    /// The ends of both processes' logs, for error messages.
    pub async fn log_tails(&self) -> String {
        let logs =
            ["kubevirt-csi-driver", "plugin-registrar"].map(|program| format!("/var/log/{program}.log"));
        match self.guest.run(&["tail", "-n", LOG_LINES, &logs[0], &logs[1]], None).await {
            Ok(output) => output.text(),
            Err(error) => format!("no logs: {error:#}"),
        }
    }

    async fn write_service_account(&self, tenant: &ApiServer) -> Result<()> {
        let name = self.daemon_set["spec"]["template"]["spec"]["serviceAccountName"]
            .as_str()
            .context("the DaemonSet names no ServiceAccount")?;
        let namespace =
            self.daemon_set["metadata"]["namespace"].as_str().context("the DaemonSet has no namespace")?;
        let token = tenant.service_account_token(namespace, name, &[], TOKEN_LIFETIME_SECONDS).await?;
        self.run("mkdir", &["-p", SERVICE_ACCOUNT_FOLDER]).await?;
        for (file, content) in
            [("token", token.as_str()), ("ca.crt", &tenant.ca_pem), ("namespace", namespace)]
        {
            let path = format!("{SERVICE_ACCOUNT_FOLDER}/{file}");
            self.guest.write_file(&path, content.as_bytes(), SECRET_MODE).await?;
        }
        Ok(())
    }

    async fn start_container(&self, name: &str, program: &str, api_server: &str) -> Result<()> {
        let container = container(self.daemon_set, name)?;
        let environment = self.environment(container, api_server)?;
        let mut argv = vec!["env".to_owned()];
        argv.extend(environment.iter().map(|(key, value)| format!("{key}={value}")));
        argv.push(format!("{PROGRAMS}/{program}"));
        for argument in container["args"].as_array().into_iter().flatten() {
            argv.push(expand(argument.as_str().context("an argument that is no text")?, &environment));
        }
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.guest.spawn(&argv, &format!("/var/log/{program}.log")).await?;
        Ok(())
    }

    fn environment(&self, container: &Value, api_server: &str) -> Result<BTreeMap<String, String>> {
        let authority = api_server.trim_start_matches("https://");
        let (host, port) = authority.rsplit_once(':').context("an API server's URL without a port")?;
        let mut environment = BTreeMap::from([
            ("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_owned()),
        ]);
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a variable without a name")?;
            let value =
                match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
                    (Some(value), _) => value.to_owned(),
                    (None, Some("spec.nodeName")) => self.node.to_owned(),
                    (None, other) => {
                        bail!("the variable {name} comes from {other:?}, which this bench does not know")
                    }
                };
            environment.insert(name.to_owned(), value);
        }
        Ok(environment)
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let argv: Vec<&str> = std::iter::once(program).chain(arguments.iter().copied()).collect();
        self.guest.check(&argv, None).await.with_context(|| format!("in {}", self.node))?;
        Ok(())
    }
}

/// Replaces `$(NAME)` as kubelet does; an unknown name stays as it is.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    environment.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn arguments_are_expanded_as_kubelet_does() {
        let environment = BTreeMap::from([("KUBE_NODE_NAME".to_owned(), "worker-1".to_owned())]);
        assert_eq!(super::expand("--node-name=$(KUBE_NODE_NAME)", &environment), "--node-name=worker-1");
        assert_eq!(super::expand("$(OTHER)", &environment), "$(OTHER)");
    }
}
