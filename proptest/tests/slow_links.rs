//! Large values that take longer than every timeout on their link. They arrive, delay no other row, and their transfer
//! resumes where a break of the link ended it. A peer that sends nothing, or only single bytes, is still given up.
//!
//! Negative controls: `WholeFramesCount` counts only whole frames as progress, `RepairUnawaited` settles a range before
//! its large rows have arrived.

use std::time::Duration;

use tidings::core::{BreakReason, Input, Lane, LinkId, Output, Replica, Setup, Time};
use tidings::sim::Sim;
use tidings::{Config, Control};
use tidings_proptest::replicas::carry;
use tidings_proptest::{Noticed, holds_unless, ms, run_until, with_control};

const SEEDS: u64 = 4;

/// The value takes 20 s on the link; `sync_timeout` is 1 s.
const VALUE_BYTES: usize = 2_000_000;
const RATE: u64 = 100_000;
const IDEAL: Duration = Duration::from_secs(VALUE_BYTES as u64 / RATE);

fn config() -> Config {
    let mut config = Config::lan();
    config.value_bytes_max = tidings::limits::VALUE_BYTES_CEILING;
    config.sync_timeout = Duration::from_secs(1);
    config.sync_interval = ms(200);
    config
}

fn value() -> Vec<u8> {
    (0..VALUE_BYTES).map(|i| (i * i / 7) as u8).collect()
}

fn arrived(sim: &mut Sim, i: usize, key: &str) -> bool {
    sim.node(i).get(key).is_some()
}

/// Runs until a node has a key. Returns how long that took.
fn until_arrived(sim: &mut Sim, i: usize, key: &str, most: Duration) -> Duration {
    run_until(sim, ms(10), most, |sim| arrived(sim, i, key))
}

/// A cluster that holds a large value and small ones, and a blank last node that is down.
fn one_to_join(sim: Sim, nodes: usize) -> Sim {
    let mut sim = sim.config(config()).rate(RATE).nodes(nodes);
    sim.run_for(ms(500));
    sim.crash(nodes - 1);
    sim.node(0).put("large", value()).unwrap();
    (0..20).for_each(|i| _ = sim.node(0).put(format!("small/{i}"), "small").unwrap());
    if nodes > 2 {
        sim.assert_converged();
    }
    sim
}

/// Two nodes that are partitioned. Node 0 has written a large value and small ones, and deleted shared ones.
fn parted(sim: Sim) -> Sim {
    let mut config = config();
    // The log keeps no removals, so that the deletes need a repair.
    config.removals_max = 0;
    let mut sim = sim.config(config).rate(RATE).nodes(2);
    (0..20).for_each(|i| _ = sim.node(1).put(format!("shared/{i}"), "shared").unwrap());
    sim.run_for(ms(2_000));
    sim.assert_converged();
    sim.partition(&[0], &[1]);
    sim.node(0).put("large", value()).unwrap();
    (0..20).for_each(|i| _ = sim.node(0).put(format!("small/{i}"), "small").unwrap());
    (0..20).for_each(|i| _ = sim.node(0).delete(format!("shared/{i}")).unwrap());
    sim.run_for(ms(500));
    sim
}

/// Asserts that the large value arrives in time, and small values and removals long before it.
fn large_holds_back_nothing(sim: &mut Sim) {
    let began = sim.now();
    for i in 0..20 {
        until_arrived(sim, 1, &format!("small/{i}"), IDEAL / 8);
    }
    while arrived(sim, 1, "shared/7") {
        assert!(sim.now() - began < IDEAL / 8, "a removal waits for the large value");
        sim.run_for(ms(10));
    }
    assert!(!arrived(sim, 1, "large"));
    until_arrived(sim, 1, "large", IDEAL * 3 / 2);
    assert_eq!(sim.timeouts(), 0, "a stalled repair broke a link");
    assert_eq!(sim.node(1).get("large").unwrap().value(), value());
    sim.assert_converged();
    sim.node(0).put("later", "v").unwrap();
    until_arrived(sim, 1, "later", ms(500));
}

#[test]
fn slow_large_value_is_joined_in_time() {
    for seed in 0..SEEDS {
        let mut sim = one_to_join(Sim::new(seed).broken(None), 2);
        sim.restart(1);
        large_holds_back_nothing(&mut sim);
    }
}

#[test]
fn slow_large_value_is_repaired_in_time() {
    for seed in 0..SEEDS {
        let mut sim = parted(Sim::new(seed).broken(None));
        sim.heal();
        large_holds_back_nothing(&mut sim);
    }
}

/// The link is so slow that a single piece of the large row takes longer than the timeout.
#[test]
fn frame_longer_than_the_timeout_breaks_no_link() {
    const BYTES: usize = 150_000;
    holds_unless(Control::WholeFramesCount, SEEDS, |sim| {
        let mut sim = sim.config(config()).rate(10_000).nodes(2);
        sim.run_for(ms(500));
        sim.crash(1);
        sim.node(0).put("large", vec![b'x'; BYTES]).unwrap();
        sim.restart(1);
        until_arrived(&mut sim, 1, "large", Duration::from_secs(BYTES as u64 / 10_000 * 3 / 2));
        assert_eq!(sim.timeouts(), 0, "a stalled repair broke a link");
        sim.assert_converged();
    });
}

#[test]
fn range_is_not_settled_before_its_large_rows_arrived() {
    with_control(Control::RepairUnawaited, Noticed::Loss, |_, sim| {
        let mut sim = sim.config(config()).rate(RATE).nodes(2);
        sim.run_for(ms(500));
        sim.partition(&[0], &[1]);
        sim.node(0).put("large", vec![b'x'; 150_000]).unwrap();
        sim.node(1).put("other", vec![b'y'; 150_000]).unwrap();
        sim.crash(1);
        sim.restart(1);
        sim.node(1).put("small", "v").unwrap();
        sim.heal();
        until_arrived(&mut sim, 1, "large", Duration::from_secs(10));
        until_arrived(&mut sim, 0, "small", Duration::from_secs(10));
        sim.assert_converged();
        assert!(arrived(&mut sim, 0, "large") && arrived(&mut sim, 1, "large"));
    });
}

/// Breaks the link three times while the large value travels. Asserts that it arrives and that at most 30 % more bytes
/// than its own were sent.
fn goes_on_after_breaks(sim: &mut Sim, before: u64) {
    for _ in 0..3 {
        sim.run_for(IDEAL / 4);
        assert!(!arrived(sim, 1, "large"));
        sim.break_between(0, 1);
    }
    until_arrived(sim, 1, "large", IDEAL);
    assert_eq!(sim.node(1).get("large").unwrap().value(), value());
    let sent = sim.bytes_sent() - before;
    assert!(sent < VALUE_BYTES as u64 * 13 / 10, "{sent} bytes were sent");
    assert_eq!(sim.timeouts(), 0);
    sim.assert_converged();
}

#[test]
fn join_goes_on_after_a_break_where_it_stood() {
    for seed in 0..SEEDS {
        let mut sim = one_to_join(Sim::new(seed).broken(None), 2);
        sim.restart(1);
        let before = sim.bytes_sent();
        goes_on_after_breaks(&mut sim, before);
    }
}

#[test]
fn repair_goes_on_after_a_break_where_it_stood() {
    for seed in 0..SEEDS {
        let mut sim = parted(Sim::new(seed).broken(None));
        sim.heal();
        let before = sim.bytes_sent();
        goes_on_after_breaks(&mut sim, before);
    }
}

#[test]
fn tail_goes_on_after_a_break_where_it_stood() {
    for seed in 0..SEEDS {
        let mut config = config();
        // A mismatch is suppressed for so many intervals that the flush ends before a repair could help.
        config.sync_interval = Duration::from_secs(1);
        let mut sim = Sim::new(seed).broken(None).config(config).rate(RATE).nodes(2);
        sim.run_for(ms(500));
        sim.node(0).put("first", "v").unwrap();
        sim.assert_converged();
        let before = sim.bytes_sent();
        sim.node(0).put("large", value()).unwrap();
        goes_on_after_breaks(&mut sim, before);
    }
}

#[test]
fn value_replaced_during_a_break_arrives_as_the_new_one() {
    for seed in 0..SEEDS {
        let mut sim = one_to_join(Sim::new(seed).broken(None), 2);
        sim.restart(1);
        sim.run_for(IDEAL / 2);
        sim.break_between(0, 1);
        let other: Vec<u8> = value().into_iter().rev().collect();
        sim.node(0).put("large", &other).unwrap();
        until_arrived(&mut sim, 1, "large", IDEAL * 3 / 2);
        assert_eq!(sim.node(1).get("large").unwrap().value(), other);
        sim.assert_converged();
    }
}

#[test]
fn peer_that_stops_within_a_value_is_given_up() {
    for seed in 0..SEEDS {
        let mut sim = one_to_join(Sim::new(seed).broken(None), 2);
        sim.restart(1);
        sim.run_for(IDEAL / 2);
        assert_eq!(sim.timeouts(), 0);
        sim.delay_traffic(0, 1);
        sim.delay_traffic(1, 0);
        let timeout = config().sync_timeout;
        sim.run_for(timeout * 3);
        assert!(sim.timeouts() > 0, "nothing moved and no session timed out");
        sim.resume_traffic(0, 1);
        sim.resume_traffic(1, 0);
        until_arrived(&mut sim, 1, "large", IDEAL);
        sim.assert_converged();
    }
}

/// A joining replica and donors that hold everything, linked by hand. The test decides how much of the first donor's
/// bulk lane arrives.
struct Joining {
    joiner: Replica,
    donors: Vec<Replica>,
    /// Bytes of the first donor's bulk lane that are not delivered yet.
    withheld: Vec<u8>,
    now: Time,
    broken: Vec<(LinkId, BreakReason)>,
}

impl Joining {
    fn new(donors: u64) -> Self {
        let replica = |seed| Replica::new(Setup::new(config(), seed));
        let now = Time { mono: Duration::ZERO, wall: Duration::from_secs(1_000) };
        let (withheld, broken) = (Vec::new(), Vec::new());
        let mut joining =
            Self { joiner: replica(99), donors: (0..donors).map(replica).collect(), withheld, now, broken };
        joining.donors.iter_mut().for_each(|donor| _ = donor.put(now, "large", &value()).unwrap());
        joining.link(0);
        // Enough for the start of its session and the announcement of a row, which makes it the donor.
        for _ in 0..20 {
            joining.pass(ms(1));
            joining.trickle(64);
        }
        (1..donors).for_each(|i| joining.link(i));
        joining
    }

    fn link(&mut self, i: u64) {
        self.donors[i as usize]
            .handle(self.now, Input::LinkUp(LinkId::new(i), tidings::core::Abilities::OURS));
        self.joiner.handle(self.now, Input::LinkUp(LinkId::new(i), tidings::core::Abilities::OURS));
    }

    /// Lets time pass and carries everything, except the bulk lane of the first donor.
    fn pass(&mut self, time: Duration) {
        self.now = Time { mono: self.now.mono + time, wall: self.now.wall + time };
        let now = self.now;
        self.donors.iter_mut().chain([&mut self.joiner]).for_each(|it| it.handle(now, Input::Wake));
        loop {
            let mut has_moved = false;
            for i in 0..self.donors.len() {
                let donor = &mut self.donors[i];
                while let Some(output) = donor.poll() {
                    has_moved = true;
                    match output {
                        Output::Stream(id, Lane::Bulk, bytes) if i == 0 => {
                            donor.handle(now, Input::Drained(id, Lane::Bulk, bytes.len()));
                            self.withheld.extend(bytes);
                        }
                        output => carry(now, LinkId::new(i as u64), donor, &mut self.joiner, &output),
                    }
                }
            }
            while let Some(output) = self.joiner.poll() {
                has_moved = true;
                match output {
                    Output::Stream(id, ..) | Output::Datagram(id, _) => {
                        carry(now, id, &mut self.joiner, &mut self.donors[id.number() as usize], &output);
                    }
                    Output::Break(id, reason) => self.broken.push((id, reason)),
                    _ => {}
                }
            }
            if !has_moved {
                return;
            }
        }
    }

    /// Delivers this many bytes of the first donor's bulk lane.
    fn trickle(&mut self, bytes: usize) {
        let rest = self.withheld.split_off(bytes.min(self.withheld.len()));
        let said = std::mem::replace(&mut self.withheld, rest);
        self.joiner.handle(self.now, Input::Stream(LinkId::new(0), Lane::Bulk, &said));
    }
}

#[test]
fn peer_that_trickles_bytes_is_given_up() {
    let mut joining = Joining::new(1);
    let mut passed = Duration::ZERO;
    while joining.broken.is_empty() {
        assert!(passed < config().sync_timeout * 4, "one byte per half timeout keeps the session alive");
        joining.trickle(1);
        joining.pass(config().sync_timeout / 2);
        passed += config().sync_timeout / 2;
    }
    assert_eq!(joining.broken, [(LinkId::new(0), BreakReason::TimedOut)]);
}

#[test]
fn slow_donor_loses_its_turn_while_others_wait() {
    let mut joining = Joining::new(2);
    joining.pass(ms(1));
    assert_eq!((joining.joiner.donor(), joining.joiner.status().entries), (Some(LinkId::new(0)), 0));
    // Fast enough not to stall, and far too slow to finish.
    let mut passed = Duration::ZERO;
    while joining.joiner.status().entries == 0 {
        assert!(passed < config().sync_timeout * 15, "the slow donor was not replaced in time");
        joining.trickle(60);
        joining.pass(ms(100));
        passed += ms(100);
    }
    assert!(joining.broken.is_empty(), "{:?}", joining.broken);
}
