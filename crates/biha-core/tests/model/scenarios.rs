//! The clusters that are checked, and how much may happen to each.

use biha_core::*;

use super::properties::reachable::*;
use super::scenario::{Faults, Scenario, member};
use super::state::Left;

fn left(instants: u32, faults: u8, commits: u8) -> Left {
    Left { instants, faults, commits, commands: 0 }
}

/// Three nodes and a leader that is lost.
pub fn failover() -> Scenario {
    Scenario {
        left: left(6, 2, 0),
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
        left: left(1, 2, 1),
        reaches: &[COMMITTED],
        name: "cut off lossless",
        ..cut_off()
    }
}

/// Three nodes that start.
pub fn start() -> Scenario {
    Scenario { cold: true, left: left(4, 2, 0), reaches: &[], ..Scenario::new("start", 3) }
}

/// Acknowledged commits, without leases and without stickiness.
pub fn lossless() -> Scenario {
    Scenario {
        leases: false,
        left: left(4, 2, 1),
        reaches: &[SECOND_TERM, COMMITTED],
        ..Scenario::new("lossless", 3)
    }
}

/// The same over three terms, with whole nodes and links failing only.
pub fn lossless_outages() -> Scenario {
    Scenario {
        leases: false,
        left: left(7, 3, 2),
        faults: Faults::COARSE,
        reaches: &[THIRD_TERM, COMMITTED],
        ..Scenario::new("lossless outages", 3)
    }
}

/// A switchover.
pub fn hand_over() -> Scenario {
    Scenario {
        commands: vec![Command::SetLeader(NodeId(2))],
        left: left(3, 2, 0),
        reaches: &[HAND_OVER, SECOND_TERM],
        ..Scenario::new("hand-over", 3)
    }
}

/// A switchover whose target takes a timeout for the end of the stream.
pub fn impatient_hand_over() -> Scenario {
    Scenario { name: "impatient hand-over", impatient: true, reaches: &[HAND_OVER], ..hand_over() }
}

/// Four nodes, one of which is removed.
pub fn change() -> Scenario {
    Scenario {
        commands: vec![Command::RemoveNode(NodeId(4))],
        left: left(4, 2, 0),
        reaches: &[SETTLED, SECOND_TERM],
        ..Scenario::new("change", 4)
    }
}

/// Four nodes, two changes by two leaders.
pub fn two_changes() -> Scenario {
    Scenario {
        commands: vec![Command::RemoveNode(NodeId(4)), Command::RemoveNode(NodeId(3))],
        left: left(6, 3, 0),
        faults: Faults { isolate: true, split: true, ..Faults::NONE },
        reaches: &[SETTLED, SECOND_TERM],
        ..Scenario::new("two changes", 4)
    }
}

/// Two nodes and a referee.
pub fn referee() -> Scenario {
    let mut model = Scenario::new("referee", 3);
    model.config.members.insert(NodeId(3), member(Mode::Referee));
    Scenario { left: left(5, 2, 0), reaches: &[SECOND_TERM], ..model }
}

/// A controller that dies beside a server that goes on.
pub fn respawn() -> Scenario {
    Scenario {
        faults: Faults { respawn: true, late: true, ..Faults::COARSE },
        left: left(5, 2, 0),
        reaches: &[SECOND_TERM],
        ..Scenario::new("respawn", 3)
    }
}

/// The same with acknowledged commits, without leases and without stickiness.
pub fn respawn_lossless() -> Scenario {
    Scenario {
        leases: false,
        left: left(3, 2, 1),
        reaches: &[COMMITTED],
        name: "respawn lossless",
        ..respawn()
    }
}

/// Hosts that refuse connections on behalf of living ones.
pub fn refused() -> Scenario {
    Scenario {
        faults: Faults { refuse: true, ..Faults::COARSE },
        left: left(5, 3, 0),
        reaches: &[SECOND_TERM],
        ..Scenario::new("refused", 3)
    }
}

/// Servers that somebody promotes by hand.
pub fn by_hand() -> Scenario {
    Scenario {
        leases: false,
        faults: Faults { promote: true, ..Faults::COARSE },
        left: left(6, 3, 1),
        reaches: &[SECOND_TERM, COMMITTED],
        ..Scenario::new("by hand", 3)
    }
}

pub fn all() -> Vec<Scenario> {
    vec![
        failover(),
        outages(),
        cut_off(),
        cut_off_lossless(),
        respawn_lossless(),
        start(),
        lossless(),
        lossless_outages(),
        hand_over(),
        impatient_hand_over(),
        change(),
        two_changes(),
        referee(),
        respawn(),
        refused(),
        by_hand(),
    ]
}
