//! The current client of a cluster, replaced when a file of its credentials has changed.
//!
//! The files are read again before a call, at most once a second, and at once after an answer that new credentials may
//! cure. kube by itself reads a token file again within a minute, and a kubeconfig's CA never.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use kube::Client;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    credentials::{CredentialFiles, CredentialsError, Loaded, Source},
    files::Followed,
    token_issuer::TokenIssuer,
};

/// The files are read again before a call if the last read is older than this: a few KiB, and only while calls are
/// made.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A client and the source of its credentials.
pub(crate) struct Connection {
    current: RwLock<Current>,
    /// One task at a time checks the files.
    checked: Mutex<Checked>,
}

/// The client to make a call with.
#[derive(Clone)]
pub(crate) struct Current {
    pub client: Client,
    /// Host and port of the API server.
    pub host: Arc<str>,
    /// The issuer of the credentials' token.
    pub token_issuer: Option<TokenIssuer>,
    /// Grows each time the client is replaced.
    generation: u64,
}

/// The files, and when they were last checked.
struct Checked {
    /// `None` = the client was given and handles its own credentials.
    files: Option<Followed<CredentialFiles>>,
    at: Instant,
}

impl Connection {
    /// Connects to `source`, and returns the namespace that its credentials name. Makes no call.
    pub(crate) async fn open(source: Source) -> Result<(Self, String), CredentialsError> {
        let name = format!("{} cluster's credentials", source.cluster);
        let (files, loaded) = Followed::open(name, CredentialFiles(source)).await?;
        let Loaded { client, namespace, host, token_issuer } = loaded;
        let current = Current { client, host, token_issuer, generation: 0 };
        Ok((Self::new(current, Some(files)), namespace))
    }

    /// A connection whose client is never replaced.
    pub(crate) fn fixed(client: Client) -> Self {
        Self::new(Current { client, host: "".into(), token_issuer: None, generation: 0 }, None)
    }

    fn new(current: Current, files: Option<Followed<CredentialFiles>>) -> Self {
        let checked = Checked { files, at: Instant::now() };
        Self { current: RwLock::new(current), checked: Mutex::new(checked) }
    }

    /// The client to make a call with (cheap). Checks the files first if that is due.
    pub(crate) async fn current(&self) -> Current {
        // If another task is already checking the files, use the current client.
        if let Ok(mut checked) = self.checked.try_lock()
            && checked.at.elapsed() >= CHECK_INTERVAL
        {
            self.check(&mut checked).await;
        }
        self.present()
    }

    /// Host and port of the API server, by the present credentials.
    pub(crate) fn host(&self) -> Arc<str> {
        self.present().host
    }

    /// Checks the files after a call with `used` failed in a way that new credentials may cure. Returns true if there
    /// is a newer client.
    pub(crate) async fn is_renewed(&self, used: &Current) -> bool {
        let mut checked = self.checked.lock().await;
        if self.present().generation == used.generation {
            self.check(&mut checked).await;
        }
        self.present().generation != used.generation
    }

    /// One assignment is made under the lock, so its content is valid after a panic too.
    fn present(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the client if the files have changed. While the new files can't be used, the last good client stays.
    async fn check(&self, checked: &mut Checked) {
        checked.at = Instant::now();
        let Some(files) = &mut checked.files else { return };
        if let Some(Loaded { client, host, token_issuer, .. }) = files.newer().await {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            *current = Current { client, host, token_issuer, generation: current.generation + 1 };
        }
    }
}
