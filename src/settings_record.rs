//! The settings that all nodes of a cluster share, and the record of them in the store.
//!
//! As long as they were never changed, each node has them from its own [`Config`], and nodes where they differ do not
//! link. Once they were changed, the store holds a record: the present settings, and earlier ones. From then on the
//! record counts. A node that does not hold it yet and whose own settings are the present ones or earlier ones of the
//! record takes over the present ones; any other node is refused.
//!
//! Several versions of the record exist where settings were changed on two sides of a partition. The one with the
//! greatest number counts, of equal ones the one that was written last; the others become earlier settings.
//!
//! A record also keeps with which settings its cluster began. Two nodes that both hold a record link only if that is the
//! same: otherwise they belong to two clusters, whose settings must not replace each other's by their numbers.
//!
//! Settings that are changed while nobody is a voter take effect at once. The record keeps the times of the last such
//! change (`initial_times`): the first voters of the cluster begin with them, whatever their configurations say.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{
    CLOCK_SKEW_MAX, CLOCK_SKEW_MIN, ClusterSettings, LEASE_TIME_MAX, LEASE_TIME_MIN, LeaseTimes,
};
use crate::time::{CLOCK_VALUE_MAX, Stamp};
use crate::wire::{Reader, WireError, Writer};

/// Earlier settings that a record keeps. A node whose own settings were in force even longer ago is refused.
pub(crate) const EARLIER_SETTINGS_MAX: usize = 32;

/// Settings that were in force before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EarlierSettings {
    /// What they were.
    #[serde(flatten)]
    pub settings: ClusterSettings,
    /// Who put them in force, and when. `None`: they were as configured, or nobody remembers.
    #[serde(skip)]
    pub written: Option<Stamp>,
}

/// The shared settings of a cluster, with earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SettingsRecord {
    /// How often the settings were changed. 0: they are as configured on each node.
    pub number: u64,
    /// What is in force, or about to be.
    pub present: ClusterSettings,
    /// Who put the present settings in force, and when: see [`Stamp::origin`]. `None`: they are as configured.
    #[serde(skip)]
    pub written: Option<Stamp>,
    /// What was in force before, the latest first, each once. At most 32.
    pub earlier: Vec<EarlierSettings>,
    /// The times with which the first voters begin. `None`: as configured, because nothing was changed without voters.
    #[serde(skip)]
    pub(crate) initial_times: Option<LeaseTimes>,
    /// The settings before the first change. `None`: nothing was changed, or by a program that did not keep them.
    #[serde(skip)]
    pub(crate) beginning: Option<ClusterSettings>,
}

impl SettingsRecord {
    pub(crate) fn configured(settings: ClusterSettings) -> Self {
        Self {
            number: 0,
            present: settings,
            written: None,
            earlier: Vec::new(),
            initial_times: None,
            beginning: None,
        }
    }

    /// The record after a change to these settings.
    pub(crate) fn changed_to(&self, settings: ClusterSettings) -> Self {
        let beginning = if self.number == 0 { Some(self.present) } else { self.beginning };
        let mut changed = Self {
            number: self.number + 1,
            initial_times: self.initial_times,
            beginning,
            ..Self::configured(settings)
        };
        changed.keep_earlier(self);
        changed
    }

    /// Joins concurrent versions of the record, the one that was written last first.
    pub(crate) fn joined(versions: impl Iterator<Item = Self>) -> Option<Self> {
        let mut versions: Vec<Self> = versions.collect();
        // Stable: of equal numbers the first one counts.
        versions.sort_by_key(|version| std::cmp::Reverse(version.number));
        let mut versions = versions.into_iter();
        let mut record = versions.next()?;
        for version in versions {
            record.keep_earlier(&version);
        }
        Some(record)
    }

    /// All states, the present one first.
    fn states(&self) -> impl Iterator<Item = EarlierSettings> {
        let present = EarlierSettings { settings: self.present, written: self.written };
        std::iter::once(present).chain(self.earlier.iter().copied())
    }

    fn keep_earlier(&mut self, other: &Self) {
        for state in other.states() {
            if !self.knows(&state.settings) && self.earlier.len() < EARLIER_SETTINGS_MAX {
                self.earlier.push(state);
            }
        }
    }

    /// Whether the lease times were changed, as far as is kept.
    pub(crate) fn has_changed_times(&self) -> bool {
        let present = self.present.lease_times();
        let mut known = self.states().map(|state| state.settings).chain(self.beginning);
        self.initial_times.is_some() || known.any(|settings| settings.lease_times() != present)
    }

    /// Whether these are the present settings or earlier ones.
    pub(crate) fn knows(&self, settings: &ClusterSettings) -> bool {
        self.states().any(|state| state.settings == *settings)
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut writer = Writer::plain();
        writer.varint(self.number);
        writer.varint(self.earlier.len() as u64);
        // Each state with its length, so that later versions may add fields to the end.
        writer.bytes(&self.present_entry());
        for EarlierSettings { settings, written } in &self.earlier {
            let mut entry = Writer::plain();
            write_settings(*settings, &mut entry);
            written.iter().for_each(|stamp| write_stamp(*stamp, &mut entry));
            writer.bytes(&entry.into_plain());
        }
        if let Some(times) = self.initial_times {
            write_times(times, &mut writer);
        }
        writer.into_plain()
    }

    /// The present settings, and those of the beginning behind a stamp: readers of before that field expect none or a
    /// stamp there, and skip what follows. The present state's own stamp is that of the store's entry.
    fn present_entry(&self) -> Vec<u8> {
        let mut entry = Writer::plain();
        write_settings(self.present, &mut entry);
        if let Some(beginning) = self.beginning {
            write_stamp(self.written.unwrap_or_default(), &mut entry);
            write_settings(beginning, &mut entry);
        }
        entry.into_plain()
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::plain(bytes);
        let number = reader.varint()?;
        if number > CLOCK_VALUE_MAX {
            return Err(WireError::Form);
        }
        let count = reader.count(1)?;
        if count > EARLIER_SETTINGS_MAX {
            return Err(WireError::TooMany);
        }
        let mut first = Reader::plain(reader.bytes()?);
        let EarlierSettings { settings: present, written } = read_state(&mut first)?;
        let beginning = if first.is_at_end() { None } else { Some(read_settings(&mut first)?) };
        let written = written.filter(|stamp| *stamp != Stamp::default());
        let earlier =
            (0..count).map(|_| read_state(&mut Reader::plain(reader.bytes()?))).collect::<Result<_, _>>()?;
        let initial_times = if reader.is_at_end() { None } else { Some(read_times(&mut reader)?) };
        Ok(Self { number, present, written, earlier, initial_times, beginning })
    }
}

fn write_stamp(stamp: Stamp, writer: &mut Writer) {
    writer.u64_le(stamp.clock);
    writer.run(stamp.origin);
}

fn write_settings(settings: ClusterSettings, writer: &mut Writer) {
    write_times(settings.lease_times(), writer);
    writer.varint(settings.mesh_members_max as u64);
}

/// Programs of before the stamps wrote none.
fn read_state(reader: &mut Reader<'_>) -> Result<EarlierSettings, WireError> {
    let settings = read_settings(reader)?;
    let is_stamped = !reader.is_at_end();
    let written =
        if is_stamped { Some(Stamp { clock: reader.u64_le()?, origin: reader.run()? }) } else { None };
    Ok(EarlierSettings { settings, written })
}

fn read_settings(reader: &mut Reader<'_>) -> Result<ClusterSettings, WireError> {
    let LeaseTimes { lease_time_max, clock_skew_max } = read_times(reader)?;
    let mesh_members_max = usize::try_from(reader.varint()?).map_err(|_| WireError::Form)?;
    let settings = ClusterSettings { lease_time_max, clock_skew_max, mesh_members_max };
    settings.check().map_err(|_| WireError::Form)?;
    Ok(settings)
}

/// Writes the times that voters share, in milliseconds.
pub(crate) fn write_times(times: LeaseTimes, writer: &mut Writer) {
    writer.varint(times.lease_time_max.as_millis() as u64);
    writer.varint(times.clock_skew_max.as_millis() as u64);
}

/// Reads the times that voters share. Times out of their ranges are refused.
pub(crate) fn read_times(reader: &mut Reader<'_>) -> Result<LeaseTimes, WireError> {
    let [lease_time_max, clock_skew_max] = [reader.varint()?, reader.varint()?].map(Duration::from_millis);
    let is_possible = (LEASE_TIME_MIN..=LEASE_TIME_MAX).contains(&lease_time_max)
        && (CLOCK_SKEW_MIN..=CLOCK_SKEW_MAX).contains(&clock_skew_max);
    if is_possible { Ok(LeaseTimes { lease_time_max, clock_skew_max }) } else { Err(WireError::Form) }
}

/// What a node says of its settings when a link is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SettingsClaim {
    /// Those of its own configuration.
    pub(crate) configured: ClusterSettings,
    /// The number of the record that it holds. 0: none.
    pub(crate) number: u64,
    /// With which settings its cluster began, as the record says.
    pub(crate) beginning: Option<ClusterSettings>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::id::RunId;

    fn settings(members: usize) -> ClusterSettings {
        ClusterSettings { mesh_members_max: members, ..ClusterSettings::of(&Config::lan()) }
    }

    #[test]
    fn record_survives_its_bytes_and_garbage_does_not() {
        let record = SettingsRecord::configured(settings(1)).changed_to(settings(2)).changed_to(settings(3));
        let bytes = record.write();
        assert_eq!(SettingsRecord::read(&bytes), Ok(record.clone()));
        assert!((0..bytes.len()).all(|end| SettingsRecord::read(&bytes[..end]).is_err()));
        let times = Some(settings(2).lease_times());
        let record = SettingsRecord { initial_times: times, ..record };
        assert_eq!(SettingsRecord::read(&record.write()), Ok(record.clone()));
        assert_eq!(record.changed_to(settings(4)).initial_times, times, "a change with voters keeps them");
        let written = Some(Stamp { clock: 7, origin: RunId::new(8) });
        let record = SettingsRecord { written, ..record }.changed_to(settings(4));
        assert_eq!((record.written, record.earlier[0].written), (None, written));
        assert_eq!(SettingsRecord::read(&record.write()), Ok(record));
        let wrong = SettingsRecord { present: settings(513), ..SettingsRecord::configured(settings(1)) };
        assert!(SettingsRecord::read(&wrong.write()).is_err(), "513 is out of range");
    }

    #[test]
    fn earlier_settings_are_kept_once_and_bounded() {
        let mut record = SettingsRecord::configured(settings(0));
        for members in [1, 0, 1, 2] {
            record = record.changed_to(settings(members));
        }
        assert_eq!((record.number, record.present), (4, settings(2)));
        let earlier =
            |record: &SettingsRecord| record.states().skip(1).map(|it| it.settings).collect::<Vec<_>>();
        assert_eq!(earlier(&record), [settings(1), settings(0)]);
        for members in 0..100 {
            record = record.changed_to(settings(members));
        }
        assert_eq!(record.earlier.len(), EARLIER_SETTINGS_MAX);
        assert!(record.knows(&settings(98)) && !record.knows(&settings(3)));
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let base = SettingsRecord::configured(settings(0));
        let (a, b) = (base.changed_to(settings(1)), base.changed_to(settings(2)));
        let joined = SettingsRecord::joined([b, a.clone()].into_iter()).expect("there are two");
        assert_eq!((joined.present, joined.number), (settings(2), 1), "the last write counts");
        let earlier: Vec<_> = joined.earlier.iter().map(|state| state.settings).collect();
        assert_eq!(earlier, [settings(0), settings(1)]);
        let later = a.changed_to(settings(3));
        let joined = SettingsRecord::joined([joined, later].into_iter()).expect("there are two");
        assert_eq!(joined.present, settings(3), "the greater number counts");
    }
}
