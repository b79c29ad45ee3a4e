//! Batches of another node, seen as a whole: what [`Store::scan_whole`] calls whole never shows a part of one.
//!
//! Negative controls: with `PartIsWhole` a part of a batch counts as whole; with `LargesElsewhere` a look does not wait for
//! the large value of a batch.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings::sim::{Sim, SimNode};
use tidings::{Config, Control, Entry, PutOptions, Revision, Store};
use tidings_proptest::{Dice, Noticed, for_chosen_seeds, holds_unless, notice, run_until};

/// Keys of a batch: their values fill several frames and more than one window.
const KEYS: usize = 60;
const BATCHES: usize = 10;
/// The batch during which the nodes are parted.
const CUT_OFF: usize = 6;
const STEP: Duration = Duration::from_millis(1);

/// What a look at the batches shows: the number that all values have, or `None` if they differ.
fn number_of(entries: &[Entry]) -> Option<String> {
    let number = |entry: &Entry| String::from_utf8_lossy(entry.value()).trim().to_owned();
    let first = entries.first().map(number)?;
    entries.iter().all(|entry| number(entry) == first).then_some(first)
}

/// A cluster that writes batches on node 0, and looks at them on all others.
struct Cluster {
    nodes: usize,
    mesh_members_max: usize,
}

/// Everybody is sent everything by the writer.
const MESH: Cluster = Cluster { nodes: 3, mesh_members_max: 30 };
/// In groups: most nodes have the writes of another group from a delegate.
const GROUPS: Cluster = Cluster { nodes: 8, mesh_members_max: 2 };

/// Writes batches on one node while the others look at them, and returns how many looks were mixed: of those that were
/// called whole, and of all.
fn mixed_looks(sim: Sim, cluster: &Cluster) -> (u64, u64) {
    let mut config = Config::local();
    config.mesh_members_max = cluster.mesh_members_max;
    let mut sim = sim.config(config).delay(Duration::from_millis(3)).seeds(&[0]).nodes(cluster.nodes);
    sim.run_for(Duration::from_secs(5));
    let a = sim.node(0);
    assert_eq!(a.members().len(), cluster.nodes);
    let (mut wrong, mut all) = (0, 0);
    for number in 1..=BATCHES {
        let value = format!("{number:<800}");
        let batch = (0..KEYS)
            .fold(a.batch(), |batch, key| batch.put_with(format!("app/{key:02}"), &value, PutOptions::new()));
        batch.commit().expect("acceptable");
        if number == CUT_OFF {
            sim.partition(&[0], &[1]);
        }
        for look in 0..40 {
            if number == CUT_OFF + 1 && look == 20 {
                sim.heal();
            }
            sim.run_for(STEP);
            for reader in 1..cluster.nodes {
                let look = sim.node(reader).scan_whole("app/", &[]).expect("the node is open");
                let is_mixed = !look.entries.is_empty() && number_of(&look.entries).is_none();
                all += u64::from(is_mixed);
                wrong += u64::from(is_mixed && look.is_whole);
            }
        }
    }
    sim.run_for(Duration::from_secs(20));
    for reader in 1..cluster.nodes {
        let look = sim.node(reader).scan_whole("app/", &[]).expect("the node is open");
        let shown = (number_of(&look.entries), look.is_whole);
        assert_eq!(shown, (Some(BATCHES.to_string()), true), "node {reader}");
    }
    (wrong, all)
}

/// Both without losses and with some. With the control, all looks are called whole: then mixed ones among them show that
/// there are mixtures to be seen.
fn looks_are_whole(sim: impl Fn() -> Sim, cluster: &Cluster) {
    for loss in [0.0, 0.05] {
        let (wrong, all) = mixed_looks(sim().loss(loss), cluster);
        println!("{all} looks were mixed");
        assert_eq!(wrong, 0, "a look that was called whole mixes two batches");
    }
}

#[test]
fn whole_looks_never_mix_two_batches() {
    for_chosen_seeds(4, |seed| {
        looks_are_whole(|| Sim::new(seed), &MESH);
        let part = || Sim::new(seed).broken(Some(Control::PartIsWhole));
        assert_eq!(notice(|| looks_are_whole(part, &MESH)), Some(Noticed::Loss), "seed {seed}");
    });
}

#[test]
fn whole_looks_through_delegates_never_mix_two_batches() {
    for_chosen_seeds(2, |seed| {
        looks_are_whole(|| Sim::new(seed), &GROUPS);
        let part = || Sim::new(seed).broken(Some(Control::PartIsWhole));
        assert_eq!(notice(|| looks_are_whole(part, &GROUPS)), Some(Noticed::Loss), "seed {seed}");
    });
}

/// Bytes per second of each link, so that a large value takes seconds.
const SLOW: u64 = 100_000;
/// More than shares a frame with other rows.
const LARGE: usize = 200_000;

fn on_slow_links(sim: Sim) -> Sim {
    let mut sim = sim.config(Config::lan()).delay(Duration::from_millis(3)).rate(SLOW).nodes(2);
    sim.run_for(Duration::from_secs(1));
    sim
}

#[test]
fn large_values_elsewhere_delay_no_look() {
    for_chosen_seeds(4, |seed| {
        let mut sim = on_slow_links(Sim::new(seed));
        let (a, b) = (sim.node(0), sim.node(1));
        (0..3).for_each(|i| _ = a.put(format!("blob/{i}"), vec![i; LARGE]).expect("acceptable"));
        for number in 1..=BATCHES {
            let batch =
                (0..3).fold(a.batch(), |batch, key| batch.put(format!("app/{key}"), number.to_string()));
            batch.commit().expect("acceptable");
            run_until(&mut sim, STEP, Duration::from_millis(200), |_| {
                let look = b.scan_whole("app/", &[]).expect("the node is open");
                look.is_whole && number_of(&look.entries) == Some(number.to_string())
            });
            assert!(b.scan("blob/").is_empty(), "seed {seed}: the large values are still on their way");
            assert!(
                !b.scan_whole("", &[]).expect("the node is open").is_whole,
                "seed {seed}: they may be awaited"
            );
        }
    });
}

#[test]
fn batch_with_a_large_value_is_seen_as_a_whole() {
    holds_unless(Control::LargesElsewhere, 4, |sim| {
        let mut sim = on_slow_links(sim);
        let (a, b) = (sim.node(0), sim.node(1));
        let batch = a.batch().put("app/large", vec![b' '; LARGE]).put("app/small", "1");
        batch.commit().expect("acceptable");
        run_until(&mut sim, STEP, Duration::from_secs(10), |_| {
            let look = b.scan_whole("app/", &[]).expect("the node is open");
            assert!(!look.is_whole || look.entries.len() != 1, "a part of the batch is called whole");
            look.is_whole && look.entries.len() == 2
        });
    });
}

/// The entries that a reader holds who follows the changes of a node.
#[derive(Default)]
struct Held {
    entries: BTreeMap<String, Entry>,
    since: Option<Revision>,
}

impl Held {
    /// Takes a look. Returns whether the node could tell the changes.
    fn follow(&mut self, node: &SimNode) -> bool {
        let changes = self.since.and_then(|since| node.changes_whole("app/", since));
        let is_told = changes.is_some();
        let look = changes.unwrap_or_else(|| {
            self.entries.clear();
            node.scan_whole("app/", &[]).expect("the node is open")
        });
        look.gone.iter().for_each(|key| _ = self.entries.remove(key));
        self.entries.extend(look.entries.into_iter().map(|entry| (entry.key().to_owned(), entry)));
        self.since = Some(look.revision);
        is_told
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }
}

/// Follows the changes of one node through a random history, and compares them with scans. Returns how many looks told
/// changes.
fn followed(seed: u64) -> usize {
    let mut dice = Dice::new(seed);
    let mut sim = Sim::new(seed).config(Config::local()).loss(0.1).nodes_with_disk(3);
    let (mut held, mut told) = (Held::default(), 0);
    for step in 0..120 {
        let node = sim.node(dice.below(3));
        for _ in 0..dice.below(4) {
            let key = format!("app/{}", dice.below(8));
            match dice.below(4) {
                0 => _ = node.delete(&key),
                1 => _ = node.put_with(&key, "short", PutOptions::new().ttl(STEP * 300)),
                _ => _ = node.put(&key, step.to_string()),
            }
        }
        sim.run_for(STEP * dice.below(400) as u32);
        told += usize::from(held.follow(&sim.node(1)));
        if held.entries() != sim.node(1).scan("app/") {
            // A value is hidden from its expiry on, and that is a change a moment later.
            sim.run_for(STEP * 2);
            assert!(held.follow(&sim.node(1)), "seed {seed}, step {step}");
        }
        assert_eq!(held.entries(), sim.node(1).scan("app/"), "seed {seed}, step {step}");
    }
    told
}

#[test]
fn changes_since_a_look_add_up_to_a_scan() {
    for_chosen_seeds(20, |seed| assert_eq!(followed(seed), 119, "seed {seed}: nothing was forgotten"));
}

#[test]
fn changes_that_the_log_forgot_are_not_told() {
    let sim = Sim::new(1).nodes(1);
    let (node, mut held) = (sim.node(0), Held::default());
    node.put("app/gone", "v").unwrap();
    held.follow(&node);
    node.delete("app/gone").unwrap();
    for i in 0..5_000 {
        node.put(format!("elsewhere/{i}"), "v").unwrap();
        node.delete(format!("elsewhere/{i}")).unwrap();
    }
    assert!(!held.follow(&node));
    assert_eq!(held.entries(), []);
}
