//! The model as the checker sees it: which actions there are, and what each leads to.

use biha_core::*;
use stateright::{Model, Property};

use super::happen::Turn;
use super::host::Mode;
use super::properties;
use super::scenario::Scenario;
use super::state::{Action, Item, State};

/// Outputs of one step after which a crash is tried.
const CRASH_POINTS: usize = 16;

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.beginning()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let time_left = state.left.instants > 0;
        let head = state.head();
        if head.is_some() || time_left {
            actions.push(Action::Next);
        }
        for (at, item) in state.late.iter().enumerate() {
            let again = at > 0 && state.late[at - 1] == *item;
            // A host comes back when nothing else is under way: whatever is, may be late.
            let starts = matches!(item, Item::Start(..));
            if !again && (head.is_none() || !starts) {
                actions.push(Action::Release(at));
            }
        }
        // To everything else it makes no difference whether a commit comes before it or after it.
        let agents = head.is_none_or(|at| matches!(state.queue[at], Item::Done(..) | Item::Start(..)));
        if state.left.commits > 0 && agents {
            let takes = |id: NodeId| self.takes_commits(state, id);
            actions.extend(state.ids().into_iter().filter(|id| takes(*id)).map(Action::Commit));
        }
        if head.is_none() {
            self.between(state, actions);
        }
        if state.left.faults > 0 {
            self.disturb(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut turn = Turn::new(self, last.clone());
        if action.is_fault() {
            turn.state.left.faults -= 1;
        }
        match action {
            Action::Next => turn.next(),
            Action::Hold => {
                let item = turn.state.take_head()?;
                turn.state.hold(item);
            }
            Action::Twice => {
                let item = turn.state.take_head()?;
                turn.state.hold(item.clone());
                turn.happen(item);
            }
            Action::Crash(outputs) => {
                let item = turn.state.take_head()?;
                return turn.crash(item, outputs);
            }
            Action::Release(at) => {
                let item = turn.state.late.remove(at);
                turn.happen(item);
            }
            Action::Early => turn.time_passes(),
            Action::Kill(id) => turn.kill(id),
            Action::Isolate(id) => turn.isolate(id),
            Action::Part(a, b) => turn.cut(a, b),
            Action::Freeze(id) => turn.state.frozen = Some(id),
            Action::Thaw => turn.state.frozen = None,
            Action::Heal => turn.heal(),
            Action::Commit(id) => turn.commit(id),
            Action::Command(id) => turn.command(id),
            Action::Refuse(at, peer) => {
                turn.step(at, Input::Disconnected(peer, Disconnect::Closed));
                turn.step(at, Input::Disconnected(peer, Disconnect::Refused));
            }
            Action::Split(set) => {
                turn.state.cut.clear();
                let inside = |id: NodeId| set & (1 << id.0) != 0;
                for (a, b) in pairs(&turn.state) {
                    if inside(a) != inside(b) {
                        turn.cut(a, b);
                    }
                }
            }
            Action::Respawn(id) => turn.respawn(id),
            Action::Promote(id) => turn.promote_by_hand(id),
            Action::PutBack(id) => turn.put_back(id),
        }
        Some(turn.state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}

impl Action {
    fn is_fault(&self) -> bool {
        match self {
            Action::Next | Action::Release(_) | Action::Heal | Action::Thaw => false,
            Action::Commit(_) | Action::Command(_) => false,
            Action::Hold | Action::Twice | Action::Crash(_) | Action::Early => true,
            Action::Kill(_) | Action::Freeze(_) => true,
            Action::Isolate(_) | Action::Part(..) | Action::Split(_) | Action::Refuse(..) => true,
            Action::Respawn(_) | Action::Promote(_) | Action::PutBack(_) => true,
        }
    }
}

impl Scenario {
    fn takes_commits(&self, state: &State, id: NodeId) -> bool {
        let serves = state.host(id).server.mode == Mode::Production && state.frozen != Some(id);
        serves && (!self.leases || state.gate_open(self, id))
    }

    /// What is free and happens when nothing else is under way.
    fn between(&self, state: &State, actions: &mut Vec<Action>) {
        if self.faults.heal && !state.cut.is_empty() {
            actions.push(Action::Heal);
        }
        if state.frozen.is_some() {
            actions.push(Action::Thaw);
        }
        if state.left.commands > 0 {
            let leaders = state.hosts.iter().filter(|h| h.leads() && state.frozen != Some(h.id));
            actions.extend(leaders.map(|h| Action::Command(h.id)));
        }
    }

    /// Faults.
    fn disturb(&self, state: &State, actions: &mut Vec<Action>) {
        let may = self.faults;
        if may.split {
            // Each split once: node 1 is always on the one side.
            actions.extend((1..1u8 << (state.hosts.len() - 1)).map(|rest| Action::Split(rest << 2)));
        }
        if let Some(head) = state.head().map(|at| &state.queue[at]) {
            let message = matches!(head, Item::Deliver(..));
            if may.late {
                actions.push(Action::Hold);
            }
            if may.twice && message {
                actions.push(Action::Twice);
            }
            if may.crash && !matches!(head, Item::Start(..)) {
                actions.extend((1..=CRASH_POINTS).map(Action::Crash));
            }
            if may.early && state.left.instants > 0 {
                actions.push(Action::Early);
            }
            return;
        }
        let up = || state.hosts.iter().filter(|h| h.node.is_some() && state.frozen != Some(h.id));
        if may.kill {
            actions.extend(up().map(|h| Action::Kill(h.id)));
        }
        if may.isolate && state.cut.is_empty() {
            actions.extend(state.ids().into_iter().map(Action::Isolate));
        }
        if may.part && state.cut.is_empty() {
            actions.extend(pairs(state).filter(|(a, b)| a < b).map(|(a, b)| Action::Part(a, b)));
        }
        if may.freeze && state.frozen.is_none() {
            actions.extend(up().map(|h| Action::Freeze(h.id)));
        }
        if may.refuse {
            actions.extend(pairs(state).map(|(a, b)| Action::Refuse(a, b)));
        }
        if may.respawn {
            actions.extend(up().filter(|h| h.server.mode == Mode::Production).map(|h| Action::Respawn(h.id)));
        }
        if may.promote {
            actions.extend(up().filter(|h| h.server.mode == Mode::Standby).map(|h| Action::Promote(h.id)));
        }
        actions.extend(up().filter(|h| may.put_back == Some(h.id)).map(|h| Action::PutBack(h.id)));
    }
}

/// All ordered pairs of two nodes.
fn pairs(state: &State) -> impl Iterator<Item = (NodeId, NodeId)> + use<> {
    let ids = state.ids();
    let others = ids.clone();
    ids.into_iter().flat_map(move |a| others.clone().into_iter().map(move |b| (a, b))).filter(|(a, b)| a != b)
}
