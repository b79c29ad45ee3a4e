//! The same answers as programs that nobody here wrote: random rules and contexts are evaluated here, by npm's
//! `@openfeature/flagd-core` (version 2 of `fractional`) and by `PyPI`'s `openfeature-flagd-core` (version 3). There is no
//! difference, except for the inputs in `known.rs`, each of which says what differs and why.
//!
//! `TIDINGS_CASES` sets how many cases are compared; usually it is 20,000 with each program.

mod cases;
mod known;
mod rivals;

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tidings::flags::{Context, Snapshot};
use tidings_proptest::number;

use cases::Cases;
use rivals::{Answer, Rival};

const CHUNK: usize = 1_000;

fn own_answer(flags: &Snapshot, flag: &str, context: &Value) -> Answer {
    let context = Context::from_json(&context.to_string()).expect("it is a context");
    let told = flags.details::<Arc<str>>(flag, "code default".into(), &context);
    let code = told.error.map(|error| error.code().to_owned());
    (told.variant.map(|it| it.to_string()), told.value.to_string(), told.reason.name().to_owned(), code)
}

/// A set of flags with a context for each.
fn chunk(cases: &mut Cases, size: usize, version: u8) -> Value {
    let flags: Map<String, Value> = (0..size).map(|i| (format!("flag-{i}"), cases.flag())).collect();
    let contexts: Vec<_> =
        (0..size).map(|i| json!({"flag": format!("flag-{i}"), "context": cases.context()})).collect();
    let metadata = json!({"fractional": version});
    let file = json!({"flags": flags, "$evaluators": cases.shared(), "metadata": metadata});
    json!({"file": file, "contexts": contexts})
}

fn compare(rival: Rival) {
    if !rival.is_installed() {
        return;
    }
    let count = number("TIDINGS_CASES").map_or(20_000, |count| count as usize);
    let mut cases = Cases::new(number("TIDINGS_SEED").unwrap_or(1), rival == Rival::Npm);
    let chunks: Vec<_> =
        (0..count.div_ceil(CHUNK)).map(|_| chunk(&mut cases, CHUNK, rival.version())).collect();
    let theirs = rival.answers(&chunks);
    let (mut different, mut compared) = (Vec::new(), 0);
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for (chunk, theirs) in chunks.iter().zip(theirs.chunks(CHUNK)) {
        let (flags, _) = Snapshot::from_json(&chunk["file"].to_string()).expect("it is a file of flags");
        for (case, theirs) in chunk["contexts"].as_array().expect("there are contexts").iter().zip(theirs) {
            let flag = case["flag"].as_str().expect("it has a name");
            let own = own_answer(&flags, flag, &case["context"]);
            *reasons.entry(format!("{} {}", own.2, own.3.clone().unwrap_or_default())).or_default() += 1;
            compared += 1;
            if own != *theirs {
                let rule = &chunk["file"]["flags"][flag];
                let shared = &chunk["file"]["$evaluators"];
                different.push(format!(
                    "{rule}\n  shared {shared}\n  for {}\n  own {own:?}\n  theirs {theirs:?}",
                    case["context"]
                ));
            }
        }
    }
    println!("compared {compared} cases with {rival:?}: {reasons:?}");
    assert_eq!(compared, count.div_ceil(CHUNK) * CHUNK);
    let shown = different.iter().take(8).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(different.is_empty(), "{} answers of {rival:?} differ:\n{shown}", different.len());
}

#[test]
fn answers_are_those_of_npm_flagd_core() {
    compare(Rival::Npm);
}

#[test]
fn answers_are_those_of_pypi_flagd_core() {
    compare(Rival::Pypi);
}
