//! The settings that all nodes of a cluster share, and the record of them in the store.
//!
//! As long as they were never changed, each node has them from its own [`Config`], and nodes where they differ do not
//! link. Once they were changed, the store holds a record: the present settings, and earlier ones. From then on the
//! record counts. A node that does not hold it yet and whose own settings are the present ones or earlier ones of the
//! record takes over the present ones; any other node is refused.
//!
//! Several versions of the record exist where settings were changed on two sides of a partition. The one with the
//! greatest number counts, of equal ones the one that was written last; the others become earlier settings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{
    CLOCK_SKEW_MAX, CLOCK_SKEW_MIN, ClusterSettings, LEASE_TIME_MAX, LEASE_TIME_MIN, LeaseTimes,
};
use crate::wire::{Reader, WireError, Writer};

/// Earlier settings that a record keeps. A node whose own settings were in force even longer ago is refused.
pub(crate) const EARLIER_SETTINGS_MAX: usize = 32;

/// The shared settings of a cluster, with earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SettingsRecord {
    /// How often the settings were changed. 0: they are as configured on each node.
    pub number: u64,
    /// What is in force, or about to be.
    pub present: ClusterSettings,
    /// What was in force before, the latest first, each once. At most 32.
    pub earlier: Vec<ClusterSettings>,
}

impl SettingsRecord {
    pub(crate) fn configured(settings: ClusterSettings) -> Self {
        Self { number: 0, present: settings, earlier: Vec::new() }
    }

    /// The record after a change to these settings.
    pub(crate) fn changed_to(&self, settings: ClusterSettings) -> Self {
        let mut changed = Self { number: self.number + 1, present: settings, earlier: Vec::new() };
        changed.keep_earlier(std::iter::once(&self.present).chain(&self.earlier));
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
            record.keep_earlier(std::iter::once(&version.present).chain(&version.earlier));
        }
        Some(record)
    }

    fn keep_earlier<'a>(&mut self, settings: impl Iterator<Item = &'a ClusterSettings>) {
        for settings in settings {
            let is_known = *settings == self.present || self.earlier.contains(settings);
            if !is_known && self.earlier.len() < EARLIER_SETTINGS_MAX {
                self.earlier.push(*settings);
            }
        }
    }

    /// Whether these are the present settings or earlier ones.
    pub(crate) fn knows(&self, settings: &ClusterSettings) -> bool {
        self.present == *settings || self.earlier.contains(settings)
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut writer = Writer::plain();
        writer.varint(self.number);
        writer.varint(self.earlier.len() as u64);
        std::iter::once(&self.present).chain(&self.earlier).for_each(|settings| {
            // With its length, so that later versions may add settings to the end.
            let mut entry = Writer::plain();
            write_settings(*settings, &mut entry);
            writer.bytes(&entry.into_plain());
        });
        writer.into_plain()
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::plain(bytes);
        let number = reader.varint()?;
        let count = reader.count(1)?;
        if count > EARLIER_SETTINGS_MAX {
            return Err(WireError::TooMany);
        }
        let mut entries = (0..=count).map(|_| read_settings(&mut Reader::plain(reader.bytes()?)));
        let present = entries.next().expect("there is at least one")?;
        Ok(Self { number, present, earlier: entries.collect::<Result<_, _>>()? })
    }
}

fn write_settings(settings: ClusterSettings, writer: &mut Writer) {
    write_times(settings.lease_times(), writer);
    writer.varint(settings.mesh_members_max as u64);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(members: usize) -> ClusterSettings {
        ClusterSettings { mesh_members_max: members, ..ClusterSettings::of(&Config::lan()) }
    }

    #[test]
    fn record_survives_its_bytes_and_garbage_does_not() {
        let record = SettingsRecord::configured(settings(1)).changed_to(settings(2)).changed_to(settings(3));
        let bytes = record.write();
        assert_eq!(SettingsRecord::read(&bytes), Ok(record));
        assert!((0..bytes.len()).all(|end| SettingsRecord::read(&bytes[..end]).is_err()));
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
        assert_eq!(record.earlier, [settings(1), settings(0)]);
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
        assert_eq!(joined.earlier, [settings(0), settings(1)]);
        let later = a.changed_to(settings(3));
        let joined = SettingsRecord::joined([joined, later].into_iter()).expect("there are two");
        assert_eq!(joined.present, settings(3), "the greater number counts");
    }
}
