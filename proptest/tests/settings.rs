//! Settings that change while nodes run: those that all nodes share, and those of one node. After each step the
//! simulator checks that a lease has at most one holder, that tokens grow, and that no two lists of voters have one
//! epoch.
//!
//! Negative controls: a change without the joint list, one that leaves it too soon, a quarantine that does not follow the
//! rules that a voter adopts after its start, promises that count as none because they cannot be read, and two clusters
//! that link although they began with other settings.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tidings::settings::{ClusterSettings, ReconfigureError, SetSettingsError};
use tidings::sim::{Disk, Sim};
use tidings::voters::SetVotersError;
use tidings::{Config, Control, MemberState, ReplicaEvent, WriteError};
use tidings_proptest::{
    Elections, Noticed, SHORT_QUARANTINE, electing, for_chosen_seeds, notice, run_until, short_leases, voters,
};

const SECOND: Duration = Duration::from_secs(1);
/// A change waits for the longest lease, 10 s, and takes two rounds of ballots.
const CHANGE: Duration = Duration::from_secs(14);

/// Nodes of which the first three are voters, past their quarantine.
fn cluster(seed: u64, nodes: usize) -> Sim {
    electing(seed, 3, nodes)
}

/// Lets time pass until something holds, at most for `within`.
fn until(sim: &mut Sim, within: Duration, holds: impl Fn(&mut Sim) -> bool) {
    run_until(sim, Duration::from_millis(10), within, holds);
}

fn present(sim: &Sim, i: usize) -> ClusterSettings {
    sim.node(i).cluster_settings().expect("it is up").present
}

fn set(sim: &mut Sim, i: usize, change: impl FnOnce(&mut ClusterSettings)) -> Result<(), SetSettingsError> {
    let mut settings = present(sim, i);
    change(&mut settings);
    sim.node(i).set_cluster_settings(settings)?;
    until(sim, CHANGE, |sim| sim.node(i).settings_set().is_some());
    sim.node(i).settings_set().expect("just seen")
}

/// Whether these nodes have the same settings in force, elections included.
fn agree(sim: &Sim, nodes: std::ops::Range<usize>) -> bool {
    let in_force = |i: usize| {
        let config = sim.node(i).config().expect("it is up");
        assert_eq!(ClusterSettings::of(&config), present(sim, i), "the record is not in force");
        (ClusterSettings::of(&config), sim.node(i).voters())
    };
    nodes.clone().all(|i| in_force(i) == in_force(nodes.start))
}

/// Three nodes of which the first two have learned from their configurations that all three are voters.
fn half_rolled_out(seed: u64) -> Sim {
    let mut sim = Sim::new(seed).config(short_leases(0)).seeds(&[0, 2]).nodes_with_disk(3);
    sim.run_for(SECOND * 5);
    for i in 0..2 {
        sim.reconfigure(i, short_leases(3));
        sim.restart(i);
    }
    sim.run_for(SHORT_QUARANTINE);
    sim
}

#[test]
fn node_without_the_voters_of_others_changes_no_lease_times() {
    let mut sim = half_rolled_out(21);
    sim.node(0).campaign("cron", "x").expect("there are voters");
    until(&mut sim, SECOND * 5, |sim| sim.node(0).holds("cron").is_some());
    sim.run_for(SECOND);
    let refused = set(&mut sim, 2, |settings| settings.lease_time_max = SECOND * 5);
    assert_eq!(refused, Err(SetSettingsError::Voters(SetVotersError::NoVoters)));
    assert_eq!(set(&mut sim, 2, |settings| settings.mesh_members_max = 9), Ok(()));
    sim.reconfigure(2, short_leases(3));
    sim.restart(2);
    sim.run_for(SHORT_QUARANTINE);
    assert_eq!(set(&mut sim, 2, |settings| settings.lease_time_max = SECOND * 5), Ok(()));
    assert!(agree(&sim, 0..3) && sim.node(0).holds("cron").is_some());
}

/// What the guide says of voters whose lease times differ because they were changed while they got their first list.
#[test]
fn forcing_the_same_voters_joins_their_lease_times() {
    let mut sim = half_rolled_out(22);
    let id = sim.node(0).campaign("cron", "x").expect("there are voters");
    until(&mut sim, SECOND * 5, |sim| sim.node(0).holds("cron").is_some());
    sim.node(0).resign(id);
    // Nobody asks the third node for a lease any more.
    sim.run_for(SECOND * 90);
    assert_eq!(set(&mut sim, 2, |settings| settings.lease_time_max = SECOND * 5), Ok(()));
    sim.run_for(SECOND);
    sim.reconfigure(2, short_leases(3));
    sim.restart(2);
    sim.run_for(SECOND * 15);
    sim.node(1).campaign("cron", "x").expect("there are voters");
    sim.run_for(SECOND * 20);
    assert!(sim.holders("cron").is_empty(), "the times of the third voter differ");
    let differs = |(_, event): (usize, ReplicaEvent)| matches!(event, ReplicaEvent::VotersDiffer { .. });
    assert!(sim.events().into_iter().any(differs), "it is reported");
    sim.node(1).force_voters(voters(3)).expect("it can be written");
    until(&mut sim, SECOND * 15, |sim| sim.node(1).holds("cron").is_some());
    assert!(agree(&sim, 0..3));
}

#[test]
fn settings_change_everywhere_and_the_leader_stays() {
    let mut sim = cluster(1, 5);
    let id = sim.node(3).campaign("cron", "x").expect("there are voters");
    until(&mut sim, SECOND * 5, |sim| sim.node(3).holds("cron").is_some());
    let token = sim.node(3).holds("cron");
    for (lease_time_max, mesh_members_max) in [(SECOND * 10, 50), (SECOND, 20), (SECOND * 3, 30)] {
        let outcome = set(&mut sim, 4, |settings| {
            (settings.lease_time_max, settings.mesh_members_max) = (lease_time_max, mesh_members_max);
        });
        assert_eq!(outcome, Ok(()));
        until(&mut sim, SECOND, |sim| agree(sim, 0..5));
        assert_eq!(sim.node(0).config().expect("it is up").mesh_members_max, mesh_members_max);
        sim.run_for(SECOND * 4);
        assert_eq!((sim.node(3).holds("cron"), sim.terms()), (token, 1), "the lease ended");
    }
    // The present configuration stays good, although it asks for longer leases than are granted.
    assert_eq!(set(&mut sim, 0, |settings| settings.lease_time_max = SECOND), Ok(()));
    let config = sim.node(0).config().expect("it is up");
    assert!(config.lease_time > config.lease_time_max);
    assert_eq!(sim.node(0).reconfigure(config), Ok(()));
    // With the shorter lease a holder that is gone is replaced sooner.
    sim.crash(3);
    sim.node(4).campaign("cron", "y").expect("there are voters");
    until(&mut sim, SECOND * 2, |sim| sim.node(4).holds("cron").is_some());
    assert!(sim.node(0).lease(id).is_none());
    let record = sim.node(0).cluster_settings().expect("it is up");
    assert_eq!((record.number, record.earlier.len()), (4, 3));
}

#[test]
fn rolling_back_puts_the_earlier_settings_in_force() {
    let mut sim = cluster(2, 3);
    let before = present(&sim, 0);
    assert_eq!(set(&mut sim, 1, |settings| settings.clock_skew_max = SECOND * 5), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..3));
    let record = sim.node(0).cluster_settings().expect("it is up");
    let states: Vec<_> = record.earlier.iter().map(|earlier| (earlier.settings, earlier.written)).collect();
    assert_eq!(states, [(before, None)], "nobody has put in force what was configured");
    assert!(record.written.is_some());
    assert_eq!(set(&mut sim, 0, |settings| *settings = before), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..3));
    assert_eq!(present(&sim, 2), before);
    let earlier = sim.node(2).cluster_settings().expect("it is up").earlier;
    assert_eq!(earlier[0].written, record.written, "who changed them, and when, is kept");
}

#[test]
fn node_that_was_away_takes_the_settings_over() {
    let mut sim = cluster(3, 5);
    sim.crash(4);
    assert_eq!(set(&mut sim, 0, |settings| settings.lease_time_max = SECOND * 10), Ok(()));
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 40), Ok(()));
    // One comes back with its disk, one without: both are configured as the cluster was before.
    sim.restart(4);
    sim.restart_with(3, Disk::Blank);
    until(&mut sim, SECOND * 20, |sim| agree(sim, 0..5) && present(sim, 4).mesh_members_max == 40);
    sim.node(3).campaign("cron", "x").expect("there are voters");
    until(&mut sim, SECOND * 5, |sim| sim.node(3).holds("cron").is_some());
}

#[test]
fn settings_survive_the_restart_of_all_nodes() {
    let mut sim = cluster(4, 3);
    assert_eq!(set(&mut sim, 0, |settings| settings.lease_time_max = SECOND * 10), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..3));
    sim.run_for(SECOND);
    (0..3).for_each(|i| sim.crash(i));
    (0..3).for_each(|i| sim.restart(i));
    assert_eq!(present(&sim, 1).lease_time_max, SECOND * 10, "before it has met anybody");
    until(&mut sim, SECOND * 5, |sim| agree(sim, 0..3));
    sim.node(1).campaign("cron", "x").expect("there are voters");
    until(&mut sim, SHORT_QUARANTINE * 4, |sim| sim.node(1).holds("cron").is_some());
}

#[test]
fn newcomer_with_settings_of_another_cluster_is_refused() {
    let mut sim = cluster(5, 4);
    let joins = |sim: &mut Sim, mesh_members_max| {
        let mut config = short_leases(3);
        config.mesh_members_max = mesh_members_max;
        sim.reconfigure(3, config);
        sim.restart_with(3, Disk::Blank);
        sim.run_for(SECOND * 10);
        sim.node(0).members().iter().any(|member| member.name == "n3" && member.state == MemberState::Alive)
    };
    assert!(!joins(&mut sim, 40), "the settings differ from those of the cluster");
    assert!(joins(&mut sim, 30));
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 50), Ok(()));
    assert!(!joins(&mut sim, 40), "these were never in force");
    assert!(joins(&mut sim, 30), "these were in force before");
    assert!(joins(&mut sim, 50), "these are in force");
    until(&mut sim, SECOND * 5, |sim| agree(sim, 0..4));
}

#[test]
fn two_sides_of_a_partition_agree_afterwards() {
    let mut sim = Sim::new(6).config(Config::lan()).seeds(&[0, 2]).nodes_with_disk(4);
    sim.run_for(SECOND * 5);
    sim.partition(&[0, 1], &[2, 3]);
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 10), Ok(()));
    sim.run_for(SECOND);
    assert_eq!(set(&mut sim, 3, |settings| settings.mesh_members_max = 20), Ok(()));
    sim.run_for(SECOND * 30);
    sim.heal();
    until(&mut sim, SECOND * 40, |sim| agree(sim, 0..4) && present(sim, 0) == present(sim, 2));
    let record = sim.node(1).cluster_settings().expect("it is up");
    assert_eq!(record.present.mesh_members_max, 20, "the later write");
    let earlier: Vec<usize> =
        record.earlier.iter().map(|earlier| earlier.settings.mesh_members_max).collect();
    assert_eq!(earlier, [30, 10]);
}

#[test]
fn change_that_cannot_be_made_says_why_and_changes_nothing() {
    let mut sim = Sim::new(7).config(short_leases(3)).seeds(&[0]).nodes_with_disk(2).nodes(1);
    sim.run_for(SHORT_QUARANTINE);
    let before = present(&sim, 0);
    let range = set(&mut sim, 0, |settings| settings.lease_time_max = SECOND * 11).unwrap_err();
    assert!(range.to_string().contains("lease_time_max is 11 s, permitted: 100 ms to 10 s"), "{range}");
    let no_disk = set(&mut sim, 0, |settings| settings.lease_time_max = SECOND * 9).unwrap_err();
    assert_eq!(no_disk, SetSettingsError::Voters(SetVotersError::NoDisk { name: "n2".to_owned() }));
    (1..3).for_each(|i| sim.crash(i));
    let alone = set(&mut sim, 0, |settings| settings.clock_skew_max = SECOND * 9).unwrap_err();
    assert!(matches!(alone, SetSettingsError::Voters(SetVotersError::NoMajority { .. })), "{alone}");
    assert_eq!(present(&sim, 0), before);
    // What is no matter of the voters is changed all the same.
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 9), Ok(()));
    assert_eq!(present(&sim, 0), ClusterSettings::of(&sim.node(0).config().expect("it is up")));
}

#[test]
fn repeated_call_waits_for_the_voters_as_well() {
    let mut sim = cluster(14, 3);
    let mut settings = present(&sim, 0);
    settings.lease_time_max = SECOND * 5;
    sim.node(0).set_cluster_settings(settings).expect("it begins");
    until(&mut sim, SECOND * 5, |sim| present(sim, 0) == settings);
    // The record names the times, and no majority can decide them any more.
    (1..3).for_each(|i| sim.crash(i));
    sim.node(0).set_cluster_settings(settings).expect("it begins");
    sim.run_for(CHANGE);
    assert_ne!(sim.node(0).settings_set(), Some(Ok(())), "the voters do not have them");
    (1..3).for_each(|i| sim.restart(i));
    sim.run_for(CHANGE);
    assert_eq!(set(&mut sim, 0, |_| ()), Ok(()));
    assert_eq!(sim.node(0).voters().map(|list| list.epoch), Some(2));
}

#[test]
fn later_call_for_voters_takes_the_place_of_one_for_settings() {
    let mut sim = cluster(11, 4);
    let before = present(&sim, 0);
    let mut settings = before;
    settings.lease_time_max = SECOND;
    // Too soon for the answers of the other voters, so nothing is written yet.
    sim.node(0).set_cluster_settings(settings).expect("it begins");
    sim.node(0).set_voters(["n1", "n2", "n3"]).expect("it begins");
    until(&mut sim, CHANGE, |sim| sim.node(0).voters_set().is_some());
    assert_eq!((sim.node(0).voters_set(), sim.node(0).settings_set()), (Some(Ok(())), None));
    sim.run_for(CHANGE * 2);
    assert!(agree(&sim, 0..4));
    assert_eq!((present(&sim, 0), sim.node(0).settings_set()), (before, None));
}

#[test]
fn change_goes_on_when_its_caller_crashes() {
    for after_ms in [5, 20, 60, 200, 1_000, 3_000] {
        let mut sim = cluster(after_ms, 5);
        let mut settings = present(&sim, 4);
        settings.lease_time_max = SECOND;
        sim.node(4).set_cluster_settings(settings).expect("it begins");
        sim.run_for(Duration::from_millis(after_ms));
        sim.crash(4);
        sim.run_for(CHANGE * 2);
        assert!(agree(&sim, 0..4), "after {after_ms} ms");
        assert_eq!(
            sim.node(0).voters().and_then(|list| list.next),
            None,
            "after {after_ms} ms it stands still"
        );
        if after_ms >= 60 {
            assert_eq!(present(&sim, 0).lease_time_max, SECOND, "after {after_ms} ms it is lost");
        }
    }
}

/// Two voters promise a lease under rules that they learned while they ran, lose their disks, and start again under the
/// shorter times with which they are configured.
fn forget_the_longer_lease(control: Option<Control>) {
    let mut short = short_leases(5);
    (short.lease_time, short.lease_time_max) = (SECOND / 2, SECOND / 2);
    let mut sim = Sim::new(8).broken(control).config(short).seeds(&[1, 2]).nodes_with_disk(5);
    sim.run_for(SHORT_QUARANTINE);
    assert_eq!(set(&mut sim, 0, |settings| settings.lease_time_max = SECOND * 10), Ok(()));
    let mut config = sim.node(0).config().expect("it is up");
    config.lease_time = SECOND * 10;
    sim.node(0).reconfigure(config).expect("it is permitted now");
    sim.partition(&[0], &[1, 2]);
    sim.node(0).campaign("cron", "x").expect("there are voters");
    until(&mut sim, SECOND * 5, |sim| sim.node(0).holds("cron").is_some());
    sim.partition(&[0], &[1, 2, 3, 4]);
    [3, 4].into_iter().for_each(|i| sim.restart_with(i, Disk::Blank));
    sim.node(1).campaign("cron", "y").expect("there are voters");
    // The first holder counts on nine seconds.
    until(&mut sim, SECOND * 30, |sim| sim.node(1).holds("cron").is_some());
}

#[test]
fn longer_leases_prolong_the_quarantine_after_a_lost_disk() {
    forget_the_longer_lease(None);
    let noticed = notice(|| forget_the_longer_lease(Some(Control::QuarantineKept)));
    assert!(matches!(noticed, Some(Noticed::TwoHolders | Noticed::Token)), "{noticed:?}");
}

/// Nodes with disks and without voters, whose shared lease time was changed from half a second to 10 s while they ran.
fn changed_without_voters(seed: u64, control: Option<Control>) -> Sim {
    let mut short = short_leases(0);
    (short.lease_time, short.lease_time_max) = (SECOND / 2, SECOND / 2);
    let mut sim = Sim::new(seed).broken(control).config(short).seeds(&[0, 2]).nodes_with_disk(5);
    sim.run_for(SECOND * 5);
    assert_eq!(set(&mut sim, 1, |settings| settings.lease_time_max = SECOND * 10), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..5));
    sim
}

/// Configures the first three nodes as voters, everywhere, and the lease times as the cluster has them now (`present`)
/// or had them first.
fn give_voters(sim: &mut Sim, present: impl Fn(usize) -> bool) {
    for i in 0..5 {
        let mut config = short_leases(3);
        config.lease_time = SECOND / 2;
        config.lease_time_max = if present(i) { SECOND * 10 } else { SECOND / 2 };
        sim.reconfigure(i, config);
    }
}

fn campaign_until_held(sim: &mut Sim, i: usize, name: &str) {
    sim.node(i).campaign(name, "x").expect("there are voters");
    until(sim, SECOND * 30, |sim| sim.node(i).holds(name).is_some());
}

#[test]
fn first_voters_begin_with_times_changed_before_them() {
    let mut sim = changed_without_voters(12, None);
    give_voters(&mut sim, |i| i % 2 == 1);
    (0..5).for_each(|i| sim.restart(i));
    campaign_until_held(&mut sim, 4, "cron");
    // A voter whose disk was lost is one again, and so are all after another start.
    sim.restart_with(0, Disk::Blank);
    sim.crash(1);
    campaign_until_held(&mut sim, 3, "backup");
    sim.run_for(SECOND);
    (0..5).for_each(|i| sim.restart(i));
    campaign_until_held(&mut sim, 3, "cron");
    // From now on the voters decide.
    assert_eq!(set(&mut sim, 4, |settings| settings.lease_time_max = SECOND * 2), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..5));
    (0..5).for_each(|i| sim.restart(i));
    campaign_until_held(&mut sim, 4, "cron");
    assert_eq!(present(&sim, 2).lease_time_max, SECOND * 2);
}

/// Two voters promise a lease under times that were changed before they were voters, and lose their disks.
fn forget_a_lease_of_first_times(control: Option<Control>) {
    let mut sim = changed_without_voters(13, control);
    give_voters(&mut sim, |_| false);
    (0..5).for_each(|i| sim.restart(i));
    sim.run_for(SECOND * 13);
    let mut config = sim.node(0).config().expect("it is up");
    config.lease_time = SECOND * 10;
    sim.node(0).reconfigure(config).expect("it is permitted");
    campaign_until_held(&mut sim, 0, "cron");
    sim.partition(&[0], &[1, 2, 3, 4]);
    [1, 2].into_iter().for_each(|i| sim.restart_with(i, Disk::Blank));
    campaign_until_held(&mut sim, 3, "cron");
}

#[test]
fn lease_of_times_before_voters_outlives_lost_disks() {
    forget_a_lease_of_first_times(None);
    let noticed = notice(|| forget_a_lease_of_first_times(Some(Control::QuarantineKept)));
    assert!(matches!(noticed, Some(Noticed::TwoHolders | Noticed::Token)), "{noticed:?}");
}

/// A voter grants a lease while its wall clock is an hour ahead, and starts again with the right time and with a memo
/// that it cannot read.
fn vote_without_memory(control: Option<Control>) -> Sim {
    let mut sim = Sim::new(14).broken(control).config(short_leases(1)).seeds(&[0]).nodes_with_disk(2);
    sim.skew(0, 3_600_000);
    sim.run_for(SHORT_QUARANTINE);
    campaign_until_held(&mut sim, 1, "cron");
    (0..2).for_each(|i| sim.crash(i));
    sim.skew(0, 0);
    sim.make_voter_memo_unreadable(0);
    (0..2).for_each(|i| sim.restart(i));
    sim.node(1).campaign("cron", "x").expect("there are voters");
    sim.node(0).campaign("backup", "x").expect("there are voters");
    sim.run_for(SECOND * 60);
    sim
}

#[test]
fn voter_with_an_unreadable_memo_does_not_vote() {
    let mut sim = vote_without_memory(None);
    assert!(sim.holders("cron").is_empty() && sim.holders("backup").is_empty());
    let silent = |event: &(usize, ReplicaEvent)| *event == (0, ReplicaEvent::VoterSilent);
    assert_eq!(sim.events().iter().filter(|event| silent(event)).count(), 1);
    // The next start finds the same memo.
    sim.restart(0);
    assert!(sim.events().iter().any(silent));
    let noticed = notice(|| _ = vote_without_memory(Some(Control::MemoForgotten)));
    assert_eq!(noticed, Some(Noticed::Token));
}

/// Two clusters that know an address of each other: they begin with different settings, and each changes them.
fn change_two_clusters(control: Option<Control>) -> Sim {
    let begun = |members| changed(&Config::lan(), |config| config.mesh_members_max = members);
    let sim = Sim::new(15).broken(control).seeds(&[0, 2]).config(begun(30)).nodes_with_disk(2);
    let mut sim = sim.config(begun(40)).nodes_with_disk(2);
    sim.run_for(SECOND * 5);
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 50), Ok(()));
    // One that is away meanwhile holds the record of before, and one is configured with what is in force now.
    sim.run_for(SECOND);
    sim.crash(1);
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 60), Ok(()));
    assert_eq!(set(&mut sim, 2, |settings| settings.mesh_members_max = 70), Ok(()));
    sim.reconfigure(3, begun(70));
    [1, 3].into_iter().for_each(|i| sim.restart(i));
    sim.run_for(SECOND * 60);
    sim
}

#[test]
fn clusters_that_began_otherwise_stay_apart() {
    let in_force = |sim: &Sim| [0, 1, 2, 3].map(|i| present(sim, i).mesh_members_max);
    assert_eq!(in_force(&change_two_clusters(None)), [60, 60, 70, 70]);
    let merged = change_two_clusters(Some(Control::BeginningIgnored));
    assert_eq!(in_force(&merged), [60; 4], "the control merges them");
}

/// Voters without disks, whose configurations have half a second where 10 s are in force, promise a lease; two of three
/// start anew, while the holder cannot reach them. With `is_current` their settings files have what is in force.
fn restart_voters_without_disks(control: Option<Control>, is_current: bool, away: &[usize]) -> Sim {
    let mut short = short_leases(0);
    (short.lease_time, short.lease_time_max) = (SECOND / 2, SECOND / 2);
    let mut sim = Sim::new(16).broken(control).config(short).seeds(&[0, 2]).nodes(5);
    sim.run_for(SECOND * 5);
    assert_eq!(set(&mut sim, 1, |settings| settings.lease_time_max = SECOND * 10), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..5));
    give_voters(&mut sim, |_| is_current);
    for i in 0..5 {
        sim.restart(i);
        let knows = |sim: &mut Sim| present(sim, i).lease_time_max == SECOND * 10;
        until(&mut sim, SECOND * 20, |sim| knows(sim) && sim.node(i).joining().is_ready);
    }
    sim.run_for(SECOND * 13);
    let mut config = sim.node(3).config().expect("it is up");
    config.lease_time = SECOND * 10;
    sim.node(3).reconfigure(config).expect("it is permitted");
    campaign_until_held(&mut sim, 3, "cron");
    let others: Vec<usize> = (0..5).filter(|i| !away.contains(i)).collect();
    sim.partition(away, &others);
    [0, 1].into_iter().for_each(|i| sim.restart(i));
    sim.node(1).campaign("cron", "x").expect("there are voters");
    sim.run_for(SECOND * 40);
    assert!(sim.node(1).holds("cron").is_some());
    sim
}

#[test]
fn voters_without_disks_learn_the_times_before_they_vote() {
    // They reach another node that knows the times.
    _ = restart_voters_without_disks(None, false, &[3]);
    let control = Some(Control::QuarantineKept);
    let noticed = notice(|| _ = restart_voters_without_disks(control, false, &[3]));
    assert!(matches!(noticed, Some(Noticed::TwoHolders | Noticed::Token)), "{noticed:?}");
}

#[test]
fn voters_without_disks_need_the_times_configured() {
    // They reach only each other.
    _ = restart_voters_without_disks(None, true, &[2, 3, 4]);
    let noticed = notice(|| _ = restart_voters_without_disks(None, false, &[2, 3, 4]));
    assert!(matches!(noticed, Some(Noticed::TwoHolders | Noticed::Token)), "{noticed:?}");
}

fn changed(config: &Config, change: impl FnOnce(&mut Config)) -> Config {
    let mut changed = config.clone();
    change(&mut changed);
    changed
}

#[test]
fn settings_of_one_node_take_effect_at_once() {
    let mut sim = Sim::new(9).config(Config::lan()).seeds(&[0]).nodes(3);
    sim.run_for(SECOND * 3);
    let mut config = sim.node(0).config().expect("it is up");
    config.value_bytes_max = 10;
    (config.probe_interval, config.probe_timeout) = (SECOND / 10, SECOND / 25);
    config.suspicion_time = SECOND / 5;
    (0..2).for_each(|i| assert_eq!(sim.node(i).reconfigure(config.clone()), Ok(())));
    let refused = sim.node(0).put("k", [0; 11]).unwrap_err();
    assert_eq!(refused, WriteError::ValueTooLarge { bytes: 11, limit: 10 });
    sim.crash(2);
    // With the times of `Config::lan` this takes three seconds and more.
    until(&mut sim, SECOND * 3 / 2, |sim| {
        sim.node(0).members().iter().any(|member| member.name == "n2" && member.state == MemberState::Down)
    });
    for (field, instead, wrong) in [
        ("voters", "Node::set_voters", changed(&config, |config| config.voters = voters(3))),
        (
            "mesh_members_max",
            "Node::set_cluster_settings",
            changed(&config, |config| config.mesh_members_max += 1),
        ),
    ] {
        assert_eq!(sim.node(0).reconfigure(wrong), Err(ReconfigureError::Fixed { field, instead }));
    }
    config.sync_interval = Duration::ZERO;
    let range = sim.node(0).reconfigure(config).unwrap_err();
    assert!(range.to_string().contains("sync_interval is 0 ms"), "{range}");
}

/// For each field of `Config`: a value that is permitted, one that is not, if there is any, and what changes the field of
/// a running node, if it is not `reconfigure`.
fn fields() -> Vec<(&'static str, Value, Option<Value>, Option<&'static str>)> {
    let shared = Some("Node::set_cluster_settings");
    vec![
        ("sync_interval", json!("2s"), Some(json!("9ms")), None),
        ("value_bytes_max", json!(9), Some(json!(0)), None),
        ("clock_skew_max", json!("2s"), Some(json!("2h")), shared),
        ("removals_max", json!(9), Some(json!(16_777_217)), None),
        ("mesh_members_max", json!(9), Some(json!(513)), shared),
        ("sync_timeout", json!("2s"), Some(json!("99ms")), None),
        ("lag_bytes_max", json!(65_536), Some(json!(65_535)), None),
        ("store_bytes_max", json!(65_536), Some(json!(65_535)), None),
        ("probe_interval", json!("2s"), Some(json!("19ms")), None),
        ("probe_timeout", json!("9ms"), Some(json!("251ms")), None),
        ("suspicion_time", json!("2s"), Some(json!("49ms")), None),
        ("forget_after", json!("2s"), Some(json!("999ms")), None),
        ("alone_after", json!("2s"), Some(json!("999ms")), None),
        ("scrub_interval", json!("2s"), Some(json!("31days")), None),
        ("durability", json!("immediate"), Some(json!({ "interval": "2h" })), None),
        ("on_corruption", json!("rejoin"), None, Some("a restart")),
        ("voters", json!(["n0"]), Some(json!(["n0", "n0"])), Some("Node::set_voters")),
        ("lease_time", json!("2s"), Some(json!("11s")), None),
        ("lease_time_max", json!("5s"), Some(json!("11s")), shared),
    ]
}

#[test]
fn each_field_is_changed_or_refused_by_name() {
    let mut sim = Sim::new(14).config(Config::lan()).seeds(&[0]).nodes(1);
    sim.run_for(SECOND);
    let as_json = |config: &Config| serde_json::to_value(config).expect("it is written");
    let all: Vec<String> = as_json(&Config::lan()).as_object().expect("fields").keys().cloned().collect();
    let mut tried: Vec<&str> = fields().into_iter().map(|(field, ..)| field).collect();
    tried.sort_unstable();
    assert_eq!(tried, all, "a field without a case");
    for (field, permitted, out_of_range, instead) in fields() {
        let before = sim.node(0).config().expect("it is up");
        let with = |value: Value| {
            let mut changed = as_json(&before);
            changed[field] = value;
            serde_json::from_value::<Config>(changed).expect("its form is right")
        };
        if let Some(value) = out_of_range {
            let refused = sim.node(0).reconfigure(with(value)).unwrap_err();
            assert!(matches!(&refused, ReconfigureError::Range(error) if error.field == field), "{refused}");
        }
        assert_eq!(sim.node(0).config().as_ref(), Some(&before), "{field}: nothing was changed");
        let outcome = sim.node(0).reconfigure(with(permitted.clone()));
        let expected = instead.map_or(Ok(()), |instead| Err(ReconfigureError::Fixed { field, instead }));
        assert_eq!(outcome, expected);
        let now = as_json(&sim.node(0).config().expect("it is up"));
        let value = if instead.is_none() { permitted } else { as_json(&before)[field].clone() };
        assert_eq!(now[field], value, "{field}");
        // Later cases begin with the usual values.
        sim.node(0).reconfigure(before).expect("it was in force");
    }
}

#[test]
fn limits_of_the_store_and_of_members_follow_at_once() {
    let mut sim = Sim::new(15).config(Config::lan()).seeds(&[0]).nodes(3);
    sim.run_for(SECOND * 3);
    let mut config = sim.node(0).config().expect("it is up");
    (config.store_bytes_max, config.forget_after) = (64 << 10, SECOND * 2);
    (0..2).for_each(|i| assert_eq!(sim.node(i).reconfigure(config.clone()), Ok(())));
    let refused = sim.node(0).put("k", vec![0; 64 << 10]).unwrap_err();
    assert!(matches!(refused, WriteError::Full { .. }), "{refused}");
    sim.crash(2);
    // With the times of `Config::lan` it is known for a day.
    until(&mut sim, SECOND * 20, |sim| sim.node(0).members().iter().all(|member| member.name != "n2"));
    config.store_bytes_max = 1 << 20;
    sim.node(0).reconfigure(config).expect("it is permitted");
    assert!(sim.node(0).put("k", vec![0; 64 << 10]).is_ok());
}

#[test]
fn change_is_told_to_the_user() {
    let mut sim = cluster(10, 3);
    assert_eq!(set(&mut sim, 0, |settings| settings.mesh_members_max = 50), Ok(()));
    until(&mut sim, SECOND, |sim| agree(sim, 0..3));
    let settings = present(&sim, 0);
    let told = ReplicaEvent::SettingsChanged { settings };
    let told = sim.events().iter().filter(|(_, event)| *event == told).count();
    assert_eq!(told, 3, "once on each node");
}

#[test]
fn random_changes_of_times_have_at_most_one_leader() {
    let (terms, changes) = (AtomicU64::new(0), AtomicU64::new(0));
    for_chosen_seeds(300, |seed| {
        let sim = Elections::with_other_times(seed).run();
        terms.fetch_add(sim.terms(), Ordering::Relaxed);
        let numbers =
            (0..sim.len()).map(|i| sim.node(i).cluster_settings().map_or(0, |record| record.number));
        changes.fetch_add(numbers.max().unwrap_or_default(), Ordering::Relaxed);
    });
    println!("{} leases won, {} changes of settings", terms.into_inner(), changes.into_inner());
}

/// Random histories per broken rule.
const CONTROL_SEEDS: u64 = 2_000;

#[test]
fn every_broken_rule_of_changes_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    for control in [Control::JointSkipped, Control::JointCutShort] {
        let run = |seed| {
            notice(|| {
                _ = Elections { control: Some(control), ..Elections::with_other_times(seed) }.run();
            })
        };
        let found = (0..CONTROL_SEEDS).find_map(|seed| Some((seed, run(seed)?)));
        println!("{control:?}: {found:?}");
        let (_, noticed) = found.expect("the simulator notices nothing");
        assert!(
            matches!(noticed, Noticed::TwoHolders | Noticed::Token | Noticed::TwoVoterLists),
            "{noticed:?}"
        );
    }
    _ = std::panic::take_hook();
}
