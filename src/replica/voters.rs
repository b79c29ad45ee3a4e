//! The replica's side of changing the voters: two entries of the store, under keys of the library itself, so that every
//! node learns of them as of any write, also one that was cut off.
//!
//! One entry has the list that the cluster is to have; any voter drives the change to it. The other has the list that
//! was decided last. A driver that was suspended may write an old list late, concurrently with a newer one: of all
//! versions that the entry holds, the list with the greatest epoch counts.

use super::Replica;
use crate::election::{Elections, Electorate, VoterList, read_names, write_names};
use crate::error::SetVotersError;
use crate::store::key;
use crate::time::{Lifetime, Time};
use crate::wire::{Reader, Writer};

const WANTED_KEY: &str = "voters/wanted";
const DECIDED_KEY: &str = "voters/decided";

impl Replica {
    /// Begins to change the list of voters of the whole cluster to these. The outcome comes as
    /// [`Output::VotersSet`](super::Output::VotersSet).
    ///
    /// # Errors
    /// See [`SetVotersError`]; nothing began then.
    pub fn set_voters(&mut self, now: Time, voters: &[String]) -> Result<(), SetVotersError> {
        self.now = now;
        self.check_writable(now)?;
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
        let election = self.election.as_mut().ok_or(SetVotersError::NoVoters)?;
        election.force_voters(now, voters)?;
        self.drain_election_effects();
        Ok(())
    }

    /// Nobody waits for the outcome of [`Replica::set_voters`] any more. A change that is written in the store goes on.
    pub fn end_set_voters(&mut self) {
        self.election.iter_mut().for_each(Elections::end_set_voters);
    }

    /// The present list of voters, as far as this replica knows.
    pub fn voters(&self) -> Option<&VoterList> {
        self.election.as_ref().map(Elections::list)
    }

    /// The voters that the cluster is about to have, if they differ from the present ones.
    pub fn wanted_voters(&self) -> Option<&[String]> {
        self.election.as_ref()?.wanted()
    }

    /// Takes in what the store says of the voters.
    pub(super) fn read_voters(&mut self) {
        let (decided, wanted, times) = (self.decided_voters(), self.stored_wanted(), self.wanted_times());
        let Some(election) = &mut self.election else { return };
        election.learn(self.now, decided, wanted, times);
    }

    fn decided_voters(&self) -> Option<VoterList> {
        let (dot_set, _) = self.store.dot_set(&key::reserved(DECIDED_KEY))?;
        let lists =
            dot_set.dots().iter().filter_map(|dot| VoterList::read(&mut Reader::plain(dot.value())).ok());
        lists.max_by_key(|list| list.epoch)
    }

    fn stored_wanted(&self) -> Option<Vec<String>> {
        let (dot_set, _) = self.store.dot_set(&key::reserved(WANTED_KEY))?;
        // The entry never expires.
        let names = read_names(&mut Reader::plain(dot_set.winner(|_| false)?.value()));
        names.ok().filter(|names| !names.is_empty())
    }

    /// Writes that the cluster is to have these voters and times, as far as the store does not say so.
    pub(super) fn want_electorate(&mut self, wanted: &Electorate) {
        let stored = self.stored_wanted();
        let present = self.voters().map(|list| &list.voters);
        if stored.as_ref().or(present) != Some(&wanted.voters) {
            self.want_voters(&wanted.voters);
        }
        self.want_settings();
        self.read_voters();
    }

    fn want_voters(&mut self, voters: &[String]) {
        let mut writer = Writer::plain();
        write_names(&mut writer, voters);
        match self.check_writable(self.now) {
            Ok(()) => {
                self.write_put(
                    self.now,
                    &key::reserved(WANTED_KEY),
                    &writer.into_plain(),
                    Lifetime::default(),
                );
            }
            Err(error) => {
                self.election.iter_mut().for_each(|election| election.end_asked(Err(error.clone().into())));
            }
        }
    }

    /// Writes the list that was decided. A list that cannot be written now is decided again later.
    pub(super) fn write_decided(&mut self, list: &VoterList) {
        let is_old = self.decided_voters().is_some_and(|known| known.epoch >= list.epoch);
        if is_old || self.check_writable(self.now).is_err() {
            return;
        }
        let mut writer = Writer::plain();
        list.write(&mut writer);
        self.write_put(self.now, &key::reserved(DECIDED_KEY), &writer.into_plain(), Lifetime::default());
        self.read_voters();
    }
}
