//! The rate of changes. Each change of a guest may lead to changes in the infra cluster, where each wakes kube-proxy on
//! every infra Node, the load balancer or the storage. API Priority and Fairness shares the API server's capacity among
//! its clients, but knows nothing of what comes after a change. So the changes of one process are counted here.
//!
//! A token bucket, as client-go's `--kube-api-qps` and `--kube-api-burst`, for changes only: reads and watches never
//! wait.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Changes per second where the operator sets none.
///
/// Two hundred Services at once take two hundred creates, which the burst holds, so they do not wait at all. Where the
/// CCM writes endpoints too, there are as many creates of slices: the last of them waits 4 s.
const PER_SECOND: f64 = 50.0;
/// Changes at once where the operator sets none.
const BURST: u32 = 200;
/// Longest wait for one token: it only keeps a rate near zero from an overflow.
const LONGEST_SLEEP: f64 = 24.0 * 3600.0;

/// Longest wait of a change whose caller has to read again before it changes anything: after that time, what it has read
/// is too old.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How many changes may be sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WriteRate {
    /// Changes per second, over time. `None` = any number.
    per_second: Option<f64>,
    /// Changes at once, after a time with few.
    burst: u32,
}

/// Lets changes through in the order in which they came.
pub(crate) struct TokenBucket {
    per_second: f64,
    burst: f64,
    level: Mutex<Level>,
}

struct Level {
    tokens: f64,
    /// When the tokens were counted.
    at: Instant,
}

impl Default for WriteRate {
    fn default() -> Self {
        Self { per_second: Some(PER_SECOND), burst: BURST }
    }
}

impl WriteRate {
    /// The rate of the flags `--kube-api-qps` and `--kube-api-burst`, with client-go's meaning: 0 is the default, and a
    /// negative `qps` is no limit.
    pub fn of_flags(qps: f64, burst: i32) -> Self {
        let default = Self::default();
        let per_second = if qps < 0.0 || qps == f64::INFINITY { None } else { Some(qps) };
        let burst = u32::try_from(burst).ok().filter(|burst| *burst > 0);
        Self {
            per_second: per_second.map(|qps| if qps > 0.0 { qps } else { PER_SECOND }),
            burst: burst.unwrap_or(default.burst),
        }
    }

    pub(crate) fn bucket(self) -> Option<TokenBucket> {
        let (per_second, burst) = (self.per_second?, f64::from(self.burst));
        let level = Mutex::new(Level { tokens: burst, at: Instant::now() });
        Some(TokenBucket { per_second, burst, level })
    }
}

impl TokenBucket {
    /// Waits until the next change may be sent. Tokio's mutex lets tasks through in order. A token is taken only after
    /// the wait, so a future that is dropped earlier has taken none.
    pub(crate) async fn take(&self) {
        let mut level = self.level.lock().await;
        self.fill(&mut level);
        if level.tokens < 1.0 {
            let seconds = (1.0 - level.tokens) / self.per_second;
            sleep(Duration::from_secs_f64(seconds.min(LONGEST_SLEEP))).await;
            self.fill(&mut level);
        }
        level.tokens -= 1.0;
    }

    fn fill(&self, level: &mut Level) {
        let now = Instant::now();
        let came = now.duration_since(level.at).as_secs_f64() * self.per_second;
        *level = Level { tokens: (level.tokens + came).min(self.burst), at: now };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use futures::{FutureExt, StreamExt, stream::FuturesOrdered};
    use rstest::rstest;
    use tokio::time::{advance, timeout};

    fn bucket(per_second: f64, burst: i32) -> TokenBucket {
        WriteRate::of_flags(per_second, burst).bucket().unwrap()
    }

    #[rstest]
    #[case::default(0.0, 0, Some(PER_SECOND), BURST)]
    #[case::upstream(20.0, 30, Some(20.0), 30)]
    #[case::unlimited(-1.0, 30, None, 30)]
    #[case::infinite(f64::INFINITY, 30, None, 30)]
    #[case::no_number(f64::NAN, -5, Some(PER_SECOND), BURST)]
    fn the_flags_mean_what_they_mean_in_client_go(
        #[case] qps: f64,
        #[case] burst: i32,
        #[case] per_second: Option<f64>,
        #[case] at_once: u32,
    ) {
        assert_eq!(WriteRate::of_flags(qps, burst), WriteRate { per_second, burst: at_once });
    }

    #[tokio::test(start_paused = true)]
    async fn two_hundred_at_once_do_not_wait_and_after_them_the_rate_holds() {
        let tokens = WriteRate::default().bucket().unwrap();
        let began = Instant::now();
        for _ in 0..200 {
            tokens.take().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..500 {
            tokens.take().await;
        }
        let seconds = began.elapsed().as_secs_f64();
        assert!((9.9..10.6).contains(&seconds), "500 changes took {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_fills_the_bucket_and_no_more() {
        let tokens = bucket(10.0, 3);
        for _ in 0..3 {
            tokens.take().await;
        }
        advance(Duration::from_hours(1)).await;
        let began = Instant::now();
        for _ in 0..3 {
            tokens.take().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        tokens.take().await;
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_let_through_in_order() {
        let tokens = Arc::new(bucket(10.0, 1));
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut all: FuturesOrdered<_> = (0..20)
            .map(|number| {
                let (tokens, order) = (Arc::clone(&tokens), Arc::clone(&order));
                tokio::spawn(async move {
                    tokens.take().await;
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        while all.next().await.is_some() {}
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_takes_no_token() {
        let tokens = bucket(1.0, 1);
        tokens.take().await;
        let began = Instant::now();
        for _ in 0..5 {
            assert!(timeout(Duration::from_millis(100), tokens.take()).await.is_err());
        }
        tokens.take().await;
        let waited = began.elapsed();
        assert!(waited < Duration::from_millis(1100), "{waited:?}");
        assert!(tokens.take().now_or_never().is_none());
    }
}
