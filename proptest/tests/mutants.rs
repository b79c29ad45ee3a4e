//! Millions of mutated frames. Nodes in every role are handed frames that honest nodes have sent, with bits flipped,
//! numbers replaced, bodies spliced, repeated, cut off, and on other lanes, as if a member had sent them.
//!
//! No frame may cause a panic or an allocation over [`ALLOCATED_MAX`], and once the member is gone the honest nodes
//! converge, with all that they write from then on. `TIDINGS_MUTANTS` sets the frames for each role:
//! `TIDINGS_MUTANTS=1700000 cargo test -p tidings-proptest --test mutants -- --nocapture` hands out 10^7. `TIDINGS_ROLE`
//! names the one role that is tested.

use std::time::{Duration, Instant};

use tidings::Config;
use tidings::core::Lane;
use tidings::sim::Sim;
use tidings_proptest::{Dice, ms, number, voters};

/// Frames for each role; `TIDINGS_MUTANTS` sets another number.
const FRAMES: u64 = 20_000;

/// Bytes that one frame may make a node hold at a time, until its answers are sent. Less than a third was measured.
const ALLOCATED_MAX: u64 = 2 << 20;

/// Frames over one link. A link that is distrusted ignores all further ones.
const FRAMES_PER_LINK: usize = 40;

/// The permitted clock skew.
const SKEW_MAX: Duration = Duration::from_secs(2);

/// How long honest nodes may take to hold the same once the member is gone.
const HEALING_MAX: Duration = Duration::from_secs(240);

type Frame = (Option<Lane>, Vec<u8>);

/// A cluster in which one node stands for the member that sends mutated frames: the last one.
struct Scene {
    name: &'static str,
    sim: Sim,
    nodes: usize,
    /// Nodes that are handed frames.
    targets: Vec<usize>,
    /// What goes on meanwhile.
    busy: fn(&mut Sim, &mut Dice),
}

fn rest(_: &mut Sim, _: &mut Dice) {}

fn write(sim: &mut Sim, dice: &mut Dice) {
    let key = format!("k{}", dice.below(200));
    // A clock that a peer has moved ahead may refuse a write for a moment.
    match dice.below(6) {
        0 => _ = sim.node(1).delete(key),
        1 => _ = sim.node(1).set("s").add(key),
        2 => _ = sim.node(1).put(key, vec![b'x'; 70_000]),
        _ => _ = sim.node(1).put(key, "v"),
    }
}

/// Starts the node again, blank, as soon as it has joined.
fn join_again(sim: &mut Sim, i: usize) {
    if sim.node(i).joining().is_ready {
        sim.restart(i);
    }
}

fn scene(role: &'static str) -> Scene {
    let mut config = Config::lan();
    config.clock_skew_max = SKEW_MAX;
    let nodes = if role == "groups" { 9 } else { 4 };
    config.mesh_members_max = if role == "groups" { 2 } else { 30 };
    if role == "voter" {
        config.voters = voters(3);
        config.lease_time_max = Duration::from_secs(3);
    }
    let sim = Sim::new(7).config(config).without_checks().seeds(&[0, 1]);
    let sim = if matches!(role, "joining" | "donor") { sim.rate(400_000) } else { sim };
    let mut sim = sim.nodes(nodes);
    sim.record_sent();
    sim.run_for(ms(1_000));
    for i in 0..400 {
        sim.node(i % nodes).put(format!("k{}", i / 2), vec![b'v'; 100]).unwrap();
        sim.node(i % nodes).put("large", vec![b'v'; 70_000]).unwrap();
    }
    sim.run_for(ms(4_000));
    if role == "voter" {
        _ = sim.node(1).campaign("cron", "v").unwrap();
        sim.run_for(ms(8_000));
    }
    // One that joins: its session is among the recorded frames.
    sim.restart(nodes - 1);
    sim.run_for(ms(4_000));
    let all = (0..nodes - 1).collect();
    let (targets, busy): (Vec<usize>, fn(&mut Sim, &mut Dice)) = match role {
        "idle" => (vec![0], rest),
        "joining" => (vec![2], |sim, _| join_again(sim, 2)),
        "donor" => (vec![0], |sim, _| join_again(sim, 3)),
        "groups" => (all, write),
        _ => (vec![0], write),
    };
    Scene { name: role, sim, nodes, targets, busy }
}

/// A frame, mutated, with the lane that it goes over.
fn mutated(frames: &[Frame], dice: &mut Dice) -> Frame {
    let (lane, mut bytes) = frames[dice.below(frames.len())].clone();
    let head = if lane.is_some() { 4 } else { 0 };
    for _ in 0..dice.below(4) {
        let at = head + dice.below(bytes.len() - head);
        match dice.below(6) {
            0 | 1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at] = [0, 1, 250, 251, 252, 253, 255][dice.below(7)],
            3 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            4 => bytes.truncate(at.max(head + 2)),
            _ => {
                let (_, other) = &frames[dice.below(frames.len())];
                bytes.truncate(at.max(head + 2));
                bytes.extend_from_slice(&other[dice.below(other.len())..]);
            }
        }
    }
    if head > 0 && dice.below(50) > 0 {
        let len = u32::try_from(bytes.len() - 4).unwrap();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
    }
    match dice.below(30) {
        0 => (Some(Lane::Live), bytes),
        1 => (Some(Lane::Bulk), bytes),
        2 if head > 0 => (None, bytes.split_off(4)),
        3 => (lane, bytes.repeat(2)),
        _ => (lane, bytes),
    }
}

/// The member is gone. The honest nodes converge, and nothing that they write from now on is lost.
fn heal(scene: &mut Scene) {
    let Scene { name, sim, nodes, .. } = scene;
    let honest = *nodes - 1;
    sim.crash(honest);
    sim.run_for(SKEW_MAX * 2 + ms(1_000));
    for i in 0..honest {
        sim.node(i).put(format!("later {i}"), "v").unwrap();
    }
    let end = sim.now() + HEALING_MAX;
    while !sim.is_converged() {
        assert!(sim.now() < end, "{name}: honest nodes differ");
        sim.run_for(ms(250));
    }
    for (i, writer) in (0..honest).flat_map(|i| (0..honest).map(move |writer| (i, writer))) {
        assert!(
            sim.node(i).get(format!("later {writer}")).is_some(),
            "{name}: node {i} lost a write of {writer}"
        );
    }
}

fn run(role: &'static str, count: u64) {
    let mut scene = scene(role);
    let frames = scene.sim.take_recorded();
    let (mut dice, began) = (Dice::new(count ^ role.len() as u64), Instant::now());
    let (mut handed, mut worst) = (0_u64, 0);
    let from = scene.nodes - 1;
    while handed < count {
        let to = scene.targets[dice.below(scene.targets.len())];
        for _ in 0..FRAMES_PER_LINK {
            let (lane, bytes) = mutated(&frames, &mut dice);
            let mut is_linked = false;
            let allocated =
                allocation_counter::measure(|| is_linked = scene.sim.inject(from, to, lane, &bytes));
            if !is_linked {
                break;
            }
            handed += 1;
            worst = worst.max(allocated.bytes_max);
            assert!(
                allocated.bytes_max < ALLOCATED_MAX,
                "{role}: {} bytes allocated for a frame of {} on {lane:?}: {:?}",
                allocated.bytes_max,
                bytes.len(),
                &bytes[..bytes.len().min(40)],
            );
            if dice.below(8) == 0 {
                scene.sim.run_for(ms(1));
            }
        }
        (scene.busy)(&mut scene.sim, &mut dice);
        scene.sim.break_between(from, to);
        scene.sim.run_for(ms(20 + 200 * dice.below(2) as u64));
        scene.sim.events();
        scene.sim.member_events();
    }
    let a_second = u128::from(handed) * 1_000 / began.elapsed().as_millis().max(1);
    println!("{role}: {handed} frames, {a_second} a second, {worst} bytes at most");
    heal(&mut scene);
}

const ROLES: [&str; 6] = ["idle", "mesh", "joining", "donor", "groups", "voter"];

#[test]
fn mutated_frames_cause_no_panic_and_no_large_allocation() {
    let count = number("TIDINGS_MUTANTS").unwrap_or(FRAMES);
    let only = std::env::var("TIDINGS_ROLE").ok();
    for role in ROLES.into_iter().filter(|role| only.as_ref().is_none_or(|only| only == role)) {
        run(role, count);
    }
}
