//! Changing settings of simulated nodes while they run.

use super::SimNode;
use crate::config::{ClusterSettings, Config};
use crate::error::{ReconfigureError, SetSettingsError};
use crate::settings_record::SettingsRecord;

impl SimNode {
    /// Begins to change the shared settings of the whole cluster, as `Node::set_cluster_settings` does.
    ///
    /// # Errors
    /// See [`SetSettingsError`]; nothing began then.
    pub fn set_cluster_settings(&self, settings: ClusterSettings) -> Result<(), SetSettingsError> {
        let world = &mut *self.world();
        world.leaders.settings_set.remove(&self.i);
        let (replica, now) = world.replica(self.i).ok_or(SetSettingsError::Closed)?;
        replica.forget_caller();
        if replica.set_cluster_settings(now, settings)?.is_ready() {
            world.leaders.settings_set(self.i, Ok(()));
        }
        world.drain(self.i);
        Ok(())
    }

    /// What became of the last [`SimNode::set_cluster_settings`]. `None` as long as that is open.
    pub fn settings_set(&self) -> Option<Result<(), SetSettingsError>> {
        self.world().leaders.settings_set.get(&self.i).cloned()
    }

    /// The settings that all nodes share, as far as this node knows, with earlier ones.
    pub fn cluster_settings(&self) -> Option<SettingsRecord> {
        self.read(|replica, _| replica.cluster_settings())
    }

    /// The configuration in force.
    pub fn config(&self) -> Option<Config> {
        self.read(|replica, _| replica.config().clone())
    }

    /// Changes intervals and limits of this node, as `Node::reconfigure` does.
    ///
    /// # Errors
    /// See [`ReconfigureError`]; nothing is changed then.
    pub fn reconfigure(&self, config: Config) -> Result<(), ReconfigureError> {
        let world = &mut *self.world();
        let (replica, now) = world.replica(self.i).ok_or(ReconfigureError::Closed)?;
        replica.reconfigure(now, config)?;
        world.drain(self.i);
        Ok(())
    }
}
