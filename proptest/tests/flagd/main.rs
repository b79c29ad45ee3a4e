//! The conformance files of flagd, which nobody here wrote: the scenarios of its evaluator and of its targeting rules,
//! once for each version of `fractional`, and the positive and negative files of its schemas. They are packed in the
//! crate `open-feature-flagd`, where `cargo metadata` finds them.
//!
//! A scenario whose values are those of one version runs in the pass of that version. Which scenarios that leaves out of
//! the other pass is counted here, so that none is left out unnoticed.

mod files;
mod schemas;
mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cucumber::gherkin::Scenario;
use cucumber::{StatsWriter, World, WriterExt, writer};

use files::{Files, Suite};
use steps::FlagWorld;

/// Whether the values of a scenario are those of a version: it is tagged with it, or with none.
fn belongs(scenario: &Scenario, version: u8) -> bool {
    let tag = |version| format!("fractional-v{version}");
    let is_tagged = |version: u8| scenario.tags.contains(&tag(version));
    is_tagged(version) || !(1..=3).any(is_tagged)
}

/// Runs a suite, and returns how many scenarios ran and how many belong to another version.
async fn run(suite: Suite, version: u8) -> (usize, usize) {
    let files = Files::find();
    let (flags, features) = (files.flags(suite, version), files.features(suite));
    let (ran, other) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (ran.clone(), other.clone());
    let finished = FlagWorld::cucumber()
        .with_writer(writer::Basic::new(std::io::stdout(), writer::Coloring::Never, 0).summarized())
        .fail_on_skipped()
        .with_default_cli()
        .before(move |_, _, _, world| {
            world.flags = Some(flags.clone());
            Box::pin(std::future::ready(()))
        })
        .filter_run(features.0.clone(), move |_, _, scenario| {
            let is_in = belongs(scenario, version);
            let count = if is_in { &counts.0 } else { &counts.1 };
            count.fetch_add(1, Ordering::Relaxed);
            is_in
        })
        .await;
    assert!(!finished.execution_has_failed(), "scenarios of version {version} fail");
    assert_eq!(finished.skipped_steps(), 0);
    (ran.load(Ordering::Relaxed), other.load(Ordering::Relaxed))
}

#[tokio::test]
async fn evaluator_suite_holds_with_fractional_v2() {
    assert_eq!(run(Suite::Evaluator, 2).await, (125, 15));
}

#[tokio::test]
async fn evaluator_suite_holds_with_fractional_v3() {
    assert_eq!(run(Suite::Evaluator, 3).await, (104, 36));
}

#[tokio::test]
async fn targeting_suite_holds_with_fractional_v2() {
    assert_eq!(run(Suite::Targeting, 2).await, (98, 147));
}

#[tokio::test]
async fn targeting_suite_holds_with_fractional_v3() {
    assert_eq!(run(Suite::Targeting, 3).await, (209, 36));
}
