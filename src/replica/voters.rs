//! The replica's side of changing the voters: two entries of the store, under keys of the library itself, so that every
//! node learns of them as of any write, also one that was cut off.
//!
//! One entry has the list that the cluster is to have; any voter drives the change to it. The other has the list that
//! was decided last. A driver that was suspended may write an old list late, concurrently with a newer one: of all
//! versions that the entry holds, the list with the greatest epoch counts. A list that cannot have that epoch or term
//! floor yet does not count: otherwise a hostile member could write one that no other follows, or under which no lease
//! is granted. Never write a list that would not count: it would replace the one that does.

use super::{Output, Replica};
use crate::controls::Control;
use crate::election::{Ask, Elections, VoterList, VoterMemo, read_names, write_names};
use crate::error::SetVotersError;
use crate::membership::Member;
use crate::store::key;
use crate::time::{Lifetime, Time};
use crate::wire::{Reader, Writer};

const WANTED_KEY: &str = "voters/wanted";
const DECIDED_KEY: &str = "voters/decided";

/// Whether it says what became of a call that changes the voters or the shared settings.
fn is_outcome(output: &Output) -> bool {
    matches!(output, Output::VotersSet(_) | Output::SettingsSet(_))
}

impl Replica {
    /// Begins to change the list of voters of the whole cluster to these. The outcome comes as
    /// [`Output::VotersSet`](super::Output::VotersSet).
    ///
    /// # Errors
    /// See [`SetVotersError`]; nothing began then.
    pub fn set_voters(&mut self, now: Time, voters: &[String]) -> Result<(), SetVotersError> {
        self.now = now;
        self.check_writable(now)?;
        self.check_outcomes_polled()?;
        if self.cluster_settings().number > 0 {
            let is_wanted = |member: &&Member| voters.contains(&member.name);
            self.check_programs(|members| members.without_settings(&[]).find(is_wanted))?;
        }
        self.seat_voters();
        let election = self.election.as_mut().ok_or(SetVotersError::NoVoters)?;
        election.set_voters(now, voters)?;
        // The nodes that are to become voters need their seats before they are asked.
        self.seat_voters();
        self.wake_elections();
        self.drain_election_effects();
        Ok(())
    }

    /// Puts another list of voters in force without asking the present ones. See `Node::force_voters`.
    ///
    /// # Errors
    /// See [`SetVotersError`]; nothing is changed then.
    pub fn force_voters(&mut self, now: Time, voters: &[String]) -> Result<(), SetVotersError> {
        self.now = now;
        self.check_writable(now)?;
        let election = self.election.as_ref().ok_or(SetVotersError::NoVoters)?;
        let list = election.forced_list(now, voters)?;
        // Both in one step, although the first may use up what may be written now: the wanted list alone changes
        // nothing, and without it the voters may change back to what was wanted before.
        self.write_decided(&list);
        if self.voters().is_none_or(|known| known.epoch != list.epoch) {
            return Err(SetVotersError::Ahead);
        }
        self.write_wanted(&list.voters);
        self.drain_election_effects();
        Ok(())
    }

    /// Nobody waits any more for the outcome of [`Replica::set_voters`] or [`Replica::set_cluster_settings`]. A change that
    /// is written in the store goes on.
    pub fn forget_caller(&mut self) {
        self.election.iter_mut().for_each(Elections::forget_asked);
        // The next caller would take it for the outcome of its own call.
        self.outputs.retain(|output| !is_outcome(output));
    }

    /// Refuses a call as long as the outcome of an earlier one has not been polled.
    pub(super) fn check_outcomes_polled(&self) -> Result<(), SetVotersError> {
        if self.outputs.iter().any(is_outcome) { Err(SetVotersError::Busy) } else { Ok(()) }
    }

    /// The present list of voters, as far as this replica knows.
    pub fn voters(&self) -> Option<&VoterList> {
        self.election.as_ref().map(Elections::list)
    }

    /// What the disk of this replica's voter is to keep.
    pub(crate) fn voter_memo(&self) -> Option<VoterMemo> {
        VoterMemo::read(Some(&self.election.as_ref()?.memo())).ok()
    }

    /// The voters that the cluster is about to have, if they differ from the present ones.
    pub fn wanted_voters(&self) -> Option<&[String]> {
        self.election.as_ref()?.wanted()
    }

    /// Takes in what the store says of the voters.
    pub(super) fn read_voters(&mut self) {
        let (decided, wanted, times) = (self.decided_voters(), self.stored_wanted(), self.stored_times());
        let Some(election) = &mut self.election else { return };
        election.learn(self.now, decided, wanted, times);
    }

    fn decided_voters(&self) -> Option<VoterList> {
        let (dot_set, _) = self.store.dot_set(&key::reserved(DECIDED_KEY))?;
        let lists = dot_set.dots().iter().filter_map(|dot| {
            let list = VoterList::read(&mut Reader::plain(dot.value())).ok()?;
            self.counts(&list, dot.stamp().clock).then_some(list)
        });
        lists.max_by_key(|list| list.epoch)
    }

    /// Whether a list counts that is written at this clock.
    fn counts(&self, list: &VoterList, written: u64) -> bool {
        self.store.controls.has(Control::EpochUnbounded) || list.is_credible(written)
    }

    fn stored_wanted(&self) -> Option<Vec<String>> {
        let (dot_set, _) = self.store.dot_set(&key::reserved(WANTED_KEY))?;
        // The entry never expires.
        let names = read_names(&mut Reader::plain(dot_set.winner(|_| false)?.value()));
        names.ok().filter(|names| !names.is_empty())
    }

    /// Writes into the store what the cluster is to have.
    pub(super) fn want(&mut self, ask: Ask) {
        let mut checked = self.check_writable(self.now).map_err(SetVotersError::from);
        if let Ask::Settings(_) = ask {
            // All voters have answered by now, so their greetings are known.
            let voters = self.voters().map(VoterList::names).unwrap_or_default();
            let check = || self.check_programs(|members| members.without_settings(&voters).next());
            checked = checked.and_then(|()| check());
        }
        if let Err(error) = checked {
            self.election.iter_mut().for_each(|election| election.end_asked(Err(error.clone())));
            return;
        }
        match ask {
            Ask::Voters(voters) => self.write_wanted(&voters),
            Ask::Settings(settings) => self.write_settings(settings),
        }
    }

    fn write_wanted(&mut self, voters: &[String]) {
        let mut writer = Writer::plain();
        write_names(&mut writer, voters);
        self.write_reserved(WANTED_KEY, &writer.into_plain());
        self.read_voters();
    }

    /// Writes an entry of the library itself, which never expires.
    pub(super) fn write_reserved(&mut self, key: &str, value: &[u8]) {
        self.write_put(self.now, &key::reserved(key), value, Lifetime::default());
    }

    /// The voters have decided this list. One that cannot be written now, or would not count yet, is decided again
    /// later.
    pub(super) fn on_decided(&mut self, list: &VoterList) {
        if self.check_writable(self.now).is_ok() {
            self.write_decided(list);
        }
    }

    /// Writes the list that was decided, unless a later one is known or it would not count yet.
    fn write_decided(&mut self, list: &VoterList) {
        let is_latest = self.decided_voters().is_none_or(|known| known.epoch < list.epoch);
        if is_latest && self.counts(list, self.store.clock.coming_clock(self.now)) {
            self.write_list(list);
        }
    }

    fn write_list(&mut self, list: &VoterList) {
        let mut writer = Writer::plain();
        list.write(&mut writer);
        self.write_reserved(DECIDED_KEY, &writer.into_plain());
        self.read_voters();
    }

    /// Writes a list that nobody has decided, as a hostile member could.
    #[cfg(feature = "__controls")]
    pub(crate) fn forge_voters(&mut self, now: Time, list: &VoterList) {
        self.now = now;
        self.write_list(list);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Input, Setup};
    use super::*;
    use crate::config::Config;
    use crate::membership::tests::member;

    fn at(seconds: u64) -> Time {
        Time::default().later_by(Duration::from_secs(seconds))
    }

    fn replica(voters: &[&str]) -> Replica {
        let own = Member { name: "own".to_owned(), ..member(1) };
        let config =
            Config { voters: voters.iter().map(|name| (*name).to_owned()).collect(), ..Config::lan() };
        Replica::new(Setup { member: Some(own), has_disk: true, ..Setup::new(config, 1) })
    }

    #[test]
    fn list_is_forced_while_writes_are_limited() {
        let mut replica = replica(&["own", "a", "b"]);
        replica.handle(at(1), Input::Wake);
        // The first of two entries takes all that may be written now.
        replica.write_limiter.adapt(at(1).mono, u64::MAX);
        let voters = ["own".to_owned()];
        replica.force_voters(at(1), &voters).expect("it can be written");
        assert!(replica.is_busy(at(1)), "the test does not limit the writes");
        assert_eq!(replica.voters().map(|list| list.voters.as_slice()), Some(&voters[..]));
        assert_eq!(replica.wanted_voters(), None);
        let again = replica.force_voters(at(1), &["a".to_owned()]);
        assert!(matches!(again, Err(SetVotersError::Write(_))), "{again:?}");
        assert_eq!(replica.voters().map(|list| list.voters.as_slice()), Some(&voters[..]));
    }

    #[test]
    fn list_that_would_not_count_yet_is_not_forced() {
        let mut replica = replica(&["own", "a", "b"]);
        replica.handle(at(1), Input::Wake);
        // The last epoch that counts at this instant.
        let epoch = replica.store.clock.coming_clock(at(1));
        let forged = VoterList { epoch, voters: vec!["a".to_owned()], ..VoterList::default() };
        replica.write_list(&forged);
        assert_eq!(replica.voters(), Some(&forged));
        let own = ["own".to_owned()];
        assert_eq!(replica.force_voters(at(1), &own), Err(SetVotersError::Ahead));
        assert_eq!((replica.voters(), replica.wanted_voters()), (Some(&forged), None));
        assert_eq!(replica.decided_voters().as_ref(), Some(&forged), "it was replaced in the store");
        assert_eq!(replica.force_voters(at(2), &own), Ok(()));
        assert_eq!(replica.voters().map(|list| list.voters.as_slice()), Some(&own[..]));
    }

    #[test]
    fn outcome_is_told_to_its_own_caller_alone() {
        let voters = ["own".to_owned()];
        for is_forgotten in [false, true] {
            let mut replica = replica(&["own"]);
            replica.set_voters(at(1), &voters).unwrap();
            // The outcome of the first call waits to be polled.
            for _ in 0..1_000 {
                if replica.outputs.iter().any(is_outcome) {
                    break;
                }
                while let Some(part) = replica.persist() {
                    if part.ends() {
                        replica.handle(replica.now, Input::Persisted);
                    }
                }
                replica.handle(replica.deadline(), Input::Wake);
            }
            if is_forgotten {
                replica.forget_caller();
                assert!(!std::iter::from_fn(|| replica.poll()).any(|output| is_outcome(&output)));
                assert_eq!(replica.set_voters(replica.now, &voters), Ok(()));
            } else {
                assert_eq!(replica.set_voters(replica.now, &voters), Err(SetVotersError::Busy));
                assert!(std::iter::from_fn(|| replica.poll()).any(|output| is_outcome(&output)));
                assert_eq!(replica.set_voters(replica.now, &voters), Ok(()));
            }
        }
    }
}
