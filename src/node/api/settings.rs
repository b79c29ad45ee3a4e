//! Changing settings while nodes run: the shared ones of the cluster, over the change in the core, and those of one node.

use tokio::sync::oneshot;

use crate::config::{ClusterSettings, Config};
use crate::error::{ReconfigureError, SetSettingsError};
use crate::node::Node;
use crate::settings_record::SettingsRecord;

impl Node {
    /// The configuration in force: as the node was built with, and as it was changed since.
    pub fn config(&self) -> Config {
        let core = self.shared.lock_closed();
        core.map_or_else(Config::default, |core| core.replica.config().clone())
    }

    /// Changes intervals and limits of this node, from now on. It takes effect in everything at once; timers that run
    /// already keep their time. The node does not remember it: it starts next time with what it is built with.
    ///
    /// ```no_run
    /// # async fn run(node: tidings::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut config = node.config();
    /// config.sync_interval = std::time::Duration::from_secs(2);
    /// node.reconfigure(config)?;
    /// # Ok(()) }
    /// ```
    ///
    /// Not changed so are [`Config::voters`] ([`Node::set_voters`]), the settings that all nodes share
    /// ([`Node::set_cluster_settings`]), and [`Config::on_corruption`], which only matters at the start.
    ///
    /// # Errors
    /// See [`ReconfigureError`](crate::settings::ReconfigureError); nothing is changed then.
    pub fn reconfigure(&self, config: Config) -> Result<(), ReconfigureError> {
        let mut core = self.shared.lock().ok_or(ReconfigureError::Closed)?;
        core.replica.reconfigure(self.shared.now(), config)?;
        drop(core);
        // The disk's interval and the driver's timers may have become shorter.
        self.shared.disk.request_sync();
        self.shared.wake_driver.notify_one();
        Ok(())
    }

    /// The settings that all nodes share, as far as this node knows, with earlier ones.
    pub fn cluster_settings(&self) -> SettingsRecord {
        let core = self.shared.lock_closed();
        core.map_or_else(
            || SettingsRecord::configured(ClusterSettings::of(&Config::default())),
            |core| core.replica.cluster_settings(),
        )
    }

    /// Changes the settings that all nodes share, on all nodes, while they run. Nodes that are away take them over when
    /// they are back. From then on the configuration of a node counts only when it joins: it is refused unless its own
    /// settings are the present ones or earlier ones.
    ///
    /// `mesh_members_max` and `clock_skew_max` are in force on each node as soon as it has the write. Where the cluster
    /// has voters, `lease_time_max` and `clock_skew_max` are changed by them in two steps, as the list of voters is
    /// ([`Node::set_voters`]): leases stay held and are never held twice. All voters need a data directory for that, all
    /// have to answer when the change begins, and it takes about the greater `lease_time_max` × 10/9. If the future is
    /// dropped or this node crashes, the change goes on as soon as it is written into the store.
    ///
    /// ```no_run
    /// # async fn run(node: tidings::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut settings = node.cluster_settings().present;
    /// settings.mesh_members_max = 50;
    /// node.set_cluster_settings(settings).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`SetSettingsError`](crate::settings::SetSettingsError). The settings are unchanged then, except after
    /// [`Superseded`](crate::settings::SetSettingsError::Superseded).
    pub async fn set_cluster_settings(&self, settings: ClusterSettings) -> Result<(), SetSettingsError> {
        let outcome = {
            let mut core = self.shared.lock().ok_or(SetSettingsError::Closed)?;
            if !core.elections.is_change_awaited() {
                core.replica.forget_caller();
            }
            let done = core.replica.set_cluster_settings(self.shared.now(), settings)?;
            self.shared.wake_driver.notify_one();
            if done.is_ready() {
                return Ok(());
            }
            let (sender, outcome) = oneshot::channel();
            core.elections.settings = Some(sender);
            outcome
        };
        outcome.await.unwrap_or(Err(SetSettingsError::Closed))
    }

    /// Puts the settings that all nodes share back to the ones before. Called twice, it goes forward again.
    ///
    /// # Errors
    /// See [`SetSettingsError`](crate::settings::SetSettingsError), as for [`Node::set_cluster_settings`].
    pub async fn roll_back_cluster_settings(&self) -> Result<(), SetSettingsError> {
        let before = self.cluster_settings().earlier.first().ok_or(SetSettingsError::NoEarlier)?.settings;
        self.set_cluster_settings(before).await
    }
}
