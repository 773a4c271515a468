//! Which client certificates are trusted: those that are signed by authorities in files, or else by the authorities
//! that the API server publishes in a ConfigMap. Both change while the program runs. Without known authorities no
//! certificate is trusted; authorities that were read stay in use until newer ones are read.

mod files;
mod lookup;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::http::HeaderMap;
use cluster::Followed;
use kube::Client;
use serving::Tasks;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::UnixTime;

use crate::{
    certificate::{Authority, BundleError, Presented, Subject, Unproved},
    front_proxy::{FrontProxy, FrontProxyRules},
    tls::REREAD_INTERVAL,
    user::User,
};
use files::CaFile;
use lookup::Lookup;

/// Where authorities come from.
#[derive(Default)]
pub(crate) struct TrustSources {
    /// Authorities of clients, in PEM.
    pub client_ca: Option<PathBuf>,
    /// Authorities of front proxies, in PEM, and what their headers are.
    pub front_proxy: Option<(PathBuf, FrontProxyRules)>,
    /// The name of the cluster that publishes authorities, for log lines.
    pub cluster: &'static str,
    /// The API server that publishes the authorities that no file gives. `None` = do not ask.
    pub lookup: Option<Client>,
    /// Whether a failure to read them is expected.
    pub tolerate_failure: bool,
}

/// Why a file of authorities can't be used.
#[derive(Debug, thiserror::Error)]
#[error("can not use {} as a bundle of certificate authorities", .path.display())]
pub struct TrustError {
    path: PathBuf,
    #[source]
    source: BundleError,
}

/// The trusted authorities, kept up to date. At first there are only those from files.
#[derive(Clone)]
pub(crate) struct Trust(watch::Receiver<Trusted>);

/// The trusted authorities at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trusted {
    clients: Option<Authority>,
    front_proxy: Option<Arc<FrontProxy>>,
}

impl Trust {
    /// Reads the files, and starts to follow files and cluster without waiting for them.
    ///
    /// # Errors
    /// A file can't be used.
    pub(crate) async fn start(sources: TrustSources, tasks: &Tasks) -> Result<Self, TrustError> {
        Self::rereading(sources, REREAD_INTERVAL, tasks).await
    }

    pub(crate) async fn rereading(
        sources: TrustSources,
        interval: Duration,
        tasks: &Tasks,
    ) -> Result<Self, TrustError> {
        let (trusted, now) = watch::channel(Trusted::default());
        let trusted = Arc::new(trusted);
        let wanted =
            Wanted { clients: sources.client_ca.is_none(), front_proxy: sources.front_proxy.is_none() };
        if let Some(path) = sources.client_ca {
            let take = |trusted: &mut Trusted, authority| trusted.clients = Some(authority);
            follow(path, interval, &trusted, tasks, take).await?;
        }
        if let Some((path, rules)) = sources.front_proxy {
            let take = move |trusted: &mut Trusted, authority| {
                trusted.front_proxy = Some(Arc::new(FrontProxy { authority, rules: rules.clone() }));
            };
            follow(path, interval, &trusted, tasks, take).await?;
        }
        if let Some(client) = sources.lookup.filter(|_| wanted != Wanted::default()) {
            let lookup = Lookup::new(wanted, sources.cluster, sources.tolerate_failure, Arc::clone(&trusted));
            let task = format!("the reader of the {} cluster's certificate authorities", sources.cluster);
            tasks.spawn_until_done(task, async move {
                tokio::select! {
                    () = trusted.closed() => {}
                    () = lookup.run(client, interval) => {}
                }
            });
        }
        Ok(Self(now))
    }

    /// Trusts no certificate.
    #[cfg(test)]
    pub(crate) fn nobody() -> Self {
        Self(watch::channel(Trusted::default()).1)
    }

    /// The user that the certificates prove: the one that a front proxy names, otherwise their own subject.
    pub(crate) fn user(&self, presented: &Presented, headers: &HeaderMap) -> Result<Option<User>, Unproved> {
        if presented.is_empty() {
            return Ok(None);
        }
        let trusted = self.0.borrow().clone();
        trusted.user(presented, headers, UnixTime::now())
    }
}

/// Takes up the authorities in a file, now and after each change, as long as `trusted` has a receiver.
async fn follow(
    path: PathBuf,
    interval: Duration,
    trusted: &Arc<watch::Sender<Trusted>>,
    tasks: &Tasks,
    take: impl Fn(&mut Trusted, Authority) + Send + Sync + 'static,
) -> Result<(), TrustError> {
    let name = format!("certificate authorities of {}", path.display());
    let task = format!("the renewal of the {name}");
    let (file, authority) = Followed::open(name, CaFile(path)).await?;
    trusted.send_modify(|trusted| take(trusted, authority));
    let trusted = Arc::clone(trusted);
    tasks.spawn_until_done(task, async move {
        let take = |authority| trusted.send_modify(|trusted| take(trusted, authority));
        file.follow(interval, trusted.closed(), take).await;
    });
    Ok(())
}

impl Trusted {
    fn user(
        &self,
        presented: &Presented,
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<Option<User>, Unproved> {
        let named = self.front_proxy.as_ref().map(|proxy| proxy.user(presented, headers, now));
        let named = named.transpose().map(Option::flatten);
        if let Ok(Some(user)) = named {
            return Ok(Some(user));
        }
        let own = self.clients.as_ref().map(|authority| authority.verify(presented, now)).transpose()?;
        // A client that proves no user of its own is not anonymous either, if it tried to speak for another user.
        own.and_then(Subject::user).map_or(named, |user| Ok(Some(user)))
    }
}

/// The authorities that no file gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    clients: bool,
    front_proxy: bool,
}

#[cfg(test)]
mod tests;
