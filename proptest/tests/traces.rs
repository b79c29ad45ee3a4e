//! Shows whether a change of structure left behaviour unchanged: compares the traces of simulated histories with
//! recorded ones. Any change of behaviour changes a trace and fails the test.
//!
//! `proptest/traces.txt` holds one line per kind of history and hundred seeds, with a hash of their traces. By default
//! the first hundred seeds of each kind are compared. `TIDINGS_TRACES=all` compares all recorded ones.
//! `TIDINGS_TRACES=record` writes the file anew. This is permitted only after a change that is meant to change
//! behaviour, for a reason that its commit names.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use tidings_proptest::{Elections, Plan, for_each_seed};

const BATCH: u64 = 100;
const SEEDS: u64 = 2_000;

type Kind = (&'static str, fn(u64) -> u64);

const KINDS: [Kind; 3] = [
    ("mixed", |seed| Plan::new(seed).run().trace()),
    ("members", |seed| Plan::grouped(seed).run().trace()),
    ("elections", |seed| Elections::new(seed).run().trace()),
];

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("traces.txt")
}

/// Hash of a batch of histories, from the traces of its seeds. The order of the seeds does not matter.
fn batch(first: u64, run: fn(u64) -> u64) -> u64 {
    let sum = Mutex::new(0_u64);
    for_each_seed(BATCH, |i| {
        let seed = first + i;
        let mixed = (run(seed) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let mut sum = sum.lock().expect("nobody panics with it");
        *sum = sum.wrapping_add(mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    });
    sum.into_inner().expect("nobody panics with it")
}

fn line(kind: Kind, first: u64) -> String {
    let (name, run) = kind;
    format!("{name} {first} {:016x}", batch(first, run))
}

#[test]
fn traces_are_those_recorded() {
    let mode = std::env::var("TIDINGS_TRACES").unwrap_or_default();
    let seeds = if mode.is_empty() { BATCH } else { SEEDS };
    let firsts = (0..seeds).step_by(usize::try_from(BATCH).expect("the batch size is small"));
    let lines: Vec<String> =
        KINDS.into_iter().flat_map(|kind| firsts.clone().map(move |first| line(kind, first))).collect();
    if mode == "record" {
        let mut text = String::new();
        lines.iter().for_each(|line| _ = writeln!(text, "{line}"));
        std::fs::write(path(), text).expect("the file can be written");
        return;
    }
    let recorded = std::fs::read_to_string(path()).expect("the file of recorded traces exists");
    let changed: Vec<&String> = lines.iter().filter(|line| !recorded.lines().any(|it| it == *line)).collect();
    assert!(changed.is_empty(), "these traces are not the recorded ones: {changed:#?}");
}
