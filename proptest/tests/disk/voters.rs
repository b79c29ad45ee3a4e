//! Changing the voters of real nodes, which keep the list on their disks.

use tidings::{Config, Node};
use tidings_proptest::Folder;
use tidings_proptest::nodes::{builder, guarded, ready, until};

async fn start(name: &str, seeds: &[&Node], folder: &Folder) -> Node {
    let mut config = Config::local();
    config.voters = ["a", "b", "c"].map(str::to_owned).to_vec();
    ready(builder(name, seeds).config(config).data_dir(folder.at(name))).await
}

fn voters(node: &Node) -> Vec<String> {
    let list = node.voters();
    if list.next.is_none() { list.voters } else { Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voter_is_replaced_while_a_lease_is_held() {
    let folder = Folder::new();
    let a = start("a", &[], &folder).await;
    let (b, c) = (start("b", &[&a], &folder).await, start("c", &[&a], &folder).await);
    let d = start("d", &[&a], &folder).await;
    until(|| [&a, &b, &c, &d].iter().all(|node| node.members().len() == 4)).await;
    let lead = guarded(a.election("cron").campaign("a")).await.unwrap();
    guarded(d.set_voters(["d", "b", "a"])).await.unwrap();
    until(|| [&a, &b, &c, &d].iter().all(|node| voters(node) == ["a", "b", "d"])).await;
    assert!(lead.is_valid(), "the change took the lease");
    // Both lists without c: what is decided with d and b needs the new one.
    c.shutdown().await;
    lead.resign().await;
    drop(a);
    let next = guarded(b.election("cron").campaign("b")).await.unwrap();
    assert!(next.is_valid());
    // The list is on the disks.
    for node in [b, d] {
        node.shutdown().await;
    }
    let b = start("b", &[], &folder).await;
    let d = start("d", &[&b], &folder).await;
    assert!([&b, &d].iter().all(|node| voters(node) == ["a", "b", "d"]));
    guarded(d.election("cron").campaign("d")).await.unwrap();
}
