//! Handing over by a user's wish (Ongaro 2014, §3.10; the number is ours: a cancelled hand-over must never let
//! an old acknowledgement open the gate, nor an old exemption elect).

use crate::command::CommandError;
use crate::config::ClusterConfig;
use crate::event::EventKind;
use crate::message::NodeState;
use crate::step::Order;
use crate::{Millis, NodeId};

use super::change::Origin;
use super::limits::not_a_member;
use super::{Node, Role, invalid};

/// A hand-over in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct HandingOver {
    pub target: NodeId,
    /// Who asked for it; `None` is the node itself.
    pub origin: Option<Origin>,
    pub phase: HandoverPhase,
    pub since: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum HandoverPhase {
    /// The target does not stream yet, as far as known; it may have begun a moment ago.
    Waiting,
    /// A checkpoint is being made; commits go on until it is done.
    Preparing,
    /// The gate is shut and the target told; it has not answered yet.
    Announced,
    /// The server is told to restart: nothing can be cancelled any more.
    Leaving,
}

impl HandingOver {
    /// The gate is shut for it.
    pub(super) fn is_announced(&self) -> bool {
        matches!(self.phase, HandoverPhase::Announced | HandoverPhase::Leaving)
    }

    pub(super) fn order(&self) -> Option<Order> {
        match self.phase {
            HandoverPhase::Preparing => Some(Order::PrepareHandover),
            HandoverPhase::Waiting | HandoverPhase::Announced => None,
            HandoverPhase::Leaving => Some(Order::Restart { rewind: None, drain: true }),
        }
    }
}

impl Node {
    pub(super) fn set_leader(&mut self, origin: Origin, target: NodeId) {
        if let Err(error) = self.may_hand_over_to(target) {
            self.finish(origin, Err(error));
            return;
        }
        if target == self.hard.node {
            self.finish(origin, Ok(()));
            return;
        }
        let since = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.handing_over =
            Some(HandingOver { target, origin: Some(origin), phase: HandoverPhase::Waiting, since });
    }

    fn may_hand_over_to(&self, target: NodeId) -> Result<(), CommandError> {
        let Role::Leader(leader) = &self.role else { return Err(CommandError::NoLeader) };
        let Some(member) = self.config.members.get(&target) else {
            return Err(not_a_member(target));
        };
        if target == self.hard.node {
            return Ok(());
        }
        if !member.is_electable() {
            return Err(invalid(
                format!("node {target} cannot become leader"),
                "It is a referee, still joining, or has can_be_leader or can_vote off.",
            ));
        }
        if leader.handing_over.is_some() || leader.change.is_some() {
            return Err(CommandError::Busy);
        }
        if !leader.is_open() {
            return Err(CommandError::Failed("the leader is not in LEADER_RW now".to_owned()));
        }
        Ok(())
    }

    /// The checkpoint is made: shut the gate and tell everybody who comes next.
    pub(super) fn handover_prepared(&mut self) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(handing) = leader.handing_over.filter(|h| !h.is_announced()) else { return };
        if !leader.is_open() || leader.ack(handing.target).is_none_or(|a| !a.streaming) {
            self.cancel_handover("the target does not stream any more, or the leader was fenced");
            return;
        }
        let Some(handing) = &mut leader.handing_over else { return };
        handing.phase = HandoverPhase::Announced;
        handing.since = now;
        leader.handover.number += 1;
        leader.handover.target = Some(handing.target);
        self.renew();
        self.beat_now();
    }

    /// The target knows: leave.
    pub(super) fn handover_acknowledged(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let number = leader.handover.number;
        let Some(handing) = leader.handing_over.filter(|h| h.phase == HandoverPhase::Announced) else {
            return;
        };
        if leader.ack(handing.target).is_none_or(|a| a.handover != number) {
            return;
        }
        let since = self.now;
        leader.handing_over = Some(HandingOver { phase: HandoverPhase::Leaving, since, ..handing });
        let cause = format!("hands over to node {}", handing.target);
        self.note(EventKind::Demoted, &cause, Vec::new());
        if let Some(origin) = handing.origin {
            self.finish(origin, Ok(()));
        }
    }

    /// A leader whose disk is sick hands over to the best of those that stream, while it can: commits would wait for
    /// that disk, and so would the checkpoint that prepares a hand-over otherwise.
    fn hand_over_if_sick(&mut self) {
        let now = self.now;
        let Role::Leader(leader) = &self.role else { return };
        if self.sick_since.is_none() || now < leader.no_handover_before || !leader.is_open() {
            return;
        }
        let streams = |id: &NodeId| leader.ack(*id).is_some_and(|ack| ack.streaming);
        let target = match leader.handing_over {
            Some(handing) => Some(handing.target).filter(|id| !handing.is_announced() && streams(id)),
            None => self.best_of(streams),
        };
        let Some(target) = target else { return };
        let Role::Leader(leader) = &mut self.role else { return };
        let origin = leader.handing_over.and_then(|handing| handing.origin);
        let phase = HandoverPhase::Preparing;
        leader.handing_over = Some(HandingOver { target, origin, phase, since: now });
        self.handover_prepared();
        // Only now: on such a disk the note may be what hangs.
        self.note(EventKind::Demoted, "a disk of the leader takes no writes", Vec::new());
    }

    /// Who holds most of the others that may lead and that pass.
    fn best_of(&self, passes: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let position = |id: &NodeId| self.peers.get(id).and_then(|peer| peer.position);
        let able = self.config.members.iter().filter(|(_, member)| member.is_electable()).map(|(id, _)| *id);
        able.filter(|id| *id != self.hard.node && passes(id))
            .max_by_key(|id| (position(id), std::cmp::Reverse(*id)))
    }

    /// A leader whose disk stays sick, and that could not hand over, gives up: where nothing reaches the disk its
    /// walsenders may hang too, so that nobody streams. It goes on where the others cannot elect without it, and where
    /// it was elected although its disk was sick: then nobody else was any better.
    fn give_up_if_sick(&mut self) {
        let Some(since) = self.sick_since else { return };
        let Role::Leader(leader) = &self.role else { return };
        let hands_over = leader.handing_over.is_some_and(|handing| handing.is_announced());
        if self.now < since + self.timeout() || hands_over || !leader.was_well || !self.dispensable() {
            return;
        }
        self.resign("a disk of the leader takes no writes, and no follower took over");
    }

    /// Could the others elect one of them, and go on, without this leader?
    fn dispensable(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let (now, timeout) = (self.now, self.timeout());
        let fit = |id: &NodeId| {
            let up = |state| {
                matches!(state, NodeState::Follower | NodeState::FollowerOffered | NodeState::Referee)
            };
            leader.ack(*id).is_some_and(|ack| now < ack.heard + timeout)
                && self.peers.get(id).is_some_and(|peer| up(peer.state))
        };
        let me = self.hard.node;
        let voters = |config: &ClusterConfig| config.voters().filter(|id| *id != me && fit(id)).count();
        let mut old = leader.change.iter().flat_map(|change| change.old_quorums(&self.config));
        let elect = |config: &ClusterConfig| voters(config) >= config.nquorum();
        let live = self.config.members.iter().filter(|(id, m)| **id != me && !m.joining && fit(id)).count();
        elect(&self.config) && old.all(elect) && live >= self.config.minnodes() && self.best_of(fit).is_some()
    }

    pub(super) fn handover_on_time(&mut self) {
        let timeout = self.timeout();
        self.hand_over_if_sick();
        self.give_up_if_sick();
        let Role::Leader(leader) = &self.role else { return };
        let Some(handing) = leader.handing_over else { return };
        let late = self.now >= handing.since + timeout / 2;
        let streams = leader.ack(handing.target).is_some_and(|a| a.streaming);
        match handing.phase {
            HandoverPhase::Waiting if streams => {
                if let Role::Leader(leader) = &mut self.role
                    && let Some(handing) = &mut leader.handing_over
                {
                    handing.phase = HandoverPhase::Preparing;
                }
            }
            HandoverPhase::Waiting if late => self.cancel_handover("the target does not stream"),
            HandoverPhase::Announced if late => self.cancel_handover("the target does not answer"),
            // The order to restart ends this process, unless whoever carries it out hangs.
            HandoverPhase::Leaving if self.now >= handing.since + timeout => {
                self.resign("the server does not stop for the hand-over");
            }
            _ => {}
        }
    }

    /// Gives a hand-over up. Acknowledgements from before it count no more: the gate opens again only on those
    /// that carry the new number.
    pub(super) fn cancel_handover(&mut self, why: &str) {
        let again = self.now + self.timeout();
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(handing) = leader.handing_over.take() else { return };
        leader.no_handover_before = again;
        if handing.is_announced() {
            leader.handover.number += 1;
            leader.handover.target = None;
            leader.forget_all();
            self.gate(0);
        }
        // A user of this very node was told when the hand-over was under way.
        if let Some(origin) = handing.origin
            && (handing.phase != HandoverPhase::Leaving || origin.node != self.hard.node)
        {
            let text = format!("the switchover was given up: {why}");
            self.finish(origin, Err(CommandError::Failed(text)));
        }
        self.renew();
        self.beat_now();
    }
}
