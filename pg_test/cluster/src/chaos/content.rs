//! What is in the tables in the end: the same at all nodes, and what it must be.

use anyhow::Result;

use crate::chaos::damage::SHARED_ROWS;
use crate::chaos::workload::TOTAL;
use crate::cluster::Cluster;

/// Tables that are small enough to be told.
const SMALL: [&str; 2] = ["account", "register"];
/// The table that rewinds are about, where it is there: how many rows, and how many signs. A change concerns all of them.
const SHARED: &str = "SELECT count(*) || ' rows, ' || count(DISTINCT sign(n)) || ' sign' FROM shared";

/// What is wrong with the tables of a cluster that has healed and caught up.
pub fn wrong(cluster: &Cluster) -> Result<Vec<String>> {
    let leader = cluster.leader()?;
    let mut found = Vec::new();
    let there = leader.value("SELECT to_regclass('shared') IS NOT NULL")? == "t";
    for table in SMALL.into_iter().chain(there.then_some("shared")) {
        let rows = "string_agg(t::text, ' ' ORDER BY t::text)";
        let what = if SMALL.contains(&table) { rows.to_owned() } else { format!("md5({rows})") };
        let sql = format!("SELECT {what} FROM {table} t");
        let rows_of_leader = leader.value(&sql)?;
        for node in cluster.others(leader.id) {
            found.extend(other(table, (leader.id, &rows_of_leader), (node.id, &node.value(&sql)?)));
        }
    }
    found.extend(not_so(
        "the sum of all accounts",
        &leader.value("SELECT sum(balance) FROM account")?,
        TOTAL,
    ));
    if there {
        found.extend(not_so("table shared", &leader.value(SHARED)?, format!("{SHARED_ROWS} rows, 1 sign")));
    }
    Ok(found)
}

/// That a node's rows are others than the leader's. Both by number.
fn other(table: &str, leader: (u32, &str), node: (u32, &str)) -> Option<String> {
    (leader.1 != node.1).then(|| {
        let [(leader, rows), (node, others)] = [leader, node];
        format!("table {table} of node {node} is {others}, and of the leader, node {leader}, {rows}")
    })
}

fn not_so(name: &str, is: &str, should: impl ToString) -> Option<String> {
    let should = should.to_string();
    (is != should).then(|| format!("{name} is {is} in the end, and not {should}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_rows_than_the_leaders_and_other_sums_than_at_first_are_found() {
        let rows = "(1,90) (2,110)";
        assert_eq!(other("account", (1, rows), (2, rows)), None);
        // With the same sum.
        assert!(
            other("account", (1, rows), (2, "(1,95) (2,105)")).is_some_and(|text| text.contains("node 2"))
        );
        assert_eq!(not_so("the sum", "800", 800), None);
        assert!(not_so("the sum", "790", 800).is_some());
    }
}
