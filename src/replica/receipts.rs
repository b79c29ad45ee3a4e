//! Who has what this node wrote: the answers that receipts wait for.
//!
//! A peer that is sent everything by this node itself says how far it has come in this node's log. For members that get
//! it through a delegate, the delegate is asked how many of its group cover an event; it asks its mates, each of which
//! answers once it covers it. The delegate tells when more than half of its group does, when all do, and once in a
//! while what has changed.

use std::collections::{BTreeMap, BTreeSet};

use super::link::Link;
use super::{LinkId, Replica};
use crate::store::change_log::LogFilter;
use crate::store::entry::Revision;
use crate::time::Stamp;
use crate::wire::{Kind, Reader, WireError, Writer};

/// Origins about which one peer may be asking at a time.
const QUESTIONS_MAX: usize = 4_096;

/// Asks whether the peer alone, or how many of its group, cover an event.
const ASK: u8 = 0;
const ASK_GROUP: u8 = 1;
const ANSWER: u8 = 2;

/// What peers want to know of each other. One for each link.
#[derive(Debug, Default)]
pub(super) struct CoverageQuestions {
    /// What the peer asked: up to which event of an origin, for its whole group or not, and the last answer.
    questions: BTreeMap<u64, CoverageQuestion>,
    /// What the peer was asked, and what it said: by origin, up to which event, and how many members cover it.
    asked_coverage: BTreeMap<u64, u64>,
    told: BTreeMap<u64, (u64, u64)>,
    /// What is to be sent next, by origin: a question as its tag and clock, an answer as its clock and count. A later one
    /// takes the place of an earlier one, so that a peer that does not read makes nothing grow.
    to_ask: BTreeMap<u64, (u8, u64)>,
    to_tell: BTreeMap<u64, (u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct CoverageQuestion {
    clock: u64,
    is_group: bool,
    answered: u64,
}

impl CoverageQuestions {
    /// The next message of the link.
    pub(super) fn next_message(&mut self) -> Option<Vec<u8>> {
        if let Some((origin, (tag, clock))) = self.to_ask.pop_first() {
            return Some(message(tag, Stamp { clock, origin }, 0));
        }
        let (origin, (clock, count)) = self.to_tell.pop_first()?;
        Some(message(ANSWER, Stamp { clock, origin }, count))
    }

    /// Takes an answer, if it answers a question that was asked.
    fn on_answer(&mut self, origin: u64, clock: u64, count: u64) {
        if self.asked_coverage.get(&origin).is_none_or(|asked| *asked < clock) {
            return;
        }
        let told = self.told.entry(origin).or_default();
        *told = (clock, count).max(*told);
    }

    /// How many members the peer said cover this event.
    fn count(&self, stamp: Stamp) -> u64 {
        self.told.get(&stamp.origin).filter(|(clock, _)| *clock >= stamp.clock).map_or(0, |(_, count)| *count)
    }
}

impl Link {
    /// Asks the peer, unless it was asked already.
    fn ask_coverage(&mut self, tag: u8, stamp: Stamp) {
        let asked = self.coverage_questions.asked_coverage.entry(stamp.origin).or_default();
        if *asked >= stamp.clock {
            return;
        }
        *asked = stamp.clock;
        self.coverage_questions.to_ask.insert(stamp.origin, (tag, stamp.clock));
        forget_one(&mut self.coverage_questions.asked_coverage, stamp.origin);
        forget_one(&mut self.coverage_questions.told, stamp.origin);
        forget_one(&mut self.coverage_questions.to_ask, stamp.origin);
    }
}

fn forget_one<T>(of: &mut BTreeMap<u64, T>, except: u64) {
    if of.len() > QUESTIONS_MAX
        && let Some(other) = of.keys().copied().find(|other| *other != except)
    {
        of.remove(&other);
    }
}

fn message(tag: u8, stamp: Stamp, count: u64) -> Vec<u8> {
    let mut writer = Writer::new(Kind::Covers);
    writer.byte(tag);
    writer.u64_le(stamp.origin);
    writer.u64_le(stamp.clock);
    writer.varint(count);
    writer.finish()
}

impl Replica {
    /// Asks all peers, and through delegates their groups, to say when they have this write.
    pub fn request_acks(&mut self, revision: Revision, stamp: Option<Stamp>) {
        let stamp = self.latest_own(stamp);
        for link in self.links.values_mut().filter(|link| link.route.feeds) {
            if link.acked < revision.number {
                link.ack_wanted = Some(revision.number.max(link.ack_wanted.unwrap_or(0)));
            }
            if link.route.is_other_group {
                link.ask_coverage(ASK_GROUP, stamp);
            }
        }
    }

    /// How many nodes are known to have a write of this node's own, itself included.
    pub fn count_acked(&self, revision: Revision, stamp: Option<Stamp>) -> usize {
        let stamp = self.latest_own(stamp);
        let (mut count, mut groups) = (1, BTreeMap::<u64, u64>::new());
        for link in self.links.values() {
            let has = u64::from(link.acked >= revision.number);
            match (&self.members, link.run) {
                (Some(members), Some(run)) if link.route.is_other_group => {
                    let group = members.group(run);
                    // Whatever a delegate says, it speaks for no more than its group.
                    let most = members.group_len(group) as u64;
                    let best = groups.entry(group).or_default();
                    *best = link.coverage_questions.count(stamp).min(most).max(has).max(*best);
                }
                _ => count += has,
            }
        }
        count as usize + groups.values().sum::<u64>() as usize
    }

    /// The write's stamp, or else that of this node's last write: one that did nothing has none.
    fn latest_own(&self, stamp: Option<Stamp>) -> Stamp {
        let run = self.store.run;
        stamp.unwrap_or(Stamp { clock: self.store.coverage.vector().get(&run), origin: run })
    }

    pub(super) fn covers_frame(&mut self, id: LinkId, mut reader: Reader<'_>) -> Result<(), WireError> {
        let (tag, origin, clock, count) =
            (reader.byte()?, reader.u64_le()?, reader.u64_le()?, reader.varint()?);
        reader.end()?;
        let answers = &mut self.links.get_mut(id).expect("the caller looked").coverage_questions;
        match tag {
            ASK | ASK_GROUP => {
                answers
                    .questions
                    .insert(origin, CoverageQuestion { clock, is_group: tag == ASK_GROUP, answered: 0 });
                forget_one(&mut answers.questions, origin);
                self.coverage_questions.insert(id);
            }
            ANSWER => {
                answers.on_answer(origin, clock, count);
                // A mate's answer may be what others wait for.
                let waits = |link: &Link| {
                    link.coverage_questions.questions.get(&origin).is_some_and(|it| it.is_group)
                };
                self.coverage_questions
                    .extend(self.links.iter().filter(|(_, link)| waits(link)).map(|(id, _)| id));
            }
            _ => return Err(WireError::Form),
        }
        Ok(())
    }

    /// Answers what can be answered now. Once in a while all questions are looked at, and all that is new is told.
    pub(super) fn answer_coverage(&mut self, is_tick: bool) {
        let ids: BTreeSet<LinkId> = std::mem::take(&mut self.coverage_questions);
        for id in ids {
            let Some(link) = self.links.get(id) else { continue };
            let questions: Vec<(u64, CoverageQuestion)> = link
                .coverage_questions
                .questions
                .iter()
                .map(|(origin, question)| (*origin, *question))
                .collect();
            for (origin, question) in questions {
                let stamp = Stamp { clock: question.clock, origin };
                if question.is_group {
                    // Once a link: mates that are linked later are asked then.
                    let mates =
                        self.links.values_mut().filter(|link| link.route.filter == LogFilter::Forwarded);
                    mates.for_each(|link| link.ask_coverage(ASK, stamp));
                }
                let own = u64::from(self.store.coverage.vector().get(&origin) >= question.clock);
                let (count, all) = if question.is_group { self.count_group(stamp, own) } else { (own, 1) };
                let is_telling = count == all || is_tick || (question.answered == 0 && 2 * count > all);
                let link = self.links.get_mut(id).expect("looked above");
                if count > question.answered && is_telling {
                    link.coverage_questions.to_tell.insert(origin, (stamp.clock, count));
                    forget_one(&mut link.coverage_questions.to_tell, origin);
                    let known = link.coverage_questions.questions.get_mut(&origin).expect("listed above");
                    known.answered = count;
                }
                if count == all {
                    link.coverage_questions.questions.remove(&origin);
                }
            }
            if self.links.get(id).is_some_and(|link| !link.coverage_questions.questions.is_empty()) {
                self.coverage_questions.insert(id);
            }
        }
    }

    /// How many of this node's group cover an event, and how many there are.
    fn count_group(&self, stamp: Stamp, own: u64) -> (u64, u64) {
        let mates = self.links.values().filter(|link| link.route.filter == LogFilter::Forwarded);
        // Each mate answers for itself alone.
        let counts = mates.map(|link| link.coverage_questions.count(stamp).min(1));
        let all = self.members.as_ref().map_or(0, crate::membership::Members::mates);
        (own + counts.sum::<u64>(), 1 + all as u64)
    }
}
