//! The cluster as one of its members tells it.

use anyhow::{Context, Result};
use postgres::Client;

use super::Login;

/// One member.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its number.
    pub id: i32,
    /// Where it is reached.
    pub host: String,
    /// Port of its server.
    pub port: u16,
    /// Port of its control channel.
    pub biha_port: u16,
    /// regular, referee or referee_with_wal.
    pub mode: String,
    /// Added, and not yet seen streaming.
    pub joining: bool,
    /// May it lead?
    pub can_be_leader: bool,
    /// Its state; `None` if the member asked does not know of one.
    pub state: Option<String>,
    /// Its state before it fell silent.
    pub last_known_state: Option<String>,
    /// The newest term known of it.
    pub term: Option<i64>,
    /// Is it heard from?
    pub online: bool,
    /// Milliseconds since it was last heard from; `None` for the member asked.
    pub since_last_hb: Option<f64>,
    /// State of the control connection to it; `None` for the member asked.
    pub connection: Option<String>,
    /// Bytes of the leader's WAL that it has not on disk; `None` if not known.
    pub lag: Option<i64>,
    /// Bytes of the leader's WAL that it has not replayed; `None` if not known.
    pub replay_lag: Option<i64>,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ClusterView {
    /// The leader, if one is known.
    pub leader: Option<i32>,
    /// The highest term of any member.
    pub term: i64,
    /// Votes that elect a leader.
    pub nquorum: i32,
    /// Running nodes that the leader needs to take writes.
    pub minnodes: i32,
    /// Does every later leader have every acknowledged commit?
    pub lossless: Option<bool>,
    /// Why, or why not.
    pub lossless_why: String,
    /// The members by number.
    pub nodes: Vec<Node>,
}

impl ClusterView {
    /// A member.
    pub fn node(&self, id: i32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The leader.
    pub fn leader(&self) -> Option<&Node> {
        self.node(self.leader?)
    }

    /// Is there a leader that takes writes?
    pub fn writable(&self) -> bool {
        self.leader().is_some_and(|node| node.state.as_deref() == Some("LEADER_RW"))
    }
}

const QUERY: &str = "\
SELECT c.id::int, c.host::text, c.port::int, c.biha_port::int, c.mode::text, c.joining, c.can_be_leader,
       s.state::text, s.last_known_state::text, s.term::bigint, coalesce(s.online, false),
       (extract(epoch FROM s.since_last_hb) * 1000)::float8, n.state::text,
       s.leader_id::int, c.nquorum::int, c.minnodes::int, c.lossless, coalesce(c.lossless_why, '')::text
FROM biha.config() c
     LEFT JOIN biha.status_v s ON s.id = c.id
     LEFT JOIN biha.nodes_v n ON n.id = c.id
ORDER BY c.id";

const LAG: &str = "\
SELECT application_name::text, pg_wal_lsn_diff(now, flush_lsn)::bigint, pg_wal_lsn_diff(now, replay_lsn)::bigint
FROM pg_stat_replication, pg_current_wal_lsn() now
WHERE application_name LIKE 'biha\\_node\\_%' AND state = 'streaming'";

/// Asks the member behind `client`. Lags come from the leader: if that is another one, it is asked with the
/// same user, and if it does not answer they stay unknown.
pub fn look(client: &mut Client, login: &Login) -> Result<ClusterView> {
    let mut view = read(client)?;
    let standby: bool = client.query_one("SELECT pg_is_in_recovery()", &[])?.get(0);
    if !standby {
        fill_lags(&mut view, client)?;
    } else if let Some(leader) = view.leader()
        && let Ok(mut client) = login.at(&leader.host, leader.port).connect()
    {
        // It may have just ceased to lead.
        let _ = fill_lags(&mut view, &mut client);
    }
    Ok(view)
}

fn read(client: &mut Client) -> Result<ClusterView> {
    let rows = client.query(QUERY, &[]).map_err(|e| anyhow::Error::msg(super::describe(&e)));
    let rows = rows.context("could not read the state of the cluster")?;
    let mut view = ClusterView::default();
    for row in &rows {
        let port = |n: usize| u16::try_from(row.get::<_, i32>(n)).unwrap_or(0);
        view.nodes.push(Node {
            id: row.get(0),
            host: row.get(1),
            port: port(2),
            biha_port: port(3),
            mode: row.get(4),
            joining: row.get(5),
            can_be_leader: row.get(6),
            state: row.get(7),
            last_known_state: row.get(8),
            term: row.get(9),
            online: row.get(10),
            since_last_hb: row.get(11),
            connection: row.get(12),
            lag: None,
            replay_lag: None,
        });
        view.term = view.term.max(row.get::<_, Option<i64>>(9).unwrap_or(0));
        view.leader = view.leader.or(row.get::<_, Option<i32>>(13).filter(|id| *id > 0));
        (view.nquorum, view.minnodes) = (row.get(14), row.get(15));
        (view.lossless, view.lossless_why) = (row.get(16), row.get(17));
    }
    Ok(view)
}

fn fill_lags(view: &mut ClusterView, client: &mut Client) -> Result<()> {
    for row in client.query(LAG, &[])? {
        let name: String = row.get(0);
        let id = name.strip_prefix("biha_node_").and_then(|id| id.parse::<i32>().ok());
        if let Some(node) = view.nodes.iter_mut().find(|node| Some(node.id) == id) {
            (node.lag, node.replay_lag) = (row.get(1), row.get(2));
        }
    }
    Ok(())
}

/// Connects to the leader, asking any member where it is. `None` if that member hears of none.
pub fn leader_of(login: &Login) -> Result<Option<(Client, ClusterView)>> {
    let mut client = login.connect()?;
    let view = look(&mut client, login)?;
    let Some(leader) = view.leader().filter(|leader| leader.online) else { return Ok(None) };
    let standby: bool = client.query_one("SELECT pg_is_in_recovery()", &[])?.get(0);
    if standby {
        client = login.at(&leader.host, leader.port).connect()?;
    }
    Ok(Some((client, view)))
}
