//! The clusters that are checked, and how much may happen to each.

use biha_core::*;

use super::happen::Turn;
use super::properties::reachable::*;
use super::scenario::{FAST, Faults, Scenario, member};
use super::state::Left;

fn left(instants: u32, faults: u8, commits: u8) -> Left {
    Left { instants, faults, commits, commands: 0 }
}

/// Three nodes and a leader that is lost.
pub fn failover() -> Scenario {
    Scenario {
        left: left(4, 2, 0),
        reaches: &[SECOND_TERM, SERVES_AGAIN, LEASE_ENDS, REWOUND],
        ..Scenario::new("failover", 3)
    }
}

/// The same, with whole nodes and links failing only, for longer.
pub fn outages() -> Scenario {
    Scenario {
        left: left(7, 2, 0),
        faults: Faults::COARSE,
        reaches: &[SECOND_TERM, THIRD_TERM, SERVES_AGAIN, LEASE_ENDS],
        ..Scenario::new("outages", 3)
    }
}

/// A follower that does not hear its leader.
pub fn cut_off() -> Scenario {
    Scenario {
        before: |turn| {
            turn.cut(NodeId(1), NodeId(2));
            turn.run_until(|turn| turn.state.host(NodeId(2)).state() == NodeState::Candidate);
        },
        left: left(1, 2, 0),
        reaches: &[LEASE_ENDS],
        ..Scenario::new("cut off", 3)
    }
}

/// The same with acknowledged commits, without leases and without stickiness.
pub fn cut_off_lossless() -> Scenario {
    Scenario {
        leases: false,
        left: left(1, 1, 1),
        reaches: &[COMMITTED],
        name: "cut off lossless",
        ..cut_off()
    }
}

/// Three nodes that start.
pub fn start() -> Scenario {
    Scenario { cold: true, left: left(2, 2, 0), reaches: &[SERVES], ..Scenario::new("start", 3) }
}

/// Acknowledged commits, without leases and without stickiness.
pub fn lossless() -> Scenario {
    Scenario {
        leases: false,
        left: left(2, 2, 1),
        reaches: &[SECOND_TERM, COMMITTED],
        ..Scenario::new("lossless", 3)
    }
}

/// The same for longer, with whole nodes and links failing only.
pub fn lossless_outages() -> Scenario {
    Scenario {
        leases: false,
        left: left(5, 1, 2),
        faults: Faults::COARSE,
        reaches: &[SECOND_TERM, COMMITTED],
        ..Scenario::new("lossless outages", 3)
    }
}

/// A switchover.
pub fn hand_over() -> Scenario {
    Scenario {
        commands: vec![Command::SetLeader(NodeId(2))],
        left: left(3, 1, 0),
        reaches: &[HAND_OVER, SECOND_TERM],
        ..Scenario::new("hand-over", 3)
    }
}

/// Four nodes, one of which is removed.
pub fn change() -> Scenario {
    Scenario {
        commands: vec![Command::RemoveNode(NodeId(4))],
        left: left(4, 1, 0),
        reaches: &[SETTLED, SECOND_TERM],
        ..Scenario::new("change", 4)
    }
}

/// Four nodes, two changes by two leaders: the first is on its leader alone, which nobody reaches while another is
/// elected. (The counterexample of 2015 to Raft's membership changes.)
pub fn two_changes() -> Scenario {
    let mut model = Scenario::new("two changes", 4);
    model.config.settings.sync_standbys = 0;
    Scenario {
        commands: vec![Command::RemoveNode(NodeId(4)), Command::RemoveNode(NodeId(3))],
        before: |turn| {
            turn.isolate(NodeId(1));
            turn.command(NodeId(1));
            turn.run_until(|turn| turn.state.host(NodeId(2)).disk.hard.voted_for == Some(NodeId(2)));
        },
        left: left(14, 1, 0),
        faults: Faults { split: true, ..Faults::NONE },
        reaches: &[SETTLED, SECOND_TERM, THIRD_TERM],
        ..model
    }
}

/// A change that one of three nodes has not heard of.
pub fn missed_change() -> Scenario {
    Scenario {
        commands: vec![Command::Set(vec![Setting::NoWalOnFollower(30_000)])],
        before: |turn| {
            turn.isolate(NodeId(3));
            turn.command(NodeId(1));
            turn.run_until(|turn| !turn.state.seen.settled.is_empty());
            turn.run_until(|turn| turn.state.host(NodeId(3)).state() == NodeState::Candidate);
        },
        left: left(3, 2, 0),
        reaches: &[SETTLED, SECOND_TERM],
        ..Scenario::new("missed change", 3)
    }
}

/// A leader that nobody reaches has written much on its timeline; the next one's acknowledged commit is on a newer
/// timeline, which ends at the same LSN.
pub fn two_tails() -> Scenario {
    Scenario {
        leases: false,
        before: |turn| {
            turn.isolate(NodeId(1));
            turn.commit(NodeId(1));
            turn.commit(NodeId(1));
            turn.run_until(|turn| turn.state.host(NodeId(3)).server.receiver == Some(NodeId(2)));
            turn.run_until(|turn| turn.state.host(NodeId(3)).server.streaming && turn.state.queue.is_empty());
            turn.commit(NodeId(2));
            turn.run_until(|turn| !turn.state.seen.acknowledged.is_empty() && turn.state.queue.is_empty());
        },
        left: left(4, 2, 0),
        faults: Faults::COARSE,
        reaches: &[SECOND_TERM, THIRD_TERM, COMMITTED],
        ..Scenario::new("two tails", 3)
    }
}

/// A switchover is announced; its target cannot answer, and thinks at once that the stream has ended.
pub fn unanswered_hand_over() -> Scenario {
    Scenario {
        impatient: true,
        rates: vec![FAST, FAST, FAST],
        commands: vec![Command::SetLeader(NodeId(2))],
        before: |turn| {
            let told = |turn: &Turn| {
                matches!(turn.state.host(NodeId(2)).order, Some((_, Order::AwaitEnd { .. }, _)))
            };
            turn.command(NodeId(1));
            turn.run_until(told);
            turn.cut(NodeId(1), NodeId(2));
            turn.state.queue.retain(|item| item.is_not_for(NodeId(1)));
        },
        left: left(1, 2, 0),
        reaches: &[SECOND_TERM],
        ..Scenario::new("unanswered hand-over", 3)
    }
}

/// A node has elected the second leader. It may come back with a copy of its state files that is so old that its
/// start number was seen before, by the first leader too, which has been started anew but reaches nobody.
pub fn put_back() -> Scenario {
    Scenario { before: |turn| third_elects_second(turn, 2), name: "put back", ..put_back_by_one() }
}

/// The copy is younger: its start number will be that of the life that elected.
pub fn put_back_by_one() -> Scenario {
    Scenario {
        before: |turn| third_elects_second(turn, 1),
        left: left(4, 2, 1),
        faults: Faults { split: true, put_back: Some(NodeId(3)), ..Faults::NONE },
        reaches: &[SECOND_TERM],
        ..Scenario::new("put back by one", 3)
    }
}

/// Node 3 has been started so many times more, as all know, and then votes for node 2; node 1 starts anew, alone.
fn third_elects_second(turn: &mut Turn, starts: u32) {
    let restart = |turn: &mut Turn, id| {
        turn.kill(id);
        turn.state.late.clear();
        turn.start(id, None);
    };
    for _ in 0..starts {
        restart(turn, NodeId(3));
        turn.run_until(|turn| turn.steady());
    }
    turn.isolate(NodeId(1));
    turn.run_until(|turn| turn.state.host(NodeId(2)).leads());
    restart(turn, NodeId(1));
    // It does not wait for others' positions any more.
    let patient_until = turn.state.now + 12;
    turn.run_until(|turn| turn.state.open_gates(turn.model) == 1 && turn.state.now > patient_until);
}

/// Two nodes and a referee.
pub fn referee() -> Scenario {
    let mut model = Scenario::new("referee", 3);
    model.config.members.insert(NodeId(3), member(Mode::Referee));
    Scenario { left: left(4, 2, 0), reaches: &[SECOND_TERM], ..model }
}

/// A controller that dies beside a server that goes on.
pub fn respawn() -> Scenario {
    Scenario {
        faults: Faults { respawn: true, late: true, ..Faults::COARSE },
        left: left(3, 2, 0),
        reaches: &[SECOND_TERM],
        ..Scenario::new("respawn", 3)
    }
}

/// The same with acknowledged commits, without leases and without stickiness. Node 3 sleeps from the beginning, so that two
/// faults are left for the others.
pub fn respawn_lossless() -> Scenario {
    Scenario {
        leases: false,
        before: |turn| turn.state.frozen = Some(NodeId(3)),
        left: left(2, 2, 1),
        reaches: &[COMMITTED],
        name: "respawn lossless",
        ..respawn()
    }
}

/// A follower that does not hear its leader, and hosts that refuse connections on behalf of living ones.
pub fn refused() -> Scenario {
    Scenario {
        name: "refused",
        faults: Faults { refuse: true, late: true, ..Faults::COARSE },
        left: left(2, 2, 0),
        reaches: &[SECOND_TERM],
        ..cut_off()
    }
}

/// A follower that does not hear its leader is elected by the third node, which may then have the old leader's ear
/// again.
pub fn change_of_sides() -> Scenario {
    Scenario {
        name: "change of sides",
        faults: Faults { split: true, ..Faults::NONE },
        left: left(14, 2, 0),
        reaches: &[SECOND_TERM, THIRD_TERM],
        ..cut_off()
    }
}

/// Somebody has promoted a server by hand that lacks an acknowledged commit.
pub fn by_hand() -> Scenario {
    Scenario {
        leases: false,
        before: |turn| {
            turn.cut(NodeId(1), NodeId(3));
            turn.commit(NodeId(1));
            turn.run_until(|turn| !turn.state.seen.acknowledged.is_empty() && turn.state.queue.is_empty());
            turn.promote_by_hand(NodeId(3));
        },
        faults: Faults { promote: true, ..Faults::COARSE },
        left: left(4, 2, 0),
        reaches: &[SECOND_TERM],
        ..Scenario::new("by hand", 3)
    }
}

/// Three nodes and two referees that have no WAL: an electing quorum can lack what two nodes acknowledged.
pub fn five_with_two_referees() -> Scenario {
    let mut model = Scenario::new("five with two referees", 5);
    for id in [4, 5] {
        model.config.members.insert(NodeId(id), member(Mode::Referee));
    }
    Scenario {
        leases: false,
        before: |turn| {
            turn.cut(NodeId(1), NodeId(3));
            turn.commit(NodeId(1));
            turn.run_until(|turn| !turn.state.seen.acknowledged.is_empty() && turn.state.queue.is_empty());
        },
        left: left(4, 1, 0),
        faults: Faults { split: true, ..Faults::NONE },
        ..model
    }
}
