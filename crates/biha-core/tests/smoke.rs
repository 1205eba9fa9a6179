mod sim;
use biha_core::*;
use sim::*;
#[test]
fn smoke() {
    let mut c = Cluster::new(1);
    let mut config = ClusterConfig::default();
    let n: u32 = std::env::var("N").map_or(3, |s| s.parse().unwrap());
    for id in 1..=n {
        config.members.insert(NodeId(id), Member { host: "h".into(), port: 1, biha_port: 2, mode: Mode::Regular, can_be_leader: true, can_vote: true, priority: -1, joining: false });
    }
    for id in 1..=n {
        c.add_host(NodeId(id), config.clone(), Options { autorewind: true, trust_refused: false });
        c.start(NodeId(id), None);
    }
    c.run(4000);
    if n > 1 {
        c.trace.push("--- kill 1".into());
        c.kill_postmaster(NodeId(1));
        c.run(3000);
        c.trace.push("--- boot 1".into());
        c.boot(NodeId(1));
        c.run(5000);
        c.trace.push("--- switchover to 1".into());
        for id in 1..=n { c.step(NodeId(id), Input::Command(7, Command::SetLeader(NodeId(1)))); }
        c.run(5000);
        c.trace.push("--- silent kill 1".into());
        c.kill_host(NodeId(1));
        c.run(5000);
    }
    for l in &c.trace { println!("{l}"); }
    println!("{:?}", c.checks.violations);
}
