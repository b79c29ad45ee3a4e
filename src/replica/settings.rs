//! The replica's side of the settings that all nodes share, and of those of this node alone.
//!
//! The record of shared settings is one entry of the store, under a key of the library itself. What it says of the lease
//! times takes effect in elections when the voters have decided it, see [`crate::election`]; everything else at once.

use super::{Output, Replica, ReplicaEvent};
use crate::config::{ClusterSettings, Config, LeaseTimes};
use crate::error::{ReconfigureError, SetSettingsError, SetVotersError, SettingsDiffer};
use crate::settings_record::{SettingsClaim, SettingsRecord};
use crate::store::key;
use crate::time::{Lifetime, Time};

const SETTINGS_KEY: &str = "settings";

impl Replica {
    /// The shared settings of the cluster, as far as this replica knows.
    pub fn cluster_settings(&self) -> SettingsRecord {
        self.settings_record().unwrap_or_else(|| SettingsRecord::configured(self.configured))
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Begins to change the shared settings of the whole cluster. The outcome comes as
    /// [`Output::SettingsSet`](super::Output::SettingsSet).
    ///
    /// # Errors
    /// See [`SetSettingsError`]; nothing began then.
    pub fn set_cluster_settings(
        &mut self,
        now: Time,
        settings: ClusterSettings,
    ) -> Result<(), SetSettingsError> {
        self.now = now;
        settings.check()?;
        self.check_writable(now)?;
        let has_voters = self.voters().is_some_and(|list| !list.voters.is_empty());
        let present = self.cluster_settings().present;
        if !has_voters || settings.lease_times() == present.lease_times() {
            self.write_settings(settings);
            self.outputs.push_back(Output::SettingsSet(Ok(())));
            return Ok(());
        }
        self.seat_voters();
        let election = self.election.as_mut().expect("it has voters");
        election.set_times(now, settings.lease_times())?;
        self.settings_asked = Some(settings);
        self.wake_elections();
        self.drain_election_effects();
        Ok(())
    }

    /// Nobody waits for the outcome of [`Replica::set_cluster_settings`] any more. A change that is written in the store
    /// goes on.
    pub fn end_set_settings(&mut self) {
        if self.settings_asked.take().is_some() {
            self.end_set_voters();
        }
    }

    /// Changes the settings of this replica alone, in all that they concern, at once.
    ///
    /// # Errors
    /// If a field is out of its range, or cannot be changed so. Nothing is changed then.
    pub fn reconfigure(&mut self, now: Time, config: Config) -> Result<(), ReconfigureError> {
        let mut checked = config.clone();
        if config.lease_time == self.config.lease_time {
            // The shared limit may have become lower since. The node asks for at most that.
            checked.lease_time = config.lease_time.min(config.lease_time_max);
        }
        checked.check()?;
        let fixed = [
            ("voters", config.voters == self.config.voters, "Node::set_voters"),
            (
                "lease_time_max",
                config.lease_time_max == self.config.lease_time_max,
                "Node::set_cluster_settings",
            ),
            (
                "clock_skew_max",
                config.clock_skew_max == self.config.clock_skew_max,
                "Node::set_cluster_settings",
            ),
            (
                "mesh_members_max",
                config.mesh_members_max == self.config.mesh_members_max,
                "Node::set_cluster_settings",
            ),
            ("on_corruption", config.on_corruption == self.config.on_corruption, "a restart"),
        ];
        if let Some((field, _, instead)) = fixed.into_iter().find(|(_, is_same, _)| !is_same) {
            return Err(ReconfigureError::Fixed { field, instead });
        }
        self.now = now;
        self.config = config;
        self.apply_config();
        Ok(())
    }

    /// Gives the configuration to everything that keeps a part of it.
    fn apply_config(&mut self) {
        let config = &self.config;
        self.store.reconfigure(config);
        self.write_limiter.reconfigure(config);
        self.wall_clock.set_skew_max(config.clock_skew_max);
        self.election.iter_mut().for_each(|election| election.reconfigure(config));
        self.members.iter_mut().for_each(|members| members.reconfigure(config));
        // The next tick sees all intervals anew.
        self.next_tick = self.next_tick.min(self.now.mono + self.config.sync_interval);
    }

    /// Takes in what the store says of the shared settings.
    pub(super) fn read_settings(&mut self) {
        let Some(record) = self.settings_record() else { return };
        if record.present == ClusterSettings::of(&self.config) {
            return;
        }
        record.present.put_into(&mut self.config);
        self.apply_config();
        self.outputs.push_back(Output::Event(ReplicaEvent::SettingsChanged { settings: record.present }));
    }

    /// The lease times that the store says the voters are to share.
    pub(super) fn wanted_times(&self) -> Option<LeaseTimes> {
        self.settings_record().map(|record| record.present.lease_times())
    }

    fn settings_record(&self) -> Option<SettingsRecord> {
        let (dot_set, _) = self.store.dot_set(&key::reserved(SETTINGS_KEY))?;
        let mut dots: Vec<_> = dot_set.dots().iter().collect();
        dots.sort_by_key(|dot| std::cmp::Reverse(dot.stamp()));
        SettingsRecord::joined(dots.into_iter().filter_map(|dot| SettingsRecord::read(dot.value()).ok()))
    }

    fn write_settings(&mut self, settings: ClusterSettings) {
        let record = self.cluster_settings();
        if record.present != settings {
            let value = record.changed_to(settings).write();
            self.write_put(self.now, &key::reserved(SETTINGS_KEY), &value, Lifetime::default());
            self.read_settings();
            self.read_voters();
        }
    }

    /// The voters have promised to take other lease times: now the store names them as the wanted ones.
    pub(super) fn want_settings(&mut self) {
        let Some(settings) = self.settings_asked else { return };
        match self.check_writable(self.now) {
            Ok(()) => self.write_settings(settings),
            Err(error) => {
                self.election.iter_mut().for_each(|election| election.end_asked(Err(error.clone().into())));
            }
        }
    }

    /// Tells whoever asked for other voters, or for other shared settings.
    pub(super) fn tell_voters_set(&mut self, outcome: Result<(), SetVotersError>) {
        let output = match self.settings_asked.take() {
            None => Output::VotersSet(outcome),
            Some(_) => Output::SettingsSet(outcome.map_err(|error| match error {
                SetVotersError::Superseded { .. } => {
                    SetSettingsError::Superseded { by: self.cluster_settings().present }
                }
                error => error.into(),
            })),
        };
        self.outputs.push_back(output);
    }

    // Links.

    /// What this replica tells of its settings when a link is made.
    pub(crate) fn settings_claim(&self) -> SettingsClaim {
        let number = self.settings_record().map_or(0, |record| record.number);
        SettingsClaim { configured: self.configured, number }
    }

    /// Whether a node with this claim may link with this one. A node that holds a record may: the records are joined.
    pub(crate) fn judge_settings(&self, theirs: SettingsClaim) -> Result<(), SettingsDiffer> {
        let record = self.cluster_settings();
        let is_good = theirs.number > 0 || record.knows(&theirs.configured);
        let differ = SettingsDiffer { theirs: theirs.configured, ours: record.present };
        if is_good { Ok(()) } else { Err(differ) }
    }

    /// Whether the configuration of this replica fits the record on its own disk.
    #[cfg(feature = "node")]
    pub(crate) fn judge_own_settings(&self) -> Result<(), SettingsDiffer> {
        let record = self.cluster_settings();
        let differ = SettingsDiffer { theirs: self.configured, ours: record.present };
        if record.knows(&self.configured) { Ok(()) } else { Err(differ) }
    }
}
