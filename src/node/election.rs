//! Elections as the user sees them: campaigns that can be dropped, leases that end themselves, observers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::shared::{Core, Shared};
use crate::election::{Leader, LeaseEnd, LeaseId, LeaseState, Sighting};
use crate::error::ElectionError;
use crate::replica::Replica;
use crate::time::{Stamp, Time};

/// How often [`Election::leader`] looks whether a majority has answered, while nothing changes.
const LOOKS: u32 = 32;

/// Who is to be told what has become of campaigns, and who leads.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    leases: BTreeMap<LeaseId, watch::Sender<LeaseState>>,
    leaders: BTreeMap<String, watch::Sender<Sighting>>,
}

impl Listeners {
    pub(super) fn lease(&mut self, id: LeaseId, state: LeaseState) {
        if let Some(listener) = self.leases.get(&id) {
            listener.send_replace(state);
        }
        if matches!(state, LeaseState::Ended(_)) {
            self.leases.remove(&id);
        }
    }

    pub(super) fn leader(&mut self, name: &str, leader: Option<Leader>) {
        if let Some(listener) = self.leaders.get(name) {
            listener.send_replace(Sighting::Known(leader));
        }
    }
}

/// A lease by its name, which a majority of [`Config::voters`](crate::Config::voters) grants to one node at a time; see
/// [`Node::election`](crate::Node::election).
///
/// # What is guaranteed
///
/// At any instant at most one [`Leadership`] of a name is valid, and of two leaderships the later one has the greater
/// [`token`](Leadership::token), provided that
///
/// * no two processes run under one voter's name at a time, and all nodes have the same list of voters,
///   [`Config::lease_time_max`](crate::Config::lease_time_max) and
///   [`Config::clock_skew_max`](crate::Config::clock_skew_max): nodes where these differ refuse each other, and report
///   it as [`Event::VotersDiffer`](crate::Event::VotersDiffer);
/// * no monotonic clock runs more than 5 % too fast or too slow. Leases run on while a machine sleeps;
/// * and, where voters live in memory (or come back with an older copy of their directory), their wall clocks are at most
///   half of [`Config::clock_skew_max`](crate::Config::clock_skew_max) off. If they are further off, tokens may go back
///   after a restart; leases still never overlap. Voters whose `data_dir` keeps what was synced need no wall clocks.
///
/// Nothing is assumed of the network, and any node may crash or stop at any time.
///
/// **What no lease can do:** a process that is stopped between looking at its lease and doing something goes on with it
/// when it runs again, as if no time had passed. Against that only the token protects: hand it to the resource that the
/// leader works on, and let that refuse every token below the greatest it has seen. The example `fencing` does so.
///
/// # What it costs
///
/// A leader that dies is followed within about [`Config::lease_time`](crate::Config::lease_time); one that resigns, at
/// once. A voter that has started grants and renews nothing for
/// [`Config::lease_time_max`](crate::Config::lease_time_max) and `clock_skew_max` and a ninth of both (16.7 s with
/// [`Config::lan`](crate::Config::lan), 1.6 s with [`Config::local`](crate::Config::local)), whether it has a disk or not: after a restart of all voters there is no leader
/// for that long, and between two restarts of a rolling upgrade as much time should pass, or the leader is lost.
///
/// Any node may campaign, voter or not.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::{Config, Node, Security};
///
/// let mut config = Config::lan();
/// config.voters = ["a", "b", "c"].map(str::to_owned).to_vec(); // the same on all nodes
/// let security = Security::secret("a secret for examples")?;
/// let node = Node::builder("a").security(security).config(config).start().await?;
///
/// let lead = node.election("cron").campaign("a").await?;
/// println!("leader under {}", lead.token());
/// tokio::select! {
///     () = lead.lost() => println!("and no more"),
///     () = async { /* the work, which carries the token along */ } => lead.resign().await,
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Election {
    shared: Arc<Shared>,
    name: String,
}

impl Election {
    pub(super) fn new(shared: &Arc<Shared>, name: String) -> Self {
        Self { shared: shared.clone(), name }
    }

    /// Waits until this node has the lease. `value` is what observers see. While no majority of voters can be reached, it
    /// waits; dropped, it withdraws, and gives back a grant that comes late. Several campaigns of one node for one lease
    /// stand in line.
    ///
    /// # Errors
    /// See [`ElectionError`]; of a campaign that began, [`ElectionError::Closed`] alone.
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership, ElectionError> {
        loop {
            match self.begin_campaign(value.as_ref(), false).await {
                // Won and lost again before anybody saw it.
                Err(ElectionError::Lost) => {}
                decided => return decided,
            }
        }
    }

    /// Tries once to get the lease: it is free and this node gets it, or it does not wait for it. It takes some round
    /// trips; at most [`Config::lease_time`](crate::Config::lease_time) while no majority answers.
    ///
    /// # Errors
    /// [`ElectionError::Taken`] if somebody has it, or is about to; [`ElectionError::NoMajority`] if that cannot be
    /// known.
    pub async fn try_campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership, ElectionError> {
        self.begin_campaign(value.as_ref(), true).await
    }

    async fn begin_campaign(&self, value: &[u8], is_once: bool) -> Result<Leadership, ElectionError> {
        let begin = |replica: &mut Replica, now: Time| replica.campaign(now, &self.name, value, is_once);
        let mut lead = {
            let mut core = self.shared.lock().ok_or(ElectionError::Closed)?;
            let id = begin(&mut core.replica, self.shared.now())?;
            let (sender, state) = watch::channel(LeaseState::Waiting);
            core.elections.leases.insert(id, sender);
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

    /// Who leads, as a majority of the voters says now. Nothing if it says that nobody does, or names nobody.
    ///
    /// It is true of a moment that is over when it is told, and two nodes that ask at once may be told differently.
    ///
    /// # Errors
    /// If no majority of voters answers for [`Config::lease_time`](crate::Config::lease_time).
    pub async fn leader(&self) -> Result<Option<Leader>, ElectionError> {
        let mut observer = self.observe()?;
        let patience = observer.patience;
        let until = tokio::time::Instant::now() + patience;
        loop {
            // Others may observe it as well, and know what it was: then it need not change.
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

    /// Follows who leads: first who does now, as soon as that is known, then every change that is seen, "nobody"
    /// included. Who reads slowly sees the latest only.
    ///
    /// # Errors
    /// See [`ElectionError`].
    pub fn observe(&self) -> Result<LeaderStream, ElectionError> {
        let mut core = self.shared.lock().ok_or(ElectionError::Closed)?;
        core.replica.observe(self.shared.now(), &self.name)?;
        let known = core.replica.leader(&self.name).cloned().map_or(Sighting::Unknown, Sighting::Known);
        let sender = core.elections.leaders.entry(self.name.clone());
        let mut leader = sender.or_insert_with(|| watch::Sender::new(known)).subscribe();
        drop(core);
        leader.mark_changed();
        self.shared.wake_driver.notify_one();
        let patience = self.shared.lease_time * 5 / 4;
        Ok(LeaderStream { shared: self.shared.clone(), name: self.name.clone(), leader, patience })
    }
}

/// A lease that this node holds. It ends when it is dropped, given up, cannot be renewed in time, or its node is closed;
/// it does not keep the node alive.
#[derive(Debug)]
pub struct Leadership {
    shared: Arc<Shared>,
    id: LeaseId,
    token: Stamp,
    state: watch::Receiver<LeaseState>,
}

impl Leadership {
    /// The fencing token: greater than that of every earlier holder. Whatever the leader works on should refuse every
    /// token below the greatest that it has seen. As [`Stamp::as_u128`] and as text it keeps its order.
    pub fn token(&self) -> Stamp {
        self.token
    }

    /// Until when the lease lasts if it is not renewed any more; now, if it has ended. It moves with every renewal.
    pub fn valid_until(&self) -> Instant {
        Instant::now() + self.time_left()
    }

    /// Whether the lease is held at this instant, by a clock that runs on while the machine sleeps.
    pub fn is_valid(&self) -> bool {
        !self.time_left().is_zero()
    }

    fn time_left(&self) -> Duration {
        let Some(core) = self.shared.lock() else { return Duration::ZERO };
        let now = self.shared.now();
        core.replica.lease(now, self.id).map_or(Duration::ZERO, |(_, until)| until.mono - now.mono)
    }

    /// Waits until the lease has ended. It ends before anybody else can have it, as long as this process runs.
    pub async fn lost(&self) {
        let mut state = self.state.clone();
        // Without a sender the node is closed.
        _ = state.wait_for(|state| matches!(state, LeaseState::Ended(_))).await;
    }

    /// Changes what observers see, under the same token.
    ///
    /// # Errors
    /// If the value is too large, or the lease has ended.
    pub fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<(), ElectionError> {
        let mut core = self.shared.lock().ok_or(ElectionError::Closed)?;
        core.replica.proclaim(self.shared.now(), self.id, value.as_ref())?;
        drop(core);
        self.shared.wake_driver.notify_one();
        Ok(())
    }

    /// Gives the lease up, and returns when the voters that can be reached are being told.
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

/// Follows who leads; see [`Election::observe`].
#[derive(Debug)]
pub struct LeaderStream {
    shared: Arc<Shared>,
    name: String,
    leader: watch::Receiver<Sighting>,
    patience: Duration,
}

impl LeaderStream {
    /// The next change: a leader, or that there is none. Nothing any more once the node is closed. Nothing is lost when
    /// it is dropped while it waits.
    pub async fn next(&mut self) -> Option<Option<Leader>> {
        loop {
            self.leader.changed().await.ok()?;
            if let Sighting::Known(leader) = self.leader.borrow_and_update().clone() {
                return Some(leader);
            }
        }
    }
}

impl Drop for LeaderStream {
    fn drop(&mut self) {
        let Some(mut core) = self.shared.lock() else { return };
        let Core { replica, elections, .. } = &mut *core;
        // Not by the receivers: those of others that are just being dropped are still there.
        if replica.unobserve(&self.name) {
            elections.leaders.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::membership::Member;
    use crate::replica::Setup;

    #[test]
    fn dropped_observers_leave_no_stale_leader() {
        let mut config = Config::lan();
        config.voters = vec!["a".to_owned()];
        let addr = ([127, 0, 0, 1], 1).into();
        let mut setup = Setup::new(config, 1);
        setup.member = Some(Member::new("n".to_owned(), 1, addr));
        let (wishes, _) = tokio::sync::mpsc::unbounded_channel();
        let lease_time = Duration::from_secs(1);
        let shared = Shared::new("n".to_owned(), 1, addr, Replica::new(setup), wishes, true, lease_time);
        let election = Election::new(&shared, "e".to_owned());
        let observers = [election.observe().unwrap(), election.observe().unwrap()];
        // Their receivers go when nobody has the lock any more.
        let receivers = observers.each_ref().map(|observer| observer.leader.clone());
        shared.lock().unwrap().elections.leader("e", None);
        drop(observers);
        drop(receivers);
        let later = election.observe().unwrap();
        assert_eq!(*later.leader.borrow(), Sighting::Unknown);
    }
}
