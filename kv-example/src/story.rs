//! `tidings story`: five simulated nodes tell what happens to them.

use std::time::Duration;

use tidings::WriteError;
use tidings::sim::Sim;

/// Tells the whole story.
pub(crate) fn tell(seed: u64) -> Result<(), WriteError> {
    println!("Five nodes, one store, links that lose 5 % of their packets. Seed {seed}.\n");
    let mut sim = Sim::new(seed).nodes_with_disk(5).loss(0.05);
    spread(&mut sim)?;
    split(&mut sim)?;
    merge(&mut sim);
    crash(&mut sim)?;
    sim.assert_converged();
    println!("\n{:>8.3} s  all five hold the same, bit for bit: {:x}", time(&sim), sim.node(0).status().root);
    Ok(())
}

fn time(sim: &Sim) -> f64 {
    sim.now().as_secs_f64()
}

fn say(sim: &Sim, what: &str) {
    println!("{:>8.3} s  {what}", time(sim));
}

fn show(sim: &mut Sim, key: &str) {
    let value = |sim: &mut Sim, i| match sim.node(i).get(key) {
        Some(entry) => String::from_utf8_lossy(entry.value()).into_owned(),
        None => "-".to_owned(),
    };
    let values: Vec<String> = (0..sim.len()).map(|i| value(sim, i)).collect();
    println!("            {key} on the nodes: {}", values.join("  "));
}

fn spread(sim: &mut Sim) -> Result<(), WriteError> {
    sim.run_for(Duration::from_millis(100));
    sim.node(0).put("limits/max", "100")?;
    sim.node(3).put("greeting", "hello")?;
    sim.node(1).set("banned").add("mallory")?;
    say(sim, "node 0 puts limits/max = 100");
    while sim.node(4).get("limits/max").is_none() && sim.now() < Duration::from_secs(5) {
        sim.run_for(Duration::from_micros(100));
    }
    say(sim, "node 4 has it");
    show(sim, "limits/max");
    Ok(())
}

fn split(sim: &mut Sim) -> Result<(), WriteError> {
    sim.run_for(Duration::from_millis(500));
    sim.partition(&[0, 1], &[2, 3, 4]);
    say(sim, "the network splits: nodes 0 and 1 here, nodes 2, 3 and 4 there");
    sim.node(0).put("limits/max", "200")?;
    sim.node(4).put("limits/max", "300")?;
    sim.node(2).delete("greeting")?;
    sim.node(1).set("banned").add("trudy")?;
    sim.node(3).set("banned").remove("mallory")?;
    for i in [0, 4] {
        sim.node(i).counter("logins").add(3)?;
    }
    sim.run_for(Duration::from_secs(2));
    say(sim, "both sides went on writing");
    show(sim, "limits/max");
    show(sim, "greeting");
    Ok(())
}

fn merge(sim: &mut Sim) {
    sim.heal();
    say(sim, "the network heals");
    sim.assert_converged();
    say(sim, "all nodes agree again");
    show(sim, "limits/max");
    show(sim, "greeting");
    if let Some(entry) = sim.node(1).get("limits/max") {
        let losers: Vec<String> =
            entry.conflicts().map(|entry| String::from_utf8_lossy(entry.value()).into_owned()).collect();
        println!(
            "            the last writer won; beside it stands, until the next write: {}",
            losers.join(", ")
        );
    }
    let banned: Vec<String> = sim.node(0).set("banned").iter().collect();
    println!("            banned: {}; logins: {}", banned.join(", "), sim.node(2).counter("logins").value());
}

fn crash(sim: &mut Sim) -> Result<(), WriteError> {
    sim.crash(2);
    say(sim, "node 2 crashes");
    sim.node(0).put("limits/max", "400")?;
    sim.run_for(Duration::from_secs(3));
    sim.restart(2);
    say(sim, "node 2 comes back with its disk, as a new run");
    sim.assert_converged();
    say(sim, "node 2 has caught up; what was deleted stays deleted");
    show(sim, "limits/max");
    show(sim, "greeting");
    Ok(())
}
