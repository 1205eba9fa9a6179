//! The cluster's state as a table for people and as JSON for programs.

use serde_json::{Value, json};

use crate::sql::{ClusterView, Node};

/// Bytes, short.
pub fn bytes(n: i64) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Milliseconds, short.
pub fn time(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => format!("{:.0} min", ms / 60_000.0),
    }
}

/// The table, with a line on the whole cluster under it.
pub fn table(view: &ClusterView) -> String {
    let head = ["ID", "", "STATE", "ADDRESS", "TERM", "ONLINE", "LAST HEARD", "LAG", "REPLAY LAG", "NOTES"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(view.nodes.iter().map(|node| cells(view, node)));
    let mut widths = [0; 10];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let right = [true, false, false, false, true, false, true, true, true, false];
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(widths).zip(right) {
            line.push_str(&if right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text + &summary(view)
}

fn cells(view: &ClusterView, node: &Node) -> [String; 10] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let leader = view.leader == Some(node.id);
    let mut notes = Vec::new();
    if node.joining {
        notes.push("joining".to_owned());
    }
    if node.mode != "regular" {
        notes.push(node.mode.clone());
    }
    if !node.can_be_leader && node.mode == "regular" {
        notes.push("never leads".to_owned());
    }
    if let (Some("UNKNOWN"), Some(last)) = (node.state.as_deref(), &node.last_known_state) {
        notes.push(format!("was {last}"));
    }
    [
        node.id.to_string(),
        if leader { "*" } else { "" }.to_owned(),
        or_dash(node.state.clone()),
        format!("{}:{}", node.host, node.port),
        or_dash(node.term.map(|term| term.to_string())),
        if node.online { "yes" } else { "no" }.to_owned(),
        or_dash(node.since_last_hb.map(time)),
        or_dash(node.lag.map(bytes)),
        or_dash(node.replay_lag.map(bytes)),
        notes.join(", "),
    ]
}

fn summary(view: &ClusterView) -> String {
    let leader = match view.leader {
        Some(id) => format!("leader {id}"),
        None => "no leader".to_owned(),
    };
    let lossless = match view.lossless {
        Some(true) => "; lossless".to_owned(),
        Some(false) if view.lossless_why.is_empty() => "; not lossless".to_owned(),
        Some(false) => format!("; not lossless: {}", view.lossless_why),
        None => String::new(),
    };
    format!("{leader}, term {}, nquorum {}, minnodes {}{lossless}", view.term, view.nquorum, view.minnodes)
}

/// The same as JSON. Names stay; new ones may come.
pub fn json(view: &ClusterView) -> Value {
    let nodes: Vec<Value> = view
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.id,
                "host": node.host,
                "port": node.port,
                "biha_port": node.biha_port,
                "mode": node.mode,
                "leader": view.leader == Some(node.id),
                "state": node.state,
                "last_known_state": node.last_known_state,
                "term": node.term,
                "online": node.online,
                "since_last_hb_ms": node.since_last_hb,
                "connection": node.connection,
                "lag_bytes": node.lag,
                "replay_lag_bytes": node.replay_lag,
                "joining": node.joining,
                "can_be_leader": node.can_be_leader,
            })
        })
        .collect();
    json!({
        "leader_id": view.leader,
        "term": view.term,
        "writable": view.writable(),
        "nquorum": view.nquorum,
        "minnodes": view.minnodes,
        "lossless": view.lossless,
        "lossless_why": view.lossless_why,
        "nodes": nodes,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A member for tests.
    pub fn node(id: i32, state: &str) -> Node {
        Node {
            id,
            host: format!("db{id}"),
            port: 5432,
            biha_port: 5433,
            mode: "regular".to_owned(),
            joining: false,
            can_be_leader: true,
            state: Some(state.to_owned()),
            last_known_state: None,
            term: Some(7),
            online: true,
            since_last_hb: Some(120.0),
            connection: Some("ACTIVE".to_owned()),
            lag: Some(0),
            replay_lag: Some(2048),
        }
    }

    fn view() -> ClusterView {
        let mut leader = node(1, "LEADER_RW");
        (leader.since_last_hb, leader.connection, leader.lag, leader.replay_lag) = (None, None, None, None);
        let mut lost = node(3, "UNKNOWN");
        (lost.online, lost.last_known_state, lost.term) = (false, Some("FOLLOWER".to_owned()), Some(6));
        (lost.lag, lost.replay_lag, lost.since_last_hb) = (None, None, Some(65_000.0));
        ClusterView {
            leader: Some(1),
            term: 7,
            nquorum: 2,
            minnodes: 2,
            lossless: Some(false),
            lossless_why: "asynchronous".to_owned(),
            nodes: vec![leader, node(2, "FOLLOWER"), lost],
        }
    }

    #[test]
    fn the_table() {
        let expected = "\
ID     STATE      ADDRESS   TERM  ONLINE  LAST HEARD  LAG  REPLAY LAG  NOTES
 1  *  LEADER_RW  db1:5432     7  yes              -    -           -
 2     FOLLOWER   db2:5432     7  yes         120 ms  0 B      2.0 kB
 3     UNKNOWN    db3:5432     6  no          65.0 s    -           -  was FOLLOWER
leader 1, term 7, nquorum 2, minnodes 2; not lossless: asynchronous";
        assert_eq!(table(&view()), expected);
    }

    #[test]
    fn json_names_are_stable() {
        let value = json(&view());
        assert_eq!(value["leader_id"], 1);
        assert_eq!(value["writable"], true);
        assert_eq!(value["nodes"][2]["last_known_state"], "FOLLOWER");
        let mut names: Vec<_> = value["nodes"][0].as_object().expect("object").keys().cloned().collect();
        names.sort();
        let expected = "biha_port can_be_leader connection host id joining lag_bytes last_known_state leader mode \
                        online port replay_lag_bytes since_last_hb_ms state term";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!((bytes(0), bytes(1023), bytes(5 << 30)), ("0 B".into(), "1023 B".into(), "5.0 GB".into()));
        assert_eq!(
            (time(12.4), time(1500.0), time(600_000.0)),
            ("12 ms".into(), "1.5 s".into(), "10 min".into())
        );
    }
}
