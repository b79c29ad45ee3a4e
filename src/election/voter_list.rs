//! The list of voters, and which sets of voters are a majority of it.
//!
//! A list has an *epoch*: the number of steps by which it was changed since the configured list, which has epoch 0. A
//! change takes two steps. In between, at an odd epoch, the list is *joint*: it names the old voters and the next ones,
//! and whatever needs a majority needs one of each. See [`super::change`]. A list that is put in force without the
//! present voters has the next multiple of [`EPOCHS_PER_FORCE`] as its epoch, and steps are counted on from there.
//!
//! A list also has the times that its voters share, once they were changed; until then those are as configured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CREDIBLE_AHEAD_MAX, VOTERS_BYTES_MAX};
use crate::config::{ConfigError, LeaseTimes, VOTERS_MAX};
use crate::error::SetVotersError;
use crate::settings_record::{read_times, write_times};
use crate::store::digest::fingerprint;
use crate::time::{CLOCK_VALUE_MAX, HybridClock, Stamp};
use crate::wire::{Reader, WireError, Writer};

/// A forced list has an epoch that is a multiple of this, so that it is never taken for the end of a change that its
/// writer did not know. A millisecond of a stamp's clock, so that [`VoterList::is_credible`] lets one list be forced in
/// each.
pub(super) const EPOCHS_PER_FORCE: u64 = 1 << 16;

/// More than [`VOTERS_MAX`]: added to the number of voters where times follow their names.
const TIMES_FLAG: usize = 32;

/// What a change leads to: the voters, and the times that they share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Electorate {
    /// The names of the voters, sorted.
    pub(crate) voters: Vec<String>,
    /// `None`: as configured.
    pub(crate) times: Option<LeaseTimes>,
}

/// The nodes of which a majority grants leases, and how far a change of them has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VoterList {
    /// Grows with each list: by 1 with each of the two steps of a change, and to the next multiple of 65,536 by
    /// `Node::force_voters`. 0: the list of [`Config::voters`](crate::Config::voters).
    pub epoch: u64,
    /// The names of the voters, sorted.
    pub voters: Vec<String>,
    /// While the list is being changed: the voters that follow, sorted. A majority of them is needed too.
    pub next: Option<Vec<String>>,
    /// Terms up to this one may have been granted by voters of earlier lists.
    #[serde(skip)]
    pub(crate) term_floor: u64,
    /// The times that the voters share. `None`: as configured.
    #[serde(skip)]
    pub(crate) times: Option<LeaseTimes>,
    /// While the list is being changed: the times that follow.
    #[serde(skip)]
    pub(crate) next_times: Option<LeaseTimes>,
}

impl VoterList {
    /// The configured list.
    pub(super) fn configured(mut voters: Vec<String>) -> Self {
        voters.sort_unstable();
        Self { voters, ..Self::default() }
    }

    /// Whether so many steps can have been decided, and such terms granted, by the clock of the stamp under which the
    /// list was written: each step was written under a later stamp. With a greater epoch a list would be the last one
    /// for ever, with a greater term floor no lease would be granted any more.
    pub(crate) fn is_credible(&self, written: u64) -> bool {
        self.epoch <= written && self.term_floor <= credible_max(written)
    }

    /// All names of the list, sorted, each once.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.voters.iter().chain(self.next.iter().flatten()).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.voters.iter().chain(self.next.iter().flatten()).any(|voter| voter == name)
    }

    /// What is in force, apart from a change.
    pub(super) fn present(&self) -> Electorate {
        Electorate { voters: self.voters.clone(), times: self.times }
    }

    /// What follows, if a change has begun.
    pub(super) fn following(&self) -> Option<Electorate> {
        self.next.clone().map(|voters| Electorate { voters, times: self.next_times })
    }

    /// The longest lease that is granted, and the longest that may have been promised under this list or the one before.
    /// They differ while the times are being changed.
    pub(super) fn lease_bounds(&self, configured: LeaseTimes) -> (Duration, Duration) {
        let [present, next] = self.all_times(configured).map(|times| times.lease_time_max);
        (present.min(next), present.max(next))
    }

    /// The greatest difference of wall clocks to reckon with.
    pub(super) fn skew_bound(&self, configured: LeaseTimes) -> Duration {
        let [present, next] = self.all_times(configured).map(|times| times.clock_skew_max);
        present.max(next)
    }

    /// The present times, and those that follow; the same if no change has begun.
    pub(super) fn all_times(&self, configured: LeaseTimes) -> [LeaseTimes; 2] {
        let present = self.times.unwrap_or(configured);
        [present, self.next.as_ref().map_or(present, |_| self.next_times.unwrap_or(configured))]
    }

    /// The list that follows when this step is decided.
    pub(super) fn successor(&self, step: &Step, skips_joint: bool) -> Self {
        let epoch = self.epoch + 1;
        let Electorate { voters, times } = step.electorate.clone();
        match &self.next {
            None if skips_joint => Self { epoch, voters, times, ..self.clone() },
            None => Self { epoch, next: Some(voters), next_times: times, ..self.clone() },
            Some(_) => {
                let term_floor = self.term_floor.max(step.term_floor);
                Self { epoch, voters, next: None, term_floor, times, next_times: None }
            }
        }
    }

    /// The epoch of a list that is put in force after this one, without a decision of its voters.
    pub(super) fn forced_epoch(&self) -> u64 {
        (self.epoch / EPOCHS_PER_FORCE + 1) * EPOCHS_PER_FORCE
    }

    /// Whether this list is the next step after an earlier one. Otherwise it was forced, or a list between them was
    /// missed; or its epoch was reached by so many steps that it could have been forced.
    pub(super) fn follows(&self, earlier: &Self) -> bool {
        self.epoch == earlier.epoch + 1
            && !self.epoch.is_multiple_of(EPOCHS_PER_FORCE)
            && earlier.next.as_ref().is_none_or(|next| *next == self.voters)
    }

    /// Whether a majority of the list before this one, in each set of its voters, has accepted this one. `None`: that
    /// list does not tell its voters, or there is none because this one was forced.
    pub(crate) fn is_accepted(
        &self,
        before: Option<&Self>,
        has_accepted: impl Fn(&str) -> bool,
    ) -> Option<bool> {
        if self.epoch.is_multiple_of(EPOCHS_PER_FORCE) {
            return None;
        }
        // A joint list names the voters of the one before.
        let before = match &self.next {
            Some(_) => Self { next: None, ..self.clone() },
            None => before?.clone(),
        };
        let names = before.names();
        Some(VoterSets::new(&before).is_met(|at| has_accepted(&names[at])))
    }

    /// A hash of the epoch, the names and the times. At epoch 0 it is that of the names alone.
    pub(super) fn list_hash(&self) -> u64 {
        let named = |names: &[String]| -> Vec<u8> {
            names.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect()
        };
        let mut text = named(&self.voters);
        if self.epoch > 0 {
            text.push(0);
            text.extend(named(self.next.as_deref().unwrap_or_default()));
            text.extend(self.epoch.to_le_bytes());
            for (tag, times) in [(0, self.times), (1, self.next_times)] {
                let ms = |time: Duration| (time.as_millis() as u64).to_le_bytes();
                text.extend(times.iter().flat_map(|times| {
                    [&[tag][..], &ms(times.lease_time_max), &ms(times.clock_skew_max)].concat()
                }));
            }
        }
        fingerprint(0, &text)
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.varint(self.epoch);
        writer.u64_le(self.term_floor);
        self.present().write(writer);
        self.following().unwrap_or(Electorate { voters: Vec::new(), times: None }).write(writer);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (epoch, term_floor) = (reader.varint()?, read_floor(reader)?);
        if epoch > CLOCK_VALUE_MAX {
            return Err(WireError::Form);
        }
        let (Electorate { voters, times }, next) = (Electorate::read(reader)?, Electorate::read(reader)?);
        let next_times = next.times;
        let next = Some(next.voters).filter(|next| !next.is_empty());
        Ok(Self { epoch, voters, next, term_floor, times, next_times })
    }
}

impl Electorate {
    /// Names, and [`TIMES_FLAG`] added to their number if times follow.
    fn write(&self, writer: &mut Writer) {
        let flag = if self.times.is_some() { TIMES_FLAG } else { 0 };
        writer.varint((self.voters.len() + flag) as u64);
        self.voters.iter().for_each(|name| writer.bytes(name.as_bytes()));
        self.times.iter().for_each(|times| write_times(*times, writer));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let flagged = usize::try_from(reader.varint()?).map_err(|_| WireError::Form)?;
        let voters = read_counted_names(reader, flagged % TIMES_FLAG)?;
        let times = match flagged / TIMES_FLAG {
            0 => None,
            1 => Some(read_times(reader)?),
            _ => return Err(WireError::Form),
        };
        Ok(Self { voters, times })
    }
}

/// What the voters of one list decide about the next one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Step {
    /// The new voters and times.
    pub(crate) electorate: Electorate,
    /// See [`VoterList`]. It counts only at the second step of a change.
    pub(crate) term_floor: u64,
}

impl Step {
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u64_le(self.term_floor);
        self.electorate.write(writer);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { term_floor: read_floor(reader)?, electorate: Electorate::read(reader)? })
    }
}

/// The greatest term, term floor or ballot that counts at this clock value.
pub(super) fn credible_max(clock: u64) -> u64 {
    clock.saturating_add(HybridClock::units(CREDIBLE_AHEAD_MAX)).min(CLOCK_VALUE_MAX)
}

/// No greater floor counts at any time.
fn read_floor(reader: &mut Reader<'_>) -> Result<u64, WireError> {
    let floor = reader.u64_le()?;
    if floor <= CLOCK_VALUE_MAX { Ok(floor) } else { Err(WireError::Form) }
}

/// A voter's part in deciding the step after its present list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ballots {
    /// No lesser ballot is accepted any more.
    pub(super) promised: Stamp,
    /// The greatest ballot that was accepted, and its step.
    pub(super) accepted: Option<(Stamp, Step)>,
}

impl Ballots {
    pub(super) fn write(&self, writer: &mut Writer) {
        write_stamp(writer, self.promised);
        write_accepted(writer, self.accepted.as_ref());
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { promised: read_stamp(reader)?, accepted: read_accepted(reader)? })
    }
}

pub(super) fn write_stamp(writer: &mut Writer, stamp: Stamp) {
    writer.u64_le(stamp.clock);
    writer.run(stamp.origin);
}

pub(super) fn read_stamp(reader: &mut Reader<'_>) -> Result<Stamp, WireError> {
    Ok(Stamp { clock: reader.u64_le()?, origin: reader.run()? })
}

pub(super) fn write_accepted(writer: &mut Writer, accepted: Option<&(Stamp, Step)>) {
    writer.byte(u8::from(accepted.is_some()));
    if let Some((ballot, step)) = accepted {
        write_stamp(writer, *ballot);
        step.write(writer);
    }
}

pub(super) fn read_accepted(reader: &mut Reader<'_>) -> Result<Option<(Stamp, Step)>, WireError> {
    Ok(match reader.byte()? {
        0 => None,
        _ => Some((read_stamp(reader)?, Step::read(reader)?)),
    })
}

/// Checks the names of voters and sorts them.
pub(super) fn checked_names(voters: &[String]) -> Result<Vec<String>, SetVotersError> {
    let wrong = |value: String, range| SetVotersError::Names(ConfigError { field: "voters", value, range });
    let mut names = voters.to_vec();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong(pair[0].clone(), "names of nodes, each once"));
    }
    if !(1..=VOTERS_MAX).contains(&names.len()) {
        return Err(wrong(format!("{} names", names.len()), "1 to 31 names of nodes"));
    }
    if names.iter().any(String::is_empty) {
        return Err(wrong("an empty name".to_owned(), "names of nodes"));
    }
    let bytes: usize = names.iter().map(String::len).sum();
    if bytes > VOTERS_BYTES_MAX {
        return Err(wrong(format!("{bytes} bytes of names"), "at most 896 bytes of names"));
    }
    Ok(names)
}

/// Writes names of voters.
pub(crate) fn write_names(writer: &mut Writer, names: &[String]) {
    writer.varint(names.len() as u64);
    names.iter().for_each(|name| writer.bytes(name.as_bytes()));
}

/// Reads names of voters, sorted and each once.
pub(crate) fn read_names(reader: &mut Reader<'_>) -> Result<Vec<String>, WireError> {
    let count = reader.count(1)?;
    read_counted_names(reader, count)
}

fn read_counted_names(reader: &mut Reader<'_>, count: usize) -> Result<Vec<String>, WireError> {
    if count > VOTERS_MAX {
        return Err(WireError::Form);
    }
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let name = std::str::from_utf8(reader.bytes()?).map_err(|_| WireError::Form)?;
        names.push(name.to_owned());
    }
    let is_sorted = names.windows(2).all(|pair| pair[0] < pair[1]);
    let bytes: usize = names.iter().map(String::len).sum();
    let fits = bytes <= VOTERS_BYTES_MAX && names.iter().all(|name| !name.is_empty());
    if is_sorted && fits { Ok(names) } else { Err(WireError::Form) }
}

/// The sets of voters of each of which a majority is needed, as indexes into the sorted names of a list: one set, or
/// two while the list is joint.
#[derive(Clone, Debug)]
pub(super) struct VoterSets(Vec<Vec<usize>>);

impl VoterSets {
    pub(super) fn new(list: &VoterList) -> Self {
        let names = list.names();
        let at = |name: &String| names.binary_search(name).expect("names are those of the list");
        let sets = std::iter::once(&list.voters).chain(&list.next);
        Self(sets.map(|voters| voters.iter().map(at).collect()).collect())
    }

    /// Whether these voters are a majority of every set.
    pub(super) fn is_met(&self, has: impl Fn(usize) -> bool) -> bool {
        self.0.iter().all(|set| set.iter().filter(|at| has(**at)).count() > set.len() / 2)
    }

    /// How many of these voters there are in the set that lacks most, and how many it needs.
    pub(super) fn tally(&self, has: impl Fn(usize) -> bool) -> (usize, usize) {
        let tally = |set: &Vec<usize>| (set.iter().filter(|at| has(**at)).count(), set.len() / 2 + 1);
        let tallies = self.0.iter().map(tally);
        tallies
            .min_by_key(|(reached, needed)| reached.cast_signed() - needed.cast_signed())
            .unwrap_or_default()
    }

    /// The greatest value that a majority of every set reaches.
    pub(super) fn reached_by_majority<T: Ord + Default>(&self, value: impl Fn(usize) -> T) -> T {
        let of_set = |set: &Vec<usize>| {
            let mut values: Vec<T> = set.iter().map(|at| value(*at)).collect();
            values.sort_unstable_by(|a, b| b.cmp(a));
            values.into_iter().nth(set.len() / 2).unwrap_or_default()
        };
        self.0.iter().map(of_set).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn step(voters: &str, times: Option<LeaseTimes>) -> Step {
        Step { electorate: Electorate { voters: names(voters), times }, term_floor: 7 }
    }

    fn joint() -> VoterList {
        let list = VoterList::configured(names("c a b"));
        list.successor(&step("c d e", None), false)
    }

    #[test]
    fn joint_list_needs_a_majority_of_both() {
        let list = joint();
        assert_eq!((list.epoch, list.names()), (1, names("a b c d e")));
        let is_met = |text: &str| {
            let all = list.names();
            VoterSets::new(&list).is_met(|at| names(text).contains(&all[at]))
        };
        assert!(is_met("a c d") && is_met("a b d e"));
        assert!(!is_met("a b c") && !is_met("c d e") && !is_met("a d e"));
        assert!(!VoterSets::new(&VoterList::default()).is_met(|_| true), "nobody is no majority");
        let next = list.successor(&step("c d e", None), false);
        assert_eq!((next.epoch, next.voters, next.next, next.term_floor), (2, names("c d e"), None, 7));
    }

    #[test]
    fn value_reached_by_majority_is_the_lesser_one() {
        let quorum = VoterSets::new(&joint());
        let until = [9, 8, 1, 5, 4].map(Duration::from_secs);
        assert_eq!(quorum.reached_by_majority(|at| until[at]), Duration::from_secs(4));
        assert_eq!(quorum.tally(|at| at < 2), (0, 2));
    }

    #[test]
    fn list_survives_the_wire_and_disorder_does_not() {
        let list = joint();
        let mut writer = Writer::plain();
        list.write(&mut writer);
        let bytes = writer.into_plain();
        assert_eq!(VoterList::read(&mut Reader::plain(&bytes)), Ok(list));
        let mut writer = Writer::plain();
        write_names(&mut writer, &names("b a"));
        assert_eq!(read_names(&mut Reader::plain(&writer.into_plain())), Err(WireError::Form));
    }
}
