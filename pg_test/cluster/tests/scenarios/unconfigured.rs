//! biha loaded but not configured: PostgreSQL behaves as if it were absent.

use anyhow::{Context, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::process::signal;
use biha_cluster_tests::run::output;
use biha_cluster_tests::scenario::run;
use rustix::process::Signal;

use crate::common::TEN_SECONDS;

#[test]
fn unconfigured_is_plain_postgres() {
    let builder = Cluster::builder().nodes(1).plain().setting("shared_preload_libraries", "biha");
    let expected = [
        expect("was terminated by signal 9", "killed by the test"),
        expect("because of crash of another server process", "killed by the test"),
    ];
    run("unconfigured_is_plain_postgres", builder, &expected, |cluster, _| {
        let node = cluster.node(1);
        let is_plain = |when: &str| -> anyhow::Result<()> {
            ensure!(!node.in_recovery()?, "{when}: in recovery");
            node.query("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)")?;
            ensure!(node.processes_titled(": biha ").is_empty(), "{when}: biha's workers run");
            for file in ["pg_biha", "standby.signal", "postgresql.biha.conf"] {
                ensure!(!node.data.join(file).exists(), "{when}: {file} is there");
            }
            Ok(())
        };
        is_plain("after the start")?;
        node.restart(StopMode::Fast)?;
        is_plain("after a restart")?;
        let pid = node.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")?;
        let mark = node.log_mark();
        signal(pid.parse()?, Signal::KILL)?;
        node.wait_log(mark, "database system is ready to accept connections", TEN_SECONDS)?;
        is_plain("after a crash of its children")?;
        node.query("ALTER SYSTEM SET primary_conninfo = 'host=nowhere'").context("nothing is guarded")?;
        node.query("ALTER SYSTEM RESET primary_conninfo")?;
        ensure!(node.timeline()? == 1, "the timeline changed");
        node.stop(StopMode::Fast)?;
        let mut single = node.program("postgres");
        single.args(["--single", "-D"]).arg(&node.data).arg("postgres");
        let single = output(&mut single)?;
        ensure!(single.status.success(), "single-user mode failed: {single:?}");
        node.start()?;
        is_plain("after single-user mode")
    });
}
