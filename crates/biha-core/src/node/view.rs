//! What a node shows of itself and of the cluster.

use crate::config::Mode;
use crate::message::NodeState;
use crate::{Millis, NodeId, Position, Term};

use super::{Node, Role, Wal};

/// A member, as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// The member.
    pub id: NodeId,
    /// What it is now; UNKNOWN if not heard within the election timeout.
    pub state: NodeState,
    /// What it was when last heard.
    pub last_known: NodeState,
    /// Heard within the election timeout.
    pub online: bool,
    /// How long ago it was heard, in ms; `None` for the node itself, and where it never was.
    pub since_heard: Option<Millis>,
    /// End of its WAL as it last said.
    pub position: Option<Position>,
}

/// The cluster, as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The node's term.
    pub term: Term,
    /// The leader it knows and believes alive.
    pub leader: Option<NodeId>,
    /// Its own state.
    pub state: NodeState,
    /// It leads, and a commit that finds the gate shut may wait for it to open.
    pub worth_waiting: bool,
    /// It leads, and is handing over to this member: its gate is shut for that.
    pub hands_over_to: Option<NodeId>,
    /// All members, itself included.
    pub members: Vec<MemberView>,
    /// The members whose flush a synchronous commit may count.
    pub synchronous: Vec<NodeId>,
}

impl Node {
    /// Does this leader wait for a change of the configuration to be settled?
    pub fn is_changing(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.change.is_some())
    }

    /// This node's own state.
    pub fn state(&self) -> NodeState {
        if self.hard.error.is_some() {
            return NodeState::NodeError;
        }
        match &self.role {
            Role::Leader(leader) if leader.is_open() => return NodeState::LeaderRw,
            Role::Leader(_) => return NodeState::LeaderRo,
            Role::Candidate(_) => return NodeState::Candidate,
            Role::Follower(_) => {}
        }
        if self.me().is_some_and(|m| m.mode == Mode::Referee) {
            return NodeState::Referee;
        }
        match (self.wal, &self.heard) {
            (Wal::Unknown, _) if self.server == Default::default() => NodeState::PreStartup,
            (Wal::Unknown, _) => NodeState::Startup,
            (Wal::Receiving { .. }, _) => NodeState::Follower,
            (Wal::Stopped { .. }, Some(_)) => NodeState::FollowerOffered,
            (Wal::Stopped { .. }, None) => NodeState::Forming,
        }
    }

    /// The cluster as this node sees it now.
    pub fn view(&self) -> View {
        let leader = match &self.role {
            Role::Leader(_) => Some(self.hard.node),
            Role::Candidate(_) => None,
            Role::Follower(_) => self.heard.as_ref().filter(|h| h.dead.is_none()).map(|h| h.id),
        };
        let members = self.config.members.keys().map(|id| self.member_view(*id)).collect();
        let leading = match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        };
        let worth_waiting =
            leading.is_some_and(|leader| leader.is_worth_waiting_for(self.now, self.timeout()));
        let handing_over = leading.and_then(|leader| leader.handing_over).filter(|h| h.is_announced());
        let hands_over_to = handing_over.map(|handing| handing.target);
        let (term, state, synchronous) = (self.hard.term, self.state(), self.synchronous());
        View { term, leader, state, worth_waiting, hands_over_to, members, synchronous }
    }

    fn member_view(&self, id: NodeId) -> MemberView {
        if id == self.hard.node {
            let state = self.state();
            let position = self.position();
            return MemberView { id, state, last_known: state, online: true, since_heard: None, position };
        }
        let peer = self.peers.get(&id);
        let since_heard = peer.and_then(|p| p.heard).map(|at| self.now.saturating_sub(at));
        let online = since_heard.is_some_and(|ms| ms < self.timeout());
        let last_known = peer.map_or(NodeState::Unknown, |p| p.state);
        MemberView {
            id,
            state: if online { last_known } else { NodeState::Unknown },
            last_known,
            online,
            since_heard,
            position: peer.and_then(|p| p.position),
        }
    }
}
