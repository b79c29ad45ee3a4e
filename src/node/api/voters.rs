//! Changing the voters, over the change in the core. A node has one change of its own under way at a time.

use tokio::sync::oneshot;

use crate::election::VoterList;
use crate::error::SetVotersError;
use crate::node::Node;

impl Node {
    /// Changes the nodes of which a majority grants leases, on all nodes, while leases are held. Every node of the new
    /// list has to be a live member with a data directory, and a majority of the present voters has to answer.
    ///
    /// It takes about [`Config::lease_time_max`](crate::Config::lease_time_max) × 10/9, during which leases need a
    /// majority of the old voters and one of the new ones. Nodes of the new list that have just started are waited for
    /// until they may vote: at most about 17 s more with [`Config::lan`](crate::Config::lan). The holder of a lease
    /// keeps it. When this returns, a majority of the new voters has the list on its disks, and the old voters may be
    /// stopped for ever; until then, keep them running. If the future is dropped or this node crashes, the
    /// change goes on as soon as it is written into the store, which takes a few round trips. A later call with other
    /// voters takes its place.
    ///
    /// From then on [`Config::voters`](crate::Config::voters) counts on no node that has joined the cluster. Set it to
    /// the new list all the same: a node whose directory is lost begins with it, and knows the present list only when
    /// it has reached another node.
    ///
    /// # Errors
    /// See [`SetVotersError`](crate::voters::SetVotersError). The list of voters is unchanged then, except after
    /// [`Superseded`](crate::voters::SetVotersError::Superseded).
    pub async fn set_voters<T: Into<String>>(
        &self,
        voters: impl IntoIterator<Item = T>,
    ) -> Result<(), SetVotersError> {
        let voters: Vec<String> = voters.into_iter().map(Into::into).collect();
        let outcome = {
            let mut core = self.shared.lock().ok_or(SetVotersError::Closed)?;
            if !core.elections.is_change_awaited() {
                core.replica.forget_caller();
            }
            core.replica.set_voters(self.shared.now(), &voters)?;
            let (sender, outcome) = oneshot::channel();
            core.elections.voters = Some(sender);
            outcome
        };
        self.shared.wake_driver.notify_one();
        outcome.await.unwrap_or(Err(SetVotersError::Closed))
    }

    /// Puts another list of voters in force without asking the present ones. Only for a cluster in which a majority of
    /// the voters is lost for ever; otherwise use [`Node::set_voters`].
    ///
    /// **This is not safe while a majority of the present voters may still run**: two nodes may then hold one lease.
    /// Stop the present voters first, as far as they run and are not in the new list. Every node takes the list as soon
    /// as it has reached it. From then on a new voter grants nothing for the greatest
    /// [`Config::lease_time_max`](crate::Config::lease_time_max) × 10/9: the lost voters may have granted leases that
    /// last so long. A lease that is held then may end.
    ///
    /// It also gives a cluster that never had any voters its first ones while the nodes run: call it once, on one node.
    /// Two calls with different lists would make two leaders possible.
    ///
    /// # Errors
    /// See [`SetVotersError`](crate::voters::SetVotersError); nothing is changed then.
    pub fn force_voters<T: Into<String>>(
        &self,
        voters: impl IntoIterator<Item = T>,
    ) -> Result<(), SetVotersError> {
        let voters: Vec<String> = voters.into_iter().map(Into::into).collect();
        let mut core = self.shared.lock().ok_or(SetVotersError::Closed)?;
        core.replica.force_voters(self.shared.now(), &voters)?;
        drop(core);
        self.shared.wake_driver.notify_one();
        Ok(())
    }

    /// The nodes of which a majority grants leases, as far as this node knows, and how far a change of them has come.
    pub fn voters(&self) -> VoterList {
        let core = self.shared.lock_closed();
        core.and_then(|core| core.replica.voters().cloned()).unwrap_or_default()
    }
}
