//! The settings that nodes must share to take part in the same elections, and what a voter's disk keeps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Elections;
use super::voter_list::{Ballots, VoterList};
use crate::config::{LEASE_TIME_MAX, LeaseTimes};
use crate::controls::Control;
use crate::form;
use crate::settings_record::{read_times, write_times};
use crate::store::digest::fingerprint;
use crate::text::Span;
use crate::wire::{Reader, WireError, Writer};

/// The settings that must be the same on all nodes that take part in elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VoterRules {
    /// How many steps of changes led to the list of voters, see [`VoterList::epoch`]. A node whose list has another
    /// epoch than those of others is about to learn of the latest one.
    pub voters_epoch: u64,
    /// A hash of the list of voters. The order of the list does not matter.
    #[serde(with = "form::hash")]
    pub voters_hash: u64,
    /// [`Config::lease_time_max`](crate::Config::lease_time_max); the lesser one while it is being changed.
    #[serde(with = "form::span")]
    pub lease_time_max: Duration,
    /// [`Config::clock_skew_max`](crate::Config::clock_skew_max); the greater one while it is being changed.
    #[serde(with = "form::span")]
    pub clock_skew_max: Duration,
}

impl VoterRules {
    pub(super) fn new(configured: LeaseTimes, list: &VoterList) -> Self {
        Self {
            voters_epoch: list.epoch,
            voters_hash: list.list_hash(),
            lease_time_max: list.lease_bounds(configured).0,
            clock_skew_max: list.skew_bound(configured),
        }
    }

    /// The settings that differ from those of another node, with both values.
    pub(crate) fn differences(&self, theirs: &Self) -> String {
        let times = [
            ("lease_time_max", self.lease_time_max, theirs.lease_time_max),
            ("clock_skew_max", self.clock_skew_max, theirs.clock_skew_max),
        ];
        let times = times.into_iter().filter(|(_, ours, theirs)| ours != theirs);
        let times = times.map(|(name, ours, theirs)| format!("{name} {}, here {}", Span(theirs), Span(ours)));
        let voters = (self.voters_hash != theirs.voters_hash).then(|| "another list of voters".to_owned());
        voters.into_iter().chain(times).collect::<Vec<_>>().join("; ")
    }

    /// Whether these rules differ although the lists have one epoch. With different epochs one node is about to learn of a
    /// later list; equal rules had differed when the request was sent.
    pub(super) fn differs_for_good(&self, other: &Self) -> bool {
        self.voters_epoch == other.voters_epoch && self != other
    }

    pub(super) fn rules_hash(self) -> u64 {
        let [lease, skew] =
            [self.lease_time_max, self.clock_skew_max].map(|time| time.as_millis().to_le_bytes());
        fingerprint(self.voters_hash, &[lease, skew].concat())
    }
}

/// What a voter's disk keeps about its grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    /// The greatest term granted so far.
    pub(crate) term: u64,
    /// The longest lease that may have been promised.
    pub(crate) lease: Duration,
}

impl Elections {
    /// What this node's voter had promised cannot be read: it promises nothing more, in this whole run, and its memo stays
    /// as it is.
    pub(crate) fn stop_voting(&mut self) {
        self.voter.is_memo_unread = true;
    }

    /// Whether the voters have these times, and no others are to follow.
    pub(crate) fn has_times(&self, times: LeaseTimes) -> bool {
        self.list.all_times(self.configured) == [times; 2]
    }

    /// Replaces the configured times, which may differ from node to node, by those that were set while nobody was a
    /// voter. A voter that has granted a lease keeps the times under which it did: those change only in the two steps
    /// of a change.
    pub(super) fn begin_with(&mut self, initial: LeaseTimes) {
        let is_first = self.list.epoch == 0 && !self.list.voters.is_empty();
        if !is_first || self.initial_times == Some(initial) || self.voter.granted_term_max() > 0 {
            return;
        }
        (self.configured, self.initial_times) = (initial, Some(initial));
        self.follow_rules();
        // Without a disk it may have granted leases in an earlier run, under times that nobody remembers.
        self.voter.adopt(self.rules, LEASE_TIME_MAX, 0);
        self.reported.clear();
        self.deadline = Duration::ZERO;
    }

    /// Works out what depends on the list and on the configured times.
    pub(super) fn follow_rules(&mut self) {
        self.rules = VoterRules::new(self.configured, &self.list);
        self.lease = self.lease_configured.min(self.rules.lease_time_max);
        if !self.controls.has(Control::VotersDiffer) {
            self.rules_hash = self.rules.rules_hash();
        }
    }
}

/// What a voter's disk keeps: its grants, the latest list of voters that it has adopted, and its ballots about the next
/// one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VoterMemo {
    pub(crate) promised: Promised,
    /// `None`: the configured list was never changed.
    pub(super) list: Option<VoterList>,
    pub(super) ballots: Ballots,
    /// The times that count in place of the configured ones, because they were changed while nobody was a voter.
    pub(super) initial_times: Option<LeaseTimes>,
}

impl VoterMemo {
    /// Without a memo nothing was promised. The first versions wrote the term alone; the longest lease that is permitted
    /// today is then assumed.
    ///
    /// # Errors
    /// If a later program wrote it, in a form that this one does not know. What was promised is unknown then: a voter
    /// must not take it for nothing.
    pub(crate) fn read(memo: Option<&[u8]>) -> Result<Self, WireError> {
        memo.map_or_else(|| Ok(Self::default()), Self::parse)
    }

    fn parse(memo: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::plain(memo);
        let term = reader.u64_le()?;
        let lease = if reader.is_at_end() { LEASE_TIME_MAX } else { Duration::from_millis(reader.u64_le()?) };
        let promised = Promised { term, lease: lease.min(LEASE_TIME_MAX) };
        let mut read = Self { promised, ..Self::default() };
        if !reader.is_at_end() {
            let list = VoterList::read(&mut reader)?;
            read.list = (list.epoch > 0).then_some(list);
            read.ballots = Ballots::read(&mut reader)?;
            if !reader.is_at_end() {
                read.initial_times = Some(read_times(&mut reader)?);
            }
        }
        reader.end()?;
        Ok(read)
    }

    /// Whether it has lease times, which programs of before the disk version for them do not read.
    pub(crate) fn has_times(&self) -> bool {
        let of_list = self.list.as_ref().is_some_and(|list| list.times.or(list.next_times).is_some());
        let accepted = self.ballots.accepted.as_ref();
        of_list
            || accepted.is_some_and(|(_, step)| step.electorate.times.is_some())
            || self.initial_times.is_some()
    }

    /// Whether the voter has accepted the step to this list, or has the list or a later one.
    pub(crate) fn has_accepted(&self, list: &VoterList) -> bool {
        let epoch = self.list.as_ref().map_or(0, |own| own.epoch);
        let step = self.ballots.accepted.as_ref().map(|(_, step)| &step.electorate);
        let wanted = list.following().unwrap_or_else(|| list.present());
        epoch >= list.epoch || epoch + 1 == list.epoch && step == Some(&wanted)
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut writer = Writer::plain();
        writer.u64_le(self.promised.term);
        writer.u64_le(self.promised.lease.as_millis() as u64);
        if self.list.is_some() || self.ballots != Ballots::default() || self.initial_times.is_some() {
            self.list.clone().unwrap_or_default().write(&mut writer);
            self.ballots.write(&mut writer);
        }
        if let Some(times) = self.initial_times {
            write_times(times, &mut writer);
        }
        writer.into_plain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memo_of_an_unknown_form_is_no_empty_memo() {
        let promised = Promised { term: 7, lease: LEASE_TIME_MAX };
        let times = LeaseTimes { lease_time_max: LEASE_TIME_MAX, clock_skew_max: LEASE_TIME_MAX };
        let list = VoterList { epoch: 2, voters: vec!["a".to_owned()], ..VoterList::default() };
        let plain = VoterMemo { promised, list: Some(list.clone()), ..VoterMemo::default() };
        let changed = VoterList { times: Some(times), ..list };
        let memos = [
            (VoterMemo { promised, ..VoterMemo::default() }, false),
            (VoterMemo { list: Some(changed), ..plain.clone() }, true),
            (VoterMemo { initial_times: Some(times), ..plain.clone() }, true),
            (plain, false),
        ];
        for (memo, has_times) in memos {
            let bytes = memo.write();
            assert_eq!(memo.has_times(), has_times);
            assert_eq!(VoterMemo::read(Some(&bytes)), Ok(memo));
            for wrong in [&bytes[..7], &[&bytes[..], &[1, 1, 1, 1, 1]].concat()] {
                assert!(VoterMemo::read(Some(wrong)).is_err(), "{wrong:?}");
            }
        }
        assert_eq!(VoterMemo::read(None), Ok(VoterMemo::default()));
    }
}
