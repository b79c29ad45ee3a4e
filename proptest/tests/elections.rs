//! Elections on real nodes on loopback: campaigns, observers, locks, refusals, and voters with a disk. Voters are in
//! quarantine for about four seconds after their start, so that each test checks several things in one cluster.
//!
//! The safety of leases is tested in the simulator, with negative controls, in `leaders.rs` and `voting.rs`.

use std::time::Duration;

use tidings::{Builder, Config, ElectionError, Leader, LeaderEvent, Node, NodeEvent, Observer, ReplicaEvent};
use tidings_proptest::Folder;
use tidings_proptest::nodes::{self, event, guarded, ready};

fn config(voters: &[&str]) -> Config {
    let mut config = Config::local();
    config.clock_skew_max = Duration::from_millis(500);
    // Long enough that a lease survives on a machine that is busy with other tests.
    (config.lease_time, config.lease_time_max) = (Duration::from_secs(3), Duration::from_secs(3));
    config.voters = voters.iter().map(|name| (*name).to_owned()).collect();
    config
}

fn builder(name: &str, voters: &[&str], seeds: &[&Node]) -> Builder {
    nodes::builder(name, seeds).config(config(voters))
}

async fn start(name: &str, voters: &[&str], seeds: &[&Node]) -> Node {
    ready(builder(name, voters, seeds)).await
}

const VOTERS: [&str; 3] = ["a", "b", "c"];

async fn three() -> [Node; 3] {
    let a = start("a", &VOTERS, &[]).await;
    let b = start("b", &VOTERS, &[&a]).await;
    let c = start("c", &VOTERS, &[&a, &b]).await;
    [a, b, c]
}

/// Waits until an observer sees a leader with this value. `None`: until it sees that there is no leader.
async fn sees(observer: &mut Observer, value: Option<&[u8]>) -> Option<Leader> {
    guarded(async {
        loop {
            let leader = match observer.next().await.expect("the node is open") {
                LeaderEvent::Leads(leader) => Some(leader),
                LeaderEvent::Vacant => None,
            };
            if leader.as_ref().map(|leader| &leader.value[..]) == value {
                return leader;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_leads_and_others_succeed_it() {
    let [a, b, c] = three().await;
    // A node that is no voter may campaign and observe.
    let d = start("d", &VOTERS, &[&a]).await;
    let mut observer = d.election("cron").observe().unwrap();
    let lead = guarded(d.election("cron").campaign("of d")).await.unwrap();
    assert!(lead.is_valid() && lead.valid_until() > std::time::Instant::now());
    let seen = sees(&mut observer, Some(b"of d")).await.unwrap();
    assert_eq!((seen.token, seen.token.origin()), (lead.token(), d.status().run));
    assert_eq!(guarded(b.election("cron").leader()).await, Ok(Some(seen)));
    assert_eq!(guarded(b.election("else").leader()).await, Ok(None));
    assert_eq!(guarded(c.election("cron").try_campaign("c")).await.unwrap_err(), ElectionError::Taken);

    lead.proclaim("of d, still").unwrap();
    assert_eq!(sees(&mut observer, Some(b"of d, still")).await.unwrap().token, lead.token());

    // Two nodes wait for the lease. One gives up and is not elected any more.
    let waiting = tokio::spawn({
        let a = a.clone();
        async move { a.election("cron").campaign("of a").await }
    });
    let given_up = tokio::time::timeout(Duration::from_millis(50), c.election("cron").campaign("of c")).await;
    assert!(given_up.is_err());
    let token = lead.token();
    guarded(lead.resign()).await;
    let next = guarded(waiting).await.unwrap().unwrap();
    assert!(next.token() > token);
    sees(&mut observer, Some(b"of a")).await;
    drop(next);
    assert_eq!(sees(&mut observer, None).await, None);

    // Locks behave the same, also between tasks of one node.
    let first = guarded(b.lock("door")).await.unwrap();
    assert_eq!(guarded(b.try_lock("door")).await.unwrap_err(), ElectionError::Taken);
    let (second, third) = (tokio::spawn(lock(b.clone())), tokio::spawn(lock(c.clone())));
    assert!(!second.is_finished() && !third.is_finished());
    drop(first);
    guarded(second).await.unwrap();
    guarded(third).await.unwrap();
    guarded(d.lock("door")).await.unwrap();

    // A closed node holds no lease any more, and another node succeeds it at once.
    let lead = guarded(a.election("cron").campaign("of a")).await.unwrap();
    let campaign = tokio::spawn({
        let b = b.clone();
        async move { b.election("cron").campaign("of b").await }
    });
    a.shutdown().await;
    guarded(lead.lost()).await;
    assert!(!lead.is_valid());
    assert_eq!(lead.proclaim("x"), Err(ElectionError::Closed));
    assert!(guarded(campaign).await.unwrap().unwrap().token() > lead.token());
    assert_eq!(a.election("cron").campaign("x").await.unwrap_err(), ElectionError::Closed);
    assert!(["b", "c", "d"].contains(&&*b.leader_hint("cron").unwrap().name));
}

async fn lock(node: Node) {
    node.lock("door").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_election_requests_get_typed_errors() {
    let voterless = start("a", &[], &[]).await;
    let refused = voterless.election("cron").campaign("x").await.unwrap_err();
    assert!(refused == ElectionError::NoVoters && refused.to_string().contains("Config::voters"));
    let node = start("a", &VOTERS, &[]).await;
    assert_eq!(node.election("").campaign("x").await.unwrap_err(), ElectionError::Name { bytes: 0 });
    let long = "n".repeat(257);
    assert_eq!(node.election(long).observe().unwrap_err(), ElectionError::Name { bytes: 257 });
    let large = vec![0; 513];
    assert_eq!(node.election("x").campaign(large).await.unwrap_err(), ElectionError::Value { bytes: 513 });
    // Without a majority a campaign waits and can be dropped; `try_campaign` and `leader` return an error.
    let waited = tokio::time::timeout(Duration::from_millis(100), node.election("cron").campaign("x")).await;
    assert!(waited.is_err());
    let tried = guarded(node.election("cron").try_campaign("x")).await.unwrap_err();
    assert_eq!(tried, ElectionError::NoMajority { reached: 1, needed: 2 });
    let asked = guarded(node.election("cron").leader()).await.unwrap_err();
    assert_eq!(asked, ElectionError::NoMajority { reached: 1, needed: 2 });
    // A node with another list of voters.
    let other = start("b", &["b", "a"], &[&node]).await;
    let tried = guarded(other.election("cron").try_campaign("x")).await.unwrap_err();
    assert!(matches!(tried, ElectionError::NoMajority { needed: 2, .. }));
    for node in [&node, &other] {
        let differs = |event| matches!(event, NodeEvent::Store(ReplicaEvent::VotersDiffer { .. }));
        event(node, |event| differs(event).then_some(())).await;
    }
    let twice = builder("c", &["a", "a"], &[]).start().await.unwrap_err();
    assert!(twice.to_string().contains("voters is a"), "{twice}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voter_with_a_disk_remembers_its_promise() {
    let folder = Folder::new();
    let a = builder("a", &["a"], &[]).data_dir(folder.at("a")).start().await.unwrap();
    let lead = guarded(a.election("cron").campaign("x")).await.unwrap();
    let token = lead.token();
    a.shutdown().await;
    drop((a, lead));
    let a = builder("a", &["a"], &[]).data_dir(folder.at("a")).start().await.unwrap();
    let lead = guarded(a.election("cron").campaign("x")).await.unwrap();
    assert!(lead.token() > token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_query_without_a_majority_is_an_error() {
    let [a, b, c] = three().await;
    let lead = guarded(a.election("cron").campaign("of a")).await.unwrap();
    let mut observer = c.election("cron").observe().unwrap();
    sees(&mut observer, Some(b"of a")).await;
    assert_eq!(guarded(c.election("cron").leader()).await.unwrap().unwrap().token, lead.token());
    a.shutdown().await;
    b.shutdown().await;
    sees(&mut observer, None).await;
    // What the voters said before they left counts for a while.
    let asked = async {
        loop {
            match c.election("cron").leader().await {
                Ok(None) => tokio::task::yield_now().await,
                asked => return asked,
            }
        }
    };
    let asked = guarded(asked).await;
    assert!(matches!(asked, Err(ElectionError::NoMajority { needed: 2, .. })), "{asked:?}");
}
