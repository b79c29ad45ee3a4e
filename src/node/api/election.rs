//! Elections as the user sees them: campaigns, leases and streams of leaders, over the elections of the core.
//!
//! The core decides who holds a lease and until when; this module only hands its decisions to the waiting futures.
//! `begin_campaign` creates the [`Leadership`] before it waits. Its `Drop` resigns, so dropping the future withdraws
//! the campaign. Whether a lease is valid is always computed from the clock, never kept in a flag: a lease must end in
//! time even if no task of the node runs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::Instrument;

use crate::election::{Attempts, Leader, LeaseEnd, LeaseState};
use crate::error::ElectionError;
use crate::id::LeaseId;
use crate::node::runtime::shared::{Core, Shared};
use crate::node::runtime::spans::{campaign_span, end_campaign_span};
use crate::node::runtime::waiter::Waiter;
use crate::replica::Replica;
use crate::time::{Stamp, Time};
use crate::typed;

/// How often [`Election::leader`] checks within its timeout whether a majority has answered, while nothing changes.
const LOOKS: u32 = 32;

/// A lease by its name, which a majority of [`Config::voters`](crate::Config::voters) grants to one node at a time.
/// [`Node::election`](crate::Node::election) makes this handle. Any node may campaign, whether it is a voter or not.
///
/// # Guarantees
///
/// At any instant at most one [`Leadership`] of a name is valid, and of two leaderships the later one has the greater
/// [`token`](Leadership::token), provided that
///
/// * no two processes run under one voter's name at the same time, and all nodes have the same list of voters. Nodes
///   where it differs refuse each other's elections, and report it as
///   [`ReplicaEvent::VotersDiffer`](crate::ReplicaEvent::VotersDiffer);
/// * no monotonic clock runs more than 5 % too fast or too slow. Leases run on while a machine sleeps;
/// * where voters have no data directory (or come back with an older copy of it), their wall clocks are at most half of
///   [`Config::clock_skew_max`](crate::Config::clock_skew_max) off. If they are further off, tokens may decrease after
///   a restart; leases still never overlap. Voters whose `data_dir` keeps what was synced need no correct wall clock.
///
/// Nothing is assumed about the network, and any node may crash or stop at any time.
///
/// **What no lease can prevent:** a process that is suspended between checking its lease and acting continues when it
/// runs again, as if no time had passed. Only the token protects against that: pass it to the resource that the leader
/// works on, and let the resource refuse every token below the greatest it has seen. The example `fencing` does so.
///
/// # Timing
///
/// After a leader crashes, the next one holds the lease within about [`Config::lease_time`](crate::Config::lease_time);
/// after it resigns, at once. A voter that has started is in *quarantine*: it grants and renews nothing for
/// ([`Config::lease_time_max`](crate::Config::lease_time_max) + `clock_skew_max`) × 10/9, with or without a disk: 16.7
/// s with [`Config::lan`](crate::Config::lan), 1.6 s with [`Config::local`](crate::Config::local). After a restart of
/// all voters there is no leader for that long. In a rolling upgrade, leave that time between two restarts, or the
/// leader loses its lease.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::{Config, Node, Security};
///
/// let mut config = Config::lan();
/// config.voters = ["a", "b", "c"].map(str::to_owned).to_vec(); // the same on all nodes
/// let security = Security::secret(&Security::generate_secret())?;
/// let node = Node::builder("a").security(security).config(config).start().await?;
///
/// let lead = node.election("cron").campaign("a").await?;
/// println!("leader with token {}", lead.token());
/// tokio::select! {
///     () = lead.lost() => println!("the lease has ended"),
///     () = async { /* the work; it passes the token along */ } => lead.resign().await,
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Election {
    shared: Arc<Shared>,
    name: String,
}

impl Election {
    pub(in crate::node) fn new(shared: &Arc<Shared>, name: String) -> Self {
        Self { shared: shared.clone(), name }
    }

    /// Waits until this node holds the lease, also while no majority of voters can be reached. Observers see `value`.
    ///
    /// If this future is dropped, the campaign is withdrawn, and a grant that arrives later is given back. Several
    /// campaigns of one node for one lease get it one after another.
    ///
    /// # Errors
    /// See [`ElectionError`]. A campaign that has begun ends only with [`ElectionError::Closed`].
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership, ElectionError> {
        loop {
            match self.spanned(value.as_ref(), Attempts::UntilWon).await {
                // The lease was won and had ended before this task ran.
                Err(ElectionError::Lost) => {}
                decided => return decided,
            }
        }
    }

    /// Tries once to get the lease, without waiting for another holder to give it up. It takes some round trips; while
    /// no majority answers, at most [`Config::lease_time`](crate::Config::lease_time).
    ///
    /// # Errors
    /// [`ElectionError::Taken`] if somebody else has the lease or is about to have it; [`ElectionError::NoMajority`] if
    /// too few voters answered to know that; otherwise see [`ElectionError`].
    pub async fn try_campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership, ElectionError> {
        self.spanned(value.as_ref(), Attempts::One).await
    }

    /// A campaign in its own span.
    async fn spanned(&self, value: &[u8], attempts: Attempts) -> Result<Leadership, ElectionError> {
        let span = campaign_span(&self.shared.name, &self.name);
        let decided = self.begin_campaign(value, attempts).instrument(span.clone()).await;
        if let Ok(lead) = &decided {
            end_campaign_span(&span, lead.token);
        }
        #[cfg(feature = "metrics")]
        self.shared.meter.count_campaign(&decided);
        decided
    }

    async fn begin_campaign(&self, value: &[u8], attempts: Attempts) -> Result<Leadership, ElectionError> {
        let begin = |replica: &mut Replica, now: Time| replica.campaign(now, &self.name, value, attempts);
        let mut lead = {
            let mut core = self.shared.lock().ok_or(ElectionError::Closed)?;
            let id = begin(&mut core.replica, self.shared.now())?;
            let state = core.elections.begin(id, self.name.clone());
            Leadership { shared: self.shared.clone(), id, token: Stamp::default(), state }
        };
        self.shared.wake_driver.notify_one();
        let decided = lead.state.wait_for(|state| *state != LeaseState::Waiting).await;
        let decided = decided.map(|state| *state);
        match decided {
            Ok(LeaseState::Held(token)) => {
                lead.token = token;
                Ok(lead)
            }
            Ok(LeaseState::Ended(LeaseEnd::Taken)) => Err(ElectionError::Taken),
            Ok(LeaseState::Ended(LeaseEnd::NoMajority { reached, needed })) => {
                Err(ElectionError::NoMajority { reached, needed })
            }
            Ok(LeaseState::Ended(LeaseEnd::Lost)) => Err(ElectionError::Lost),
            _ => Err(ElectionError::Closed),
        }
    }

    /// Who leads, according to the answers of a majority of the voters. `None` if these say that nobody leads, or do
    /// not agree on anybody.
    ///
    /// The answer describes an instant that has passed when it arrives; two nodes that ask at the same time may get
    /// different answers.
    ///
    /// # Errors
    /// [`ElectionError::NoMajority`] if no majority of voters answers for 5/4 of
    /// [`Config::lease_time`](crate::Config::lease_time); otherwise see [`ElectionError`].
    pub async fn leader(&self) -> Result<Option<Leader>, ElectionError> {
        let mut observer = self.observe()?;
        let patience = observer.patience;
        let until = tokio::time::Instant::now() + patience;
        loop {
            // If others of this node observe the same lease, the leader may be known already and then never changes.
            let next = tokio::time::timeout(patience / LOOKS, observer.next()).await;
            if next == Ok(None) {
                return Err(ElectionError::Closed);
            }
            let core = self.shared.lock().ok_or(ElectionError::Closed)?;
            let (reached, needed) = core.replica.heard_of_leader(&self.name);
            match core.replica.leader(&self.name) {
                Some(leader) if reached >= needed => return Ok(leader.clone()),
                _ if tokio::time::Instant::now() < until => {}
                _ => return Err(ElectionError::NoMajority { reached, needed }),
            }
        }
    }

    /// Follows who leads: first the present state, as soon as it is known, then every observed change. A slow reader
    /// sees only the latest one.
    ///
    /// # Errors
    /// See [`ElectionError`].
    pub fn observe(&self) -> Result<Observer, ElectionError> {
        let mut core = self.shared.lock().ok_or(ElectionError::Closed)?;
        core.replica.observe(self.shared.now(), &self.name)?;
        let notify = core.elections.leaders.entry(self.name.clone()).or_default().clone();
        let patience = core.replica.config().lease_time * 5 / 4;
        drop(core);
        self.shared.wake_driver.notify_one();
        let (shared, name) = (self.shared.clone(), self.name.clone());
        Ok(Observer { shared, name, told: None, waiter: Waiter::new(notify), patience })
    }
}

/// A lease that this node holds. It ends when this value is dropped or resigned, when the lease cannot be renewed in
/// time, or when the node is closed. It does not keep the node alive.
#[derive(Debug)]
pub struct Leadership {
    shared: Arc<Shared>,
    id: LeaseId,
    token: Stamp,
    state: watch::Receiver<LeaseState>,
}

impl Leadership {
    /// The fencing token: greater than that of every earlier holder. The resource that the leader works on should
    /// refuse every token below the greatest that it has seen. [`Stamp::as_u128`] and the text form keep the order.
    pub fn token(&self) -> Stamp {
        self.token
    }

    /// When the lease ends if it is not renewed again; the present instant if it has ended. Every renewal moves it.
    pub fn valid_until(&self) -> Instant {
        Instant::now() + self.time_left()
    }

    /// Whether the lease is held at this instant, according to a clock that runs on while the machine sleeps (where the
    /// operating system has one).
    pub fn is_valid(&self) -> bool {
        !self.time_left().is_zero()
    }

    fn time_left(&self) -> Duration {
        let Some(core) = self.shared.lock() else { return Duration::ZERO };
        let now = self.shared.now();
        core.replica.lease(now, self.id).map_or(Duration::ZERO, |(_, until)| until.mono - now.mono)
    }

    /// Waits until the lease has ended. As long as this process runs, that is before anybody else can hold it.
    pub async fn lost(&self) {
        let mut state = self.state.clone();
        // An error means that the sender is gone: the node is closed, and the lease has ended.
        _ = state.wait_for(|state| matches!(state, LeaseState::Ended(_))).await;
    }

    /// Changes the value that observers see. The token stays the same.
    ///
    /// # Errors
    /// If the value is too large, or the lease has ended; see [`ElectionError`].
    pub fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<(), ElectionError> {
        let mut core = self.shared.lock().ok_or(ElectionError::Closed)?;
        core.replica.proclaim(self.shared.now(), self.id, value.as_ref())?;
        drop(core);
        self.shared.wake_driver.notify_one();
        Ok(())
    }

    /// Gives the lease up. It returns when the lease has ended here and its release is being sent to the voters that
    /// can be reached.
    pub async fn resign(self) {
        self.resign_now();
        self.lost().await;
    }

    fn resign_now(&self) {
        if let Some(mut core) = self.shared.lock() {
            core.replica.resign(self.shared.now(), self.id);
            drop(core);
            self.shared.wake_driver.notify_one();
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.resign_now();
    }
}

/// What an [`Observer`] learns of an election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaderEvent {
    /// A node leads, or its value has changed.
    Leads(Leader),
    /// Nobody leads.
    Vacant,
}

/// A stream of who leads an election; [`Election::observe`] makes one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
/// use tidings::{Config, LeaderEvent, Node};
///
/// let mut config = Config::local();
/// config.voters = vec!["a".to_owned()];
/// let node = Node::builder("a").security(security).config(config).start().await?;
/// let mut observer = node.election("billing").observe()?;
/// let lead = node.election("billing").campaign("at your service").await?;
/// while let Some(event) = observer.next().await {
///     match event {
///         LeaderEvent::Vacant => println!("nobody leads"),
///         LeaderEvent::Leads(leader) => {
///             assert_eq!((leader.token, &leader.value[..]), (lead.token(), &b"at your service"[..]));
///             break;
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    name: String,
    told: Option<LeaderEvent>,
    waiter: Waiter,
    patience: Duration,
}

impl Observer {
    /// Waits for the next change. `None` once the node is closed. A `next` that is dropped while it waits loses no
    /// change.
    pub async fn next(&mut self) -> Option<LeaderEvent> {
        typed::next(self).await
    }
}

impl Stream for Observer {
    type Item = LeaderEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LeaderEvent>> {
        let Self { shared, name, told, waiter, .. } = self.get_mut();
        waiter.poll(cx, || {
            let is_closed = shared.is_closed();
            let Some(core) = shared.lock_closed() else { return Some(None) };
            let event = core.replica.leader(name).map(|leader| match leader {
                Some(leader) => LeaderEvent::Leads(leader.clone()),
                None => LeaderEvent::Vacant,
            });
            if event.is_none() || event == *told {
                return is_closed.then_some(None);
            }
            told.clone_from(&event);
            Some(event)
        })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let Some(mut core) = self.shared.lock() else { return };
        let Core { replica, elections, .. } = &mut *core;
        if replica.unobserve(&self.name) {
            elections.leaders.remove(&self.name);
        }
    }
}
