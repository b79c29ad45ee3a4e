//! The seats of the voters: which run a node takes for each voter of the list, and what a change of the list moves.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Elections, Living, PeerVoter, VoterList};
use crate::time::Time;

impl Elections {
    /// Updates which run lives under the name of each voter, and of each node that is to become one.
    pub(crate) fn seat_voters(&mut self, living: impl Fn(&str) -> Living) {
        for voter in &mut self.voters {
            let run = match living(&voter.name) {
                // A voter that is wrongly believed to be gone may still receive messages.
                Living::Nobody => voter.run,
                Living::One(run) => Some(run),
                Living::Several => None,
            };
            if run != voter.run {
                *voter = PeerVoter { run, ..PeerVoter::new(std::mem::take(&mut voter.name)) };
                self.deadline = Duration::ZERO;
            }
        }
        self.seat_invited(living);
    }

    /// The names of the voters, if this node has something to ask of them, and of nodes that are to become voters.
    pub(crate) fn needed_voters(&self) -> impl Iterator<Item = &str> {
        let is_idle = self.candidacies.is_empty()
            && self.views.is_empty()
            && self.change.is_none()
            && self.asked.is_none();
        let voters = if is_idle { &[][..] } else { &self.voters };
        voters.iter().map(|voter| voter.name.as_str()).chain(self.invited())
    }

    /// Moves everything that is kept by seat to the seats of another list.
    pub(super) fn reseat(&mut self, now: Time, list: &VoterList) {
        // A voter that has granted a campaign that is not decided yet is told that it is over.
        let names: Vec<String> = self.candidacies.keys().cloned().collect();
        let undecided = names.iter().filter(|name| !self.candidacies[*name].is_held());
        undecided.cloned().collect::<Vec<_>>().iter().for_each(|name| self.release(now.mono, name));
        let names = list.names();
        let old_seat = |name: &String| self.voters.iter().position(|voter| voter.name == *name);
        let old_seats: Vec<Option<usize>> = names.iter().map(old_seat).collect();
        for candidacy in self.candidacies.values_mut() {
            candidacy.reseat(now.mono, &self.quorum, &self.voters, &old_seats);
        }
        self.views.values_mut().for_each(|view| view.reseat(now.mono, &old_seats));
        let new_seat = |old: usize| old_seats.iter().position(|seat| *seat == Some(old));
        let releases = std::mem::take(&mut self.releases).into_iter();
        self.releases = releases
            .filter_map(|((old, name), owed)| Some(((new_seat(old)?, name), owed)))
            .collect::<BTreeMap<_, _>>();
        let mut old: Vec<Option<PeerVoter>> =
            std::mem::take(&mut self.voters).into_iter().map(Some).collect();
        let seat = |(name, seat): (String, &Option<usize>)| {
            let kept = seat.and_then(|seat| old[seat].take());
            // Who had another list has this one, or is about to.
            kept.map_or_else(
                || PeerVoter::new(name),
                |voter| PeerVoter { differs_until: Duration::ZERO, ..voter },
            )
        };
        self.voters = names.into_iter().zip(&old_seats).map(seat).collect();
    }
}
