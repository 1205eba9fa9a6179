//! Orders to the server: what it should be doing, against what it was last told.

use crate::event::EventKind;
use crate::hardstate::{Hindrance, NodeErrorKind, PromotionIntent, RewindState, TimelineEntry};
use crate::step::{Order, OrderId, OrderResult, Output};
use crate::{Lsn, Position, Timeline};

use super::{Node, Outstanding, Role, Wal};

/// How long to wait after an order that failed, in ms.
const RETRY_AFTER_FAILURE: u64 = 1000;

impl Node {
    /// The last act of every step, and the only place that gives orders.
    pub(super) fn drive(&mut self) {
        if self.restarting || self.now < self.no_order_before {
            return;
        }
        if self.order.as_ref().is_some_and(|outstanding| !outstanding.order.may_be_replaced()) {
            return;
        }
        let Some(order) = self.wanted() else { return };
        let goes_on = |o: &Outstanding| std::mem::discriminant(&o.order) == std::mem::discriminant(&order);
        if !self.order.as_ref().is_some_and(goes_on) {
            self.give(order);
        }
    }

    fn wanted(&mut self) -> Option<Order> {
        // Before replay has begun nothing is known. A node that was rewound becomes consistent only by what
        // it receives, so that is not waited for here.
        if !self.has_wal() || !self.server.production && self.server.hint.is_none() {
            return None;
        }
        if matches!(self.role, Role::Leader(_)) {
            return self.leader_order();
        }
        if self.server.production {
            // No incarnation resumes a leadership it did not win itself, and a demoted leader starts again.
            return Some(Order::Restart { rewind: None, drain: false });
        }
        if self.wal == Wal::Unknown {
            return Some(Order::StopReceiving);
        }
        // A node never again streams from a leader of a lower term.
        if matches!(self.wal, Wal::Receiving { term, .. } if term < self.hard.term) {
            return Some(Order::StopReceiving);
        }
        let receiving = matches!(self.wal, Wal::Receiving { .. });
        let must_stop = match &self.role {
            Role::Follower(follower) => follower.pending_vote.is_some() || follower.doubts,
            Role::Candidate(candidate) => candidate.wants_stop(),
            Role::Leader(_) => false,
        };
        if receiving && (must_stop || self.hard.error.is_some()) {
            return Some(Order::StopReceiving);
        }
        if matches!(self.role, Role::Follower(_)) { self.follow_order() } else { None }
    }

    /// Somebody promoted this server without an election.
    pub(super) fn own_up_to_timeline(&mut self) {
        let Some(position) = self.server.hint else { return };
        match self.hard.own_up(position) {
            Ok(false) => {}
            Ok(true) => {
                self.know_timeline(position.timeline);
                self.note(EventKind::Demoted, "the server was promoted without an election", Vec::new());
                self.persist();
            }
            Err(text) => self.fail(NodeErrorKind::TimelineConflict, text),
        }
    }

    fn give(&mut self, order: Order) {
        let id = self.next_order;
        self.next_order += 1;
        match &order {
            // WAL may arrive from the moment the order is given.
            Order::Follow { leader } => {
                self.starved = false;
                self.wal = Wal::Receiving {
                    leader: *leader,
                    term: self.hard.term,
                    moved: self.now,
                    last: self.server.hint,
                    failed: false,
                };
            }
            Order::Restart { .. } | Order::Reclone { .. } => self.restarting = true,
            Order::Promote { timeline, first_placeholder } => {
                self.hard.promotion =
                    Some(PromotionIntent { timeline: *timeline, first_placeholder: *first_placeholder });
                // Whatever becomes of the promotion, nobody else opens this number.
                let fork = self.position().map_or(Lsn(0), |p| p.lsn);
                let entry = TimelineEntry { term: self.hard.term, leader: self.hard.node, fork };
                self.hard.timelines.insert(*timeline, entry);
                self.persist();
            }
            _ => {}
        }
        self.order = Some(Outstanding { id, order: order.clone() });
        self.outputs.push(Output::Order(id, order));
    }

    pub(super) fn on_done(&mut self, id: OrderId, result: OrderResult) {
        if self.order.as_ref().is_none_or(|o| o.id != id) {
            return;
        }
        let Some(Outstanding { order, .. }) = self.order.take() else { return };
        match (order, result) {
            (
                Order::StopReceiving | Order::AwaitEnd { .. },
                OrderResult::Stopped { position, complete, max_timeline },
            ) => {
                self.stopped(position, complete, max_timeline);
            }
            (Order::Promote { .. }, OrderResult::Promoted { history }) => self.promoted(history),
            (Order::Promote { .. }, OrderResult::Failed(text)) => self.promotion_failed(&text),
            (Order::PrepareHandover, OrderResult::Done) => self.handover_prepared(),
            (Order::PrepareHandover, OrderResult::Failed(text)) => self.cancel_handover(&text),
            (Order::Follow { leader }, OrderResult::Done) => {
                self.note(EventKind::Follow, &format!("follows node {leader}"), Vec::new());
            }
            (order, OrderResult::Failed(text)) => self.order_failed(&order, &text),
            // EndWalsenders; anything else would be a mistake of the agent's.
            (_, _) => {}
        }
    }

    fn order_failed(&mut self, order: &Order, text: &str) {
        if matches!(order, Order::Restart { .. }) {
            self.restarting = false;
            if matches!(self.role, Role::Leader(_)) {
                self.cancel_handover(text);
            }
            // Nothing was rewound: this node is as whole as before, and may be needed for a quorum.
            if matches!(self.hard.rewind, RewindState::Requested(_)) {
                self.hard.rewind = RewindState::None;
                self.persist();
            }
        }
        if matches!(order, Order::Reclone { .. }) {
            self.restarting = false;
            let said = self.reclone_failed(&Hindrance { text: text.to_owned(), passing: false });
            self.note(EventKind::NodeError, &said, Vec::new());
            self.persist();
        }
        if matches!(order, Order::Follow { .. })
            && let Wal::Receiving { failed, .. } = &mut self.wal
        {
            *failed = true;
        }
        self.no_order_before = self.now + RETRY_AFTER_FAILURE;
    }

    /// Nothing is received any more, and the end of the WAL is known.
    fn stopped(&mut self, position: Position, complete: bool, max_timeline: Timeline) {
        let first = self.wal == Wal::Unknown;
        self.wal = Wal::Stopped { position };
        if let Role::Follower(follower) = &mut self.role {
            follower.doubts = false;
        }
        self.know_timeline(max_timeline.max(position.timeline));
        if first {
            self.look_at_first_position(position);
        }
        let ended = self.heard.as_ref().is_some_and(|h| {
            h.dead.is_some_and(|d| d.clean) || h.beat.handover.target == Some(self.hard.node)
        });
        self.vote_if_stopped();
        if complete && ended && matches!(self.role, Role::Follower(_)) {
            self.stream_ended();
        }
        self.start_vote_if_stopped();
    }

    /// What a start finds: does the WAL go as far as was told?
    fn look_at_first_position(&mut self, position: Position) {
        if let Some(bound) = self.hard.lower_bound
            && position < bound
        {
            let text = format!("the WAL ends at {position}, but this node had flushed {bound}");
            self.fail(NodeErrorKind::WalShorter, text);
        }
        if matches!(self.role, Role::Follower(_)) {
            self.stand_if_leaderless();
        }
    }
}
