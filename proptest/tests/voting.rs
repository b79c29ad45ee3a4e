//! The voting rules under a model checker (`stateright`), exhaustively for three voters and two candidates; and a
//! register that is guarded by fencing tokens, checked for linearizability over random histories in which leaders are
//! stopped and cut off.
//!
//! Negative controls: `NoQuarantine` makes the checker find two leaders; a register that ignores tokens is not
//! linearizable in some history.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use stateright::{Checker, Model, Property};
use tidings::sim::Sim;
use tidings::{Config, Control, ModelAnswer, ModelRequest, ModelVoter, RunId};
use tidings_proptest::{Dice, voters};

const VOTERS: usize = 3;
const CANDIDATES: usize = 2;
/// Step of time in the model. Of a lease of 10 s a holder counts 9 s, so that it leads in the step in which it asked
/// and in the next one. Voters are free in the step after that, and in quarantine for three steps after a start.
const TICK: Duration = Duration::from_secs(5);
const COUNTED_TICKS: u8 = 2;

/// Two candidates and three voters without a disk. A request may be lost or arrive late, also after its candidate has
/// given up; a voter may be restarted. Answers arrive at once: a late or lost answer tells a candidate less, and a
/// grant counts from the time of its request anyway.
struct Voting {
    control: Option<Control>,
    ticks_max: u8,
    restarts_max: u8,
    claims_max: u8,
    /// Whether requests may arrive late, also those that the candidate has given up.
    has_late: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    now: u8,
    restarts: u8,
    voters: Vec<ModelVoter>,
    candidates: Vec<Candidate>,
    /// Greatest term of all leases so far.
    greatest: u64,
    has_gone_back: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Candidate {
    term: u64,
    /// When it first asked for grants.
    begun: u8,
    claims: u8,
    is_leader: bool,
    /// By voter: the session, and until when the grant is counted.
    granted: [Option<(u64, u8)>; VOTERS],
    /// The term that it has given up. Requests for grants and releases of it may still arrive. 0: none.
    over: u64,
}

impl Candidate {
    fn votes(&self, now: u8) -> usize {
        self.granted.iter().flatten().filter(|(_, until)| *until > now).count()
    }

    fn leads(&self, now: u8) -> bool {
        self.is_leader && self.votes(now) > VOTERS / 2
    }

    fn give_up(&mut self) {
        *self = Self { claims: self.claims, over: self.term, ..Self::default() };
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Tick,
    Begin(usize),
    /// A request for a grant of a candidate to a voter, sent this many ticks ago.
    Claim(usize, usize, u8),
    ClaimOver(usize, usize),
    Renew(usize, usize),
    GiveUp(usize),
    Release(usize, usize),
    Restart(usize),
}

fn time(ticks: u8) -> Duration {
    TICK * u32::from(ticks)
}

impl Model for Voting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // The voters are past their quarantine: they started at time zero.
        let voter = |_| ModelVoter::new(Duration::ZERO, self.control, 0, 0);
        vec![State {
            now: 3,
            restarts: 0,
            voters: (0..VOTERS).map(voter).collect(),
            candidates: vec![Candidate::default(); CANDIDATES],
            greatest: 0,
            has_gone_back: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < self.ticks_max {
            actions.push(Action::Tick);
        }
        for (c, candidate) in state.candidates.iter().enumerate() {
            let voters = 0..VOTERS;
            if candidate.term == 0 && candidate.claims < self.claims_max {
                actions.push(Action::Begin(c));
            }
            if candidate.over != 0 {
                actions.extend(voters.clone().map(|v| Action::Release(c, v)));
            }
            if candidate.over != 0 && self.has_late {
                actions.extend(voters.clone().map(|v| Action::ClaimOver(c, v)));
            }
            if candidate.term == 0 {
                continue;
            }
            actions.push(Action::GiveUp(c));
            actions.extend(voters.clone().map(|v| Action::Claim(c, v, 0)));
            if self.has_late && state.now > candidate.begun && !candidate.is_leader {
                actions.extend(voters.clone().map(|v| Action::Claim(c, v, 1)));
            }
            let renewed = voters.filter(|v| candidate.granted[*v].is_some() && candidate.leads(state.now));
            actions.extend(renewed.map(|v| Action::Renew(c, v)));
        }
        if state.restarts < self.restarts_max {
            actions.extend((0..VOTERS).map(Action::Restart));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let now = state.now;
        match action {
            Action::Tick => {
                state.now += 1;
                state.voters.iter_mut().for_each(|voter| voter.pass(time(now + 1)));
                // A lease that has ended stays ended.
                let over = |candidate: &&mut Candidate| candidate.is_leader && !candidate.leads(now + 1);
                state.candidates.iter_mut().filter(over).for_each(Candidate::give_up);
            }
            Action::Begin(c) => {
                let candidate = &mut state.candidates[c];
                candidate.claims += 1;
                let unique = u64::from(candidate.claims) * CANDIDATES as u64 + c as u64 + 1;
                candidate.term = ModelVoter::clock(time(now + 2)) + unique;
                candidate.begun = now;
            }
            Action::Claim(c, v, late) => {
                let again = state.candidates[c].is_leader;
                let claim = ModelRequest::Grant(state.candidates[c].term, again);
                state.ask(c, v, now - late, claim);
            }
            Action::ClaimOver(c, v) => {
                let claim = ModelRequest::Grant(state.candidates[c].over, false);
                state.ask(c, v, now, claim);
            }
            Action::Renew(c, v) => {
                let (session, _) = state.candidates[c].granted[v]?;
                state.ask(c, v, now, ModelRequest::Renew(session));
            }
            Action::GiveUp(c) => state.candidates[c].give_up(),
            Action::Release(c, v) => {
                let release = ModelRequest::Release(state.candidates[c].over);
                state.ask(c, v, now, release);
            }
            Action::Restart(v) => {
                state.restarts += 1;
                let salt = u64::from(state.restarts) * 100;
                state.voters[v] = ModelVoter::new(time(now), self.control, salt, 0);
            }
        }
        (state != *last).then(|| state.sorted())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one leader", |_, state: &State| {
                state.candidates.iter().filter(|candidate| candidate.leads(state.now)).count() <= 1
            }),
            Property::always("tokens grow", |_, state: &State| !state.has_gone_back),
            Property::sometimes("somebody leads", |_, state: &State| state.greatest > 0),
            Property::sometimes("one leads after the other", |_, state: &State| {
                let leads = |candidate: &Candidate| candidate.leads(state.now);
                state.candidates.iter().any(leads) && state.candidates.iter().any(|other| other.over != 0)
            }),
        ]
    }
}

impl State {
    /// Sorts the voters, which are interchangeable, so that the checker visits fewer states.
    fn sorted(mut self) -> Self {
        let key = |v: &usize| {
            let granted = self.candidates.iter().map(|candidate| candidate.granted[*v]);
            let mut hasher = DefaultHasher::new();
            (&self.voters[*v], granted.collect::<Vec<_>>()).hash(&mut hasher);
            hasher.finish()
        };
        let mut order: [usize; VOTERS] = std::array::from_fn(|v| v);
        order.sort_by_cached_key(key);
        self.voters = order.iter().map(|v| self.voters[*v].clone()).collect();
        for candidate in &mut self.candidates {
            candidate.granted = order.map(|v| candidate.granted[v]);
        }
        self
    }

    /// A request that was sent at time `sent` arrives and is answered.
    fn ask(&mut self, c: usize, v: usize, sent: u8, request: ModelRequest) {
        let answer = self.voters[v].handle(time(self.now), RunId::new(c as u64 + 1), request);
        let (now, until) = (self.now, sent + COUNTED_TICKS);
        let candidate = &mut self.candidates[c];
        match answer {
            ModelAnswer::Granted(term, session) if term == candidate.term => {
                let old = candidate.granted[v].filter(|(old, _)| *old == session);
                candidate.granted[v] = Some((session, until.max(old.map_or(0, |(_, until)| until))));
            }
            ModelAnswer::Renewed(session) => {
                if let Some((own, counted)) = &mut candidate.granted[v]
                    && *own == session
                {
                    *counted = until.max(*counted);
                }
            }
            _ => {}
        }
        if !candidate.is_leader && candidate.term != 0 && candidate.votes(now) > VOTERS / 2 {
            candidate.is_leader = true;
            self.has_gone_back |= candidate.term <= self.greatest;
            self.greatest = self.greatest.max(candidate.term);
        }
    }
}

fn voting(control: Option<Control>) -> Voting {
    Voting { control, ticks_max: 5, restarts_max: 1, claims_max: 1, has_late: false }
}

#[test]
fn the_voting_rules_hold_in_every_order_of_events() {
    // Once with enough time for a lease to end and to be granted to another, and once with late requests.
    let long = voting(None);
    let late = Voting { ticks_max: 4, has_late: true, ..voting(None) };
    for model in [long, late] {
        let checker = model.checker().spawn_dfs().join();
        println!("{} different states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn the_model_notices_that_restarted_voters_vote_at_once() {
    let checker = voting(Some(Control::NoQuarantine)).checker().spawn_bfs().join();
    assert!(checker.discovery("at most one leader").is_some());
}

// A register outside of the cluster.

/// Every step adds one and returns the new value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Counter(u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Step;

impl SequentialSpec for Counter {
    type Op = Step;
    type Ret = u64;

    fn invoke(&mut self, _: &Step) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// It refuses every token below the greatest one it was given, unless `ignores_tokens` is set.
#[derive(Default)]
struct Register {
    token: u128,
    value: u64,
    ignores_tokens: bool,
}

impl Register {
    fn admits(&mut self, token: u128) -> bool {
        let admits = token >= self.token || self.ignores_tokens;
        self.token = self.token.max(token);
        admits
    }
}

/// Leaders read the register, are stopped or cut off at random, and write what they read plus one, possibly late.
/// Returns whether the successful steps can have happened one after the other.
fn is_linearizable(seed: u64, ignores_tokens: bool) -> bool {
    let mut dice = Dice::new(seed);
    let mut config = Config::lan();
    (config.clock_skew_max, config.lease_time) = (Duration::from_secs(1), Duration::from_millis(500));
    config.voters = voters(3);
    let mut sim = Sim::new(seed).config(config).seeds(&[0]).nodes(3);
    sim.run_for(Duration::from_millis(12_300));
    (0..3).for_each(|i| _ = sim.node(i).campaign("register", "x").unwrap());
    let mut register = Register { ignores_tokens, ..Register::default() };
    let mut history = LinearizabilityTester::new(Counter(0));
    let mut open: Vec<(usize, u128, u64)> = Vec::new();
    for thread in 0..14_usize {
        sim.run_for(Duration::from_millis(10 + dice.below(600) as u64));
        for (i, token) in sim.holders("register") {
            let token = token.as_u128();
            // A leader has one step in progress at a time.
            if open.iter().all(|(_, other, _)| *other != token) && register.admits(token) {
                history.on_invoke(thread * 3 + i, Step).unwrap();
                open.push((thread * 3 + i, token, register.value));
            }
        }
        match dice.below(4) {
            0 => (0..3).for_each(|i| sim.resume(i)),
            1 => sim.heal(),
            _ => {
                let i = sim.holders("register").first().map_or(0, |(i, _)| *i);
                if dice.below(2) == 0 {
                    sim.pause(i);
                } else {
                    (0..3).filter(|other| *other != i).for_each(|other| sim.partition(&[i], &[other]));
                }
                // All other nodes run.
                (0..3).filter(|other| *other != i).for_each(|other| sim.resume(other));
            }
        }
        if !open.is_empty() && dice.below(3) > 0 {
            let (thread, token, read) = open.swap_remove(dice.below(open.len()));
            if register.admits(token) {
                register.value = read + 1;
                history.on_return(thread, register.value).unwrap();
            }
        }
    }
    history.is_consistent()
}

#[test]
fn fencing_tokens_make_a_register_linearizable() {
    for seed in 0..200 {
        assert!(is_linearizable(seed, false), "seed {seed}");
    }
    let broken = (0..200).filter(|seed| !is_linearizable(*seed, true)).count();
    println!("without tokens {broken} of 200 histories are not");
    assert!(broken > 0);
}
