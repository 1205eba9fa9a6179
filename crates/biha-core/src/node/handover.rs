//! Handing over by a user's wish (Ongaro 2014, §3.10; the number is ours: a cancelled hand-over must never let
//! an old acknowledgement open the gate, nor an old exemption elect).

use crate::command::CommandError;
use crate::event::EventKind;
use crate::step::Order;
use crate::{Millis, NodeId};

use super::change::Origin;
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
            return Err(invalid(
                format!("node {target} is not a member of the cluster"),
                "The view biha.nodes_v lists the members.",
            ));
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
        let Some(handing) = leader.handing_over else { return };
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
    /// that disk.
    fn hand_over_if_sick(&mut self) {
        let now = self.now;
        let Role::Leader(leader) = &self.role else { return };
        let free = leader.handing_over.is_none() && now >= leader.no_handover_before;
        if !self.server.sick || !free || !leader.is_open() {
            return;
        }
        let candidates = self.config.members.iter().filter(|(id, member)| {
            **id != self.hard.node
                && member.is_electable()
                && leader.ack(**id).is_some_and(|ack| ack.streaming)
        });
        let position = |id: &NodeId| self.peers.get(id).and_then(|peer| peer.position);
        let Some(target) =
            candidates.map(|(id, _)| *id).max_by_key(|id| (position(id), std::cmp::Reverse(*id)))
        else {
            return;
        };
        self.note(EventKind::Demoted, "a disk of the leader takes no writes", Vec::new());
        let Role::Leader(leader) = &mut self.role else { return };
        // Without the checkpoint that prepares it: that would wait for the disk.
        let phase = HandoverPhase::Preparing;
        leader.handing_over = Some(HandingOver { target, origin: None, phase, since: now });
        self.handover_prepared();
    }

    pub(super) fn handover_on_time(&mut self) {
        let timeout = self.timeout();
        self.hand_over_if_sick();
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
