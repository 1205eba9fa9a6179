//! The order of candidates: who stands first, so that votes are hardly ever split.

use crate::message::VoteRequest;
use crate::{Millis, NodeId, Position};

use super::elect::Cause;
use super::{Node, Role};

/// Election timeouts that a node whose disk is sick leaves to the others.
const SICK_PATIENCE: Millis = 3;

impl Node {
    /// This node's place in the order of candidates, as a delay in ms: best position first, then priority,
    /// then number, a beat apart, with jitter for all but the first. A node whose disk is sick comes long after all
    /// others, but it comes: they may have disks as sick, or hold less.
    pub(super) fn turn(&mut self) -> Millis {
        let mine = self.place(self.hard.node, self.position());
        let gone = self.heard.as_ref().filter(|h| h.dead.is_some()).map(|h| h.id);
        let before = self
            .config
            .members
            .iter()
            .filter(|(id, m)| m.is_electable() && **id != self.hard.node && Some(**id) != gone)
            .filter(|(id, _)| {
                self.peers.get(*id).is_some_and(|p| !p.closed || p.heard.is_some())
                    && self.place(**id, self.peers.get(*id).and_then(|p| p.position)) < mine
            })
            .count() as Millis;
        let priority = self.me().map_or(0, |m| Millis::try_from(m.priority).unwrap_or(0));
        let jitter = if before == 0 { 0 } else { self.random(self.beat() / 2) };
        let others = self.config.members.iter().any(|(id, m)| m.is_electable() && *id != self.hard.node);
        let sick = if self.server.sick && others { SICK_PATIENCE * self.timeout() } else { 0 };
        before * self.beat() + jitter + priority + sick
    }

    fn place(
        &self,
        id: NodeId,
        position: Option<Position>,
    ) -> (std::cmp::Reverse<Option<Position>>, i64, NodeId) {
        let priority = self.config.members.get(&id).map_or(-1, |m| m.priority);
        let priority = if priority < 0 { i64::MAX } else { i64::from(priority) };
        (std::cmp::Reverse(position), priority, id)
    }

    /// Does this node's own candidacy come before the asker's? Only for one election timeout from when all may speak, and
    /// not while it waits for nodes that may never come: whoever cannot win must not keep others from it. Where the old
    /// leader's vote is needed after a hand-over, the one it chose waits until that has been restarted and may speak.
    pub(super) fn outranks(&self, asker: NodeId, request: &VoteRequest) -> bool {
        let Role::Candidate(candidate) = &self.role else { return false };
        let (_, answered) = self.voters_who_answered();
        let waits = candidate.cause == Cause::Startup && answered < self.config.voters().count();
        let chosen = matches!(candidate.cause, Cause::Handover(_));
        let patience = match (waits, chosen) {
            (true, _) => self.election_wait(),
            (false, true) => 2 * self.timeout() + self.hard.longest_promise,
            (false, false) => self.timeout(),
        };
        let first = match chosen {
            true => self.position() >= Some(request.position),
            false => self.place(self.hard.node, self.position()) < self.place(asker, Some(request.position)),
        };
        self.now < candidate.hushed + patience && request.handover.is_none() && first
    }
}
