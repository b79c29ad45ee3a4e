//! The laws, against plain models and the `crdts` crate.

use std::collections::BTreeMap;
use std::time::Duration;

use crdts::{CmRDT, CvRDT, LWWReg, Orswot};
use proptest::prelude::*;
use tidings::{Config, Input, Lane, Output, Replica, Setup, Sim, Time};

fn at(ms: u64) -> Time {
    Time { mono: Duration::from_millis(ms), wall: Duration::from_millis(1_000_000 + ms) }
}

fn converged(sim: &mut Sim) {
    sim.heal();
    sim.assert_converged();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Three sites that merge only now and then: the same elements as with whole-state merges of `Orswot`.
    #[test]
    fn sets_agree_with_orswot(steps in prop::collection::vec((0..3_usize, 0..5_u8, 0..4_u8), 1..60)) {
        let mut sim = Sim::new(1).nodes(3);
        sim.run_for(Duration::from_millis(100));
        let mut model: [Orswot<u8, usize>; 3] = Default::default();
        sim.partition(&[0], &[1, 2]);
        sim.partition(&[1], &[2]);
        for (site, element, action) in steps {
            match action {
                0 | 1 => {
                    let context = model[site].read_ctx().derive_add_ctx(site);
                    let add = model[site].add(element, context);
                    model[site].apply(add);
                    sim.node(site).set("s").add(element.to_string()).unwrap();
                }
                2 => {
                    let context = model[site].contains(&element).derive_rm_ctx();
                    let remove = model[site].rm(element, context);
                    model[site].apply(remove);
                    sim.node(site).set("s").remove(element.to_string()).unwrap();
                }
                _ => {
                    converged(&mut sim);
                    let mut all = model[0].clone();
                    all.merge(model[1].clone());
                    all.merge(model[2].clone());
                    model.fill(all);
                    sim.partition(&[0], &[1, 2]);
                    sim.partition(&[1], &[2]);
                }
            }
            let mut ours: Vec<String> = sim.node(site).set("s").iter().collect();
            let mut theirs: Vec<String> =
                model[site].read().val.into_iter().map(|element| element.to_string()).collect();
            ours.sort();
            theirs.sort();
            prop_assert_eq!(ours, theirs);
        }
    }

    /// Registers that are only put: the last writer wins, as in `LWWReg`.
    #[test]
    fn put_only_registers_agree_with_lwwreg(steps in prop::collection::vec((0..3_usize, 0..4_u8, 0..100_u32), 1..40)) {
        let mut sim = Sim::new(2).nodes(3);
        sim.run_for(Duration::from_millis(100));
        sim.partition(&[0], &[1, 2]);
        sim.partition(&[1], &[2]);
        let mut model: BTreeMap<u8, LWWReg<String, String>> = BTreeMap::new();
        for (site, key, value) in steps {
            let stamp = sim.node(site).put(key.to_string(), value.to_string()).unwrap();
            let register = LWWReg { val: value.to_string(), marker: stamp.to_string() };
            model.entry(key).and_modify(|old| old.merge(register.clone())).or_insert(register);
        }
        converged(&mut sim);
        for (key, register) in model {
            for i in 0..3 {
                let entry = sim.node(i).get(key.to_string()).unwrap();
                prop_assert_eq!(entry.value(), register.val.as_bytes());
            }
        }
    }

    /// One replica against a plain map.
    #[test]
    fn a_single_replica_is_a_map(steps in prop::collection::vec((0..40_u8, prop::option::of(0..100_u8)), 1..300)) {
        let mut replica = Replica::new(Setup::new(Config::lan(), 3));
        let mut model = BTreeMap::new();
        for (i, (key, value)) in steps.into_iter().enumerate() {
            let (now, name) = (at(i as u64), format!("{key:03}"));
            if let Some(value) = value {
                replica.put(now, &name, &[value]).unwrap();
                model.insert(name, value);
            } else {
                let deleted = replica.delete(now, &name).unwrap().is_some();
                prop_assert_eq!(deleted, model.remove(&name).is_some());
            }
            prop_assert_eq!(replica.len(), model.len());
        }
        let all = replica.scan(at(1_000), "");
        let ours: Vec<(String, u8)> = all.iter().map(|entry| (entry.key().to_owned(), entry.value()[0])).collect();
        prop_assert_eq!(ours, model.into_iter().collect::<Vec<_>>());
    }

    /// Arbitrary bytes, and real frames with bytes turned over, never panic and never stop the replica.
    #[test]
    fn hostile_bytes_never_harm(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        bulk in any::<bool>(),
    ) {
        let mut ours = Replica::new(Setup::new(Config::lan(), 4));
        let mut theirs = Replica::new(Setup::new(Config::lan(), 5));
        ours.put(at(0), "kept", b"v").unwrap();
        for i in 0..50 {
            theirs.put(at(0), &format!("k{i}"), b"v").unwrap();
        }
        for replica in [&mut ours, &mut theirs] {
            replica.handle(at(1), Input::LinkUp(1));
        }
        theirs.compare(1);
        for _ in 0..6 {
            for to_ours in [true, false] {
                let (from, to) = if to_ours { (&mut theirs, &mut ours) } else { (&mut ours, &mut theirs) };
                let mut outputs = Vec::new();
                while let Some(output) = from.poll() {
                    outputs.push(output);
                }
                for output in outputs {
                    let Output::Stream(id, lane, mut bytes) = output else { continue };
                    if to_ours && !bytes.is_empty() {
                        // Not the length: that would only wait for more.
                        flips.iter().for_each(|(at, by)| {
                            let at = at.index(bytes.len());
                            if at > 3 { bytes[at] ^= by; }
                        });
                    }
                    to.handle(at(2), Input::Stream(id, lane, &bytes));
                }
            }
        }
        ours.handle(at(3), Input::LinkUp(2));
        let lane = if bulk { Lane::Bulk } else { Lane::Live };
        ours.handle(at(3), Input::Stream(2, lane, &noise));
        ours.handle(at(3), Input::Datagram(2, &noise));
        while ours.poll().is_some() {}
        ours.put(at(4), "later", b"v").unwrap();
        let later = ours.get(at(4), "later").unwrap();
        prop_assert_eq!(later.value(), b"v");
    }
}
