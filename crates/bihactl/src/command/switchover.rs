//! `bihactl switchover`.

use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;

use super::connect;
use crate::cli::Switchover;
use crate::interrupt;
use crate::outcome::refused;
use crate::render;
use crate::sql::{ClusterView, Login, Node, describe, is_loss, leader_of, look};
use crate::ui;

/// How often the new leader is looked for.
const POLL: Duration = Duration::from_millis(20);

/// Asks for the hand-over and waits for its end.
pub fn run(args: &Switchover) -> Result<()> {
    let login = connect::login(&args.connect)?;
    let (mut client, view) = leader_of(&login)?.ok_or_else(|| refused("the cluster has no leader now"))?;
    let Some(target) = target(&view, args.to)? else {
        ui::say(&format!("node {} is the leader already", args.to.unwrap_or_default()));
        return Ok(());
    };
    let old = view.leader.unwrap_or_default();
    ui::say(&format!("handing over from node {old} to node {} ({}:{})", target.id, target.host, target.port));
    if args.dry_run {
        return Ok(());
    }
    let start = Instant::now();
    request(&mut client, target.id)?;
    wait(&login, &view, target, start, Duration::from_secs(args.timeout))?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    ui::result(&format!("node {} is the leader and takes writes after {}", target.id, render::time(ms)));
    Ok(())
}

/// Whom to make the leader; `None` if it leads already. Without a wish: the running follower with the least
/// lag, then the lowest number.
pub fn target(view: &ClusterView, to: Option<u32>) -> Result<Option<&Node>> {
    let Some(to) = to else {
        let fit = |node: &&Node| {
            node.online
                && node.can_be_leader
                && !node.joining
                && node.mode == "regular"
                && node.state.as_deref() == Some("FOLLOWER")
                && Some(node.id) != view.leader
        };
        let best = view.nodes.iter().filter(fit).min_by_key(|node| (node.lag.unwrap_or(i64::MAX), node.id));
        return best.map(Some).ok_or_else(|| refused("there is no follower that could lead now"));
    };
    let id = i32::try_from(to)?;
    let node = view.node(id).ok_or_else(|| refused(format!("node {to} is not a member of the cluster")))?;
    if view.leader == Some(id) {
        return Ok(None);
    }
    if !node.online {
        return Err(refused(format!("node {to} is not online")));
    }
    Ok(Some(node))
}

/// The leader restarts as a follower, so the connection may end before the answer: then the outcome is
/// waited for.
fn request(client: &mut Client, id: i32) -> Result<()> {
    match client.execute("SELECT biha.set_leader($1)", &[&id]) {
        Ok(_) => Ok(()),
        Err(e) if is_loss(&e) => Ok(()),
        Err(e) => Err(refused(describe(&e))),
    }
}

fn wait(login: &Login, before: &ClusterView, target: &Node, start: Instant, limit: Duration) -> Result<()> {
    // The target first, then whatever answers.
    let mut hosts = vec![(target.host.clone(), target.port)];
    hosts.extend(login.hosts.iter().cloned());
    let login = Login { hosts, ..login.clone() };
    let mut client: Option<Client> = None;
    let mut last = before.clone();
    while start.elapsed() < limit {
        if client.as_ref().is_none_or(Client::is_closed) {
            client = login.connect().ok();
        }
        match client.as_mut().map(|client| look(client, &login)) {
            Some(Ok(view)) => {
                if view.writable() && view.leader == Some(target.id) {
                    return Ok(());
                }
                if view.writable() && view.term > before.term {
                    let id = view.leader.unwrap_or_default();
                    return Err(refused(format!(
                        "node {id} became the leader instead of node {}",
                        target.id
                    )));
                }
                last = view;
            }
            Some(Err(_)) => client = None,
            None => {}
        }
        interrupt::pause(POLL)?;
    }
    Err(refused(format!(
        "node {} did not take over within {} s; the cluster is now:\n{}",
        target.id,
        limit.as_secs(),
        render::table(&last)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::exit_status;
    use crate::render::tests::node;

    fn view() -> ClusterView {
        let mut nodes =
            vec![node(1, "LEADER_RW"), node(2, "FOLLOWER"), node(3, "FOLLOWER"), node(4, "FOLLOWER")];
        nodes[1].lag = Some(500);
        nodes[2].lag = Some(10);
        nodes[3].lag = None;
        ClusterView { leader: Some(1), nodes, ..ClusterView::default() }
    }

    #[test]
    fn the_best_follower_is_taken() {
        let mut view = view();
        let id = |view: &ClusterView| target(view, None).expect("found").expect("not leader").id;
        assert_eq!(id(&view), 3);
        view.nodes[2].online = false;
        assert_eq!(id(&view), 2);
        view.nodes[1].can_be_leader = false;
        assert_eq!(id(&view), 4);
        view.nodes[3].joining = true;
        assert_eq!(exit_status(&target(&view, None).expect_err("nobody")), 1);
    }

    #[test]
    fn a_wish_is_checked() {
        let mut view = view();
        assert_eq!(target(&view, Some(4)).expect("found").expect("not leader").id, 4);
        assert!(target(&view, Some(1)).expect("is leader").is_none());
        assert!(target(&view, Some(9)).is_err());
        view.nodes[3].online = false;
        assert!(target(&view, Some(4)).is_err());
    }
}
