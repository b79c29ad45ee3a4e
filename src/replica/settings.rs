//! The replica's side of the settings that all nodes share, and of those of this node alone.
//!
//! The record of shared settings is one entry of the store, under a key of the library itself. What it says of the
//! lease times takes effect in elections when the voters have decided it, see [`crate::election`]; everything else at
//! once.

use std::task::Poll;

use super::{Output, Replica, ReplicaEvent};
use crate::config::{ClusterSettings, Config};
use crate::controls::Control;
use crate::election::{Ask, Elections, StoredTimes};
use crate::error::{ReconfigureError, SetSettingsError, SetVotersError, SettingsDiffer};
use crate::membership::{Member, Members};
use crate::settings_record::{SettingsClaim, SettingsRecord};
use crate::store::key;
use crate::time::Time;

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

    /// Changes the shared settings of the whole cluster, or begins to. As long as it is pending, the outcome comes as
    /// [`Output::SettingsSet`](super::Output::SettingsSet).
    ///
    /// # Errors
    /// See [`SetSettingsError`]; nothing began then.
    pub fn set_cluster_settings(
        &mut self,
        now: Time,
        settings: ClusterSettings,
    ) -> Result<Poll<()>, SetSettingsError> {
        self.now = now;
        settings.check()?;
        self.check_writable(now)?;
        self.check_programs(|members| members.without_settings(&[]).next())?;
        let has_voters = self.voters().is_some_and(|list| !list.voters.is_empty());
        let present = self.cluster_settings().present;
        // The record is written before the voters have the times.
        let is_lagging = |election: &Elections| !election.has_times(settings.lease_times());
        let changes_times = settings.lease_times() != present.lease_times()
            || has_voters && self.election.as_ref().is_some_and(is_lagging);
        if changes_times && self.election.as_ref().is_some_and(|election| election.lacks_voters(now)) {
            // The voters may have granted leases, and have to decide. To this node they are none.
            return Err(SetVotersError::NoVoters.into());
        }
        if !has_voters || !changes_times {
            let mut record = self.cluster_settings().changed_to(settings);
            if changes_times {
                record.initial_times = Some(settings.lease_times());
            }
            self.write_record(&record);
            return Ok(Poll::Ready(()));
        }
        self.check_outcomes_polled()?;
        self.seat_voters();
        let election = self.election.as_mut().expect("it has voters");
        election.set_settings(now, settings)?;
        self.wake_elections();
        self.drain_election_effects();
        Ok(Poll::Pending)
    }

    /// Refuses a change of settings or voters because of a member whose program would not take part: it would go on
    /// with the earlier ones.
    pub(super) fn check_programs(
        &self,
        find: impl FnOnce(&Members) -> Option<&Member>,
    ) -> Result<(), SetVotersError> {
        let old = self.members.as_ref().and_then(find);
        old.map_or(Ok(()), |member| Err(SetVotersError::OldProgram { name: member.name.clone() }))
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
        let shared = [
            ("lease_time_max", config.lease_time_max == self.config.lease_time_max),
            ("clock_skew_max", config.clock_skew_max == self.config.clock_skew_max),
            ("mesh_members_max", config.mesh_members_max == self.config.mesh_members_max),
        ];
        let others = [
            ("voters", config.voters == self.config.voters, "Node::set_voters"),
            ("on_corruption", config.on_corruption == self.config.on_corruption, "a restart"),
        ];
        let shared = shared.map(|(field, is_same)| (field, is_same, "Node::set_cluster_settings"));
        let mut fixed = shared.into_iter().chain(others);
        if let Some((field, _, instead)) = fixed.find(|(_, is_same, _)| !is_same) {
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
        // With a lower `clock_skew_max` a claim may be from further in the future than peers take.
        self.withhold_future();
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

    /// What the store says of the lease times that the voters share.
    pub(super) fn stored_times(&self) -> StoredTimes {
        let Some(record) = self.settings_record() else { return StoredTimes::default() };
        // Where other settings were changed alone, the lists of voters name no times: earlier programs can read them.
        let wanted = record.has_changed_times().then(|| record.present.lease_times());
        StoredTimes { initial: record.initial_times, wanted }
    }

    fn settings_record(&self) -> Option<SettingsRecord> {
        let (dot_set, _) = self.store.dot_set(&key::reserved(SETTINGS_KEY))?;
        let mut dots: Vec<_> = dot_set.dots().iter().collect();
        dots.sort_by_key(|dot| std::cmp::Reverse(dot.stamp()));
        SettingsRecord::joined(dots.into_iter().filter_map(|dot| {
            // The stamp of the entry is not in its value yet.
            let record = SettingsRecord::read(dot.value()).ok()?;
            // Each change has a stamp of its own. A record after more of them would be the last one for ever.
            if record.number > dot.stamp().clock {
                return None;
            }
            Some(SettingsRecord { written: Some(dot.stamp()), ..record })
        }))
    }

    pub(super) fn write_settings(&mut self, settings: ClusterSettings) {
        self.write_record(&self.cluster_settings().changed_to(settings));
    }

    fn write_record(&mut self, record: &SettingsRecord) {
        if record.present != self.cluster_settings().present {
            self.write_reserved(SETTINGS_KEY, &record.write());
            self.read_settings();
            self.read_voters();
        }
    }

    /// Writes the present settings as if they had been changed so often, as a hostile member could.
    #[cfg(feature = "__controls")]
    pub(crate) fn forge_settings(&mut self, now: Time, number: u64) {
        self.now = now;
        let record = SettingsRecord { number, ..self.cluster_settings() };
        self.write_reserved(SETTINGS_KEY, &record.write());
        self.read_settings();
    }

    /// Tells the caller that asked for other voters, or for other shared settings.
    pub(super) fn tell_caller(&mut self, ask: &Ask, outcome: Result<(), SetVotersError>) {
        let output = match ask {
            Ask::Voters(_) => Output::VotersSet(outcome),
            Ask::Settings(_) => Output::SettingsSet(outcome.map_err(|error| match error {
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
        let SettingsRecord { number, beginning, .. } = self.cluster_settings();
        SettingsClaim { configured: self.configured, number, beginning }
    }

    /// Whether a node with this claim may link with this one. A node that holds a record of a cluster that began with
    /// the same settings may: the records are joined, as after a partition.
    pub(crate) fn judge_settings(&self, theirs: SettingsClaim) -> Result<(), SettingsDiffer> {
        let record = self.cluster_settings();
        if let (Some(theirs), Some(ours)) = (theirs.beginning, record.beginning)
            && theirs != ours
            && !self.store.controls.has(Control::BeginningIgnored)
        {
            return Err(SettingsDiffer { theirs, ours, is_beginning: true });
        }
        let is_good = theirs.number > 0 || record.knows(&theirs.configured);
        let differ = SettingsDiffer { theirs: theirs.configured, ours: record.present, is_beginning: false };
        if is_good { Ok(()) } else { Err(differ) }
    }

    /// Whether the configuration of this replica fits the record on its own disk.
    #[cfg(feature = "node")]
    pub(crate) fn judge_own_settings(&self) -> Result<(), SettingsDiffer> {
        self.judge_settings(SettingsClaim { configured: self.configured, number: 0, beginning: None })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Input, Setup};
    use super::*;
    use crate::id::LinkId;
    use crate::membership::tests::member;
    use crate::replica::saved::Saved;
    use crate::wire::Abilities;

    fn at(ms: u64) -> Time {
        Time::default().later_by(Duration::from_millis(ms))
    }

    /// A voter with a disk, the only one of its cluster.
    fn voter() -> Replica {
        let own = Member { name: "own".to_owned(), ..member(1) };
        let config = Config { voters: vec!["own".to_owned()], ..Config::lan() };
        Replica::new(Setup { member: Some(own), has_disk: true, ..Setup::new(config, 1) })
    }

    fn other_times(replica: &Replica) -> ClusterSettings {
        let present = replica.cluster_settings().present;
        ClusterSettings { lease_time_max: Duration::from_secs(4), ..present }
    }

    #[test]
    fn settings_wait_for_members_that_cannot_follow() {
        let mut replica = voter();
        let link = LinkId::new(1);
        replica.handle(at(1), Input::LinkUp(link, Abilities::NONE));
        replica.handle(at(1), Input::LinkIdentified(link, &member(2), 0));
        for change in [
            |settings| ClusterSettings { lease_time_max: Duration::from_secs(4), ..settings },
            |settings| ClusterSettings { mesh_members_max: 9, ..settings },
        ] {
            let settings = change(replica.cluster_settings().present);
            let refused = replica.set_cluster_settings(at(2), settings);
            assert_eq!(refused, Err(SetSettingsError::OldProgram { name: "n2".to_owned() }));
        }
        assert_eq!(replica.cluster_settings().number, 0, "nothing was changed");
        // Its program is replaced.
        replica.handle(at(3), Input::LinkDown(link));
        let (link, after) = (LinkId::new(2), Member { name: "n2".to_owned(), ..member(3) });
        replica.handle(at(3), Input::LinkUp(link, Abilities::OURS));
        replica.handle(at(3), Input::LinkIdentified(link, &after, 0));
        let settings = other_times(&replica);
        assert_eq!(replica.set_cluster_settings(at(4), settings), Ok(Poll::Pending));
    }

    #[test]
    fn no_claim_is_withheld_before_the_clock_is_read() {
        let mut first = voter();
        let settings = ClusterSettings { mesh_members_max: 9, ..first.cluster_settings().present };
        _ = first.set_cluster_settings(at(3_600_000), settings).unwrap();
        let saved = Saved::of(&first.store);
        let vector = saved.vector.clone();
        let replica = Replica::new(Setup { saved: Some(saved), ..Setup::new(Config::lan(), 2) });
        assert_eq!(replica.config.mesh_members_max, 9, "it has read the record");
        assert!(!replica.store.coverage.withholds_future() && !vector.is_empty());
        assert!(replica.store.coverage.vector().covers_all(&vector));
    }

    /// Lets time pass, with a disk that takes everything at once. The version of the last transaction.
    fn run(replica: &mut Replica, steps: usize) -> u8 {
        let mut version = 0;
        for _ in 0..steps {
            while replica.poll().is_some() {}
            while let Some(part) = replica.persist() {
                version =
                    part.metadata().last().and_then(|(_, summary)| Some(summary?[0])).unwrap_or(version);
                if part.ends() {
                    replica.handle(replica.now, Input::Persisted);
                }
            }
            replica.handle(replica.deadline(), Input::Wake);
        }
        version
    }

    #[test]
    fn stored_lease_times_raise_the_disk_version() {
        let mut replica = voter();
        replica.set_voters(at(1), &["own".to_owned()]).unwrap();
        assert_eq!(run(&mut replica, 400), 3, "programs of before the times read it");
        let settings = ClusterSettings { mesh_members_max: 9, ..replica.cluster_settings().present };
        _ = replica.set_cluster_settings(replica.now, settings).unwrap();
        replica.force_voters(replica.now, &["own".to_owned()]).unwrap();
        assert_eq!(run(&mut replica, 400), 3, "the times are as configured");
        let settings = other_times(&replica);
        _ = replica.set_cluster_settings(replica.now, settings).unwrap();
        assert_eq!(run(&mut replica, 400), 4);
        let lists = (replica.voters().unwrap().epoch, replica.cluster_settings().present);
        assert_eq!(lists, ((1 << 16) + 2, settings), "forced, and then changed in two steps");
    }
}
