//! What came of a rewind or a re-clone, and when a re-clone is due.

use crate::command::{CommandError, CommandResult};
use crate::event::EventKind;
use crate::hardstate::{Hindrance, Mended, NodeError, NodeErrorKind, RewindState, TimelineEntry};
use crate::message::NodeState;
use crate::step::Order;
use crate::{Millis, NodeId, Position, Term, Timeline};

use super::follow::REMOVED;
use super::{Heard, Node, invalid};

/// How long what was hindered is left alone while the leader can do without this node.
const PAUSE: Millis = 10_000;
/// What is said of a re-clone that came to nothing, and after it why.
const FAILED: &str = "the re-clone failed: ";

impl Node {
    /// Takes note of what the restart before this start was for. Returns what there is to say of it.
    pub(super) fn take_rewind_result(
        &mut self,
        result: Option<Result<Mended, Hindrance>>,
    ) -> Option<(EventKind, String)> {
        let came = result.is_some();
        let said = self.note_rewind_result(result);
        if came && self.me().is_none() {
            // Whatever came of it, it is no member's any more.
            self.fail(NodeErrorKind::Removed, REMOVED.to_owned());
        }
        said
    }

    fn note_rewind_result(
        &mut self,
        result: Option<Result<Mended, Hindrance>>,
    ) -> Option<(EventKind, String)> {
        match (self.hard.rewind, result) {
            (state, Some(Ok(mended))) => {
                let term = if let RewindState::Requested(term) = state { term } else { self.hard.term };
                self.mended(mended, term);
                None
            }
            (RewindState::Recloning, Some(Err(why))) => {
                Some((EventKind::NodeError, self.reclone_failed(&why)))
            }
            (_, Some(Err(Hindrance { text, passing: true }))) => {
                self.hard.rewind = RewindState::PutOff(self.hard.term);
                Some((EventKind::Rewind, format!("the rewind was hindered, and is tried again: {text}")))
            }
            (_, Some(Err(Hindrance { text, passing: false }))) => {
                self.hard.rewind = RewindState::None;
                let said = format!("the rewind failed: {text}");
                let kind = NodeErrorKind::RewindFailed;
                self.hard.fail(NodeError { kind, text, position: None, leader: None });
                Some((EventKind::NodeError, said))
            }
            // The restart came without it (an operator's stop won, or it was killed): it will be asked for again.
            (RewindState::Requested(_) | RewindState::Recloning, None) => {
                self.hard.rewind = RewindState::None;
                None
            }
            (_, None) => None,
        }
    }

    /// The WAL is, as far as the fork or as a whole, that of the leader of this term.
    fn mended(&mut self, mended: Mended, term: Term) {
        let (me, copied) = (self.hard.node, mended == Mended::Copied);
        self.hard.rewind = if copied { RewindState::Recloned(term) } else { RewindState::Done(term) };
        self.hard.lower_bound = None;
        self.hard.error.take_if(|error| error.kind.is_healed_by(mended));
        // The leader's was noted before the rewind was asked for. What this node itself had opened later is no part of
        // its WAL any more; of a copy nothing is.
        let others =
            self.hard.timelines.iter().filter(|(at, entry)| entry.leader != me && entry.is_elected(**at));
        let newest = others.map(|(at, _)| *at).max().unwrap_or(0);
        let stays = |at: &Timeline, entry: &mut TimelineEntry| {
            !copied && entry.is_elected(*at) && (entry.leader != me || *at < newest)
        };
        self.hard.timelines.retain(stays);
    }

    /// Is it too early for another attempt at what was hindered, which is a restart of the server each time? The next
    /// leader may be reached where this one was not. One that takes no writes, or whose commits wait for standbys, may
    /// lack this very node.
    pub(super) fn pauses(&self) -> bool {
        let serves = self.heard.as_ref().is_some_and(|heard| heard.beat.state == NodeState::LeaderRw);
        let spared = serves && self.config.settings.sync_standbys == 0;
        let pause = if spared { PAUSE.max(self.timeout()) } else { self.timeout() };
        self.hard.rewind == RewindState::PutOff(self.hard.term) && self.now < self.started + pause
    }

    /// As `biha.autoreclone`, once, and also where that would not.
    pub(super) fn reclone_by_hand(&mut self) -> CommandResult {
        let Some(error) = &self.hard.error else {
            return Err(invalid(
                "this node is not in NODE_ERROR",
                "Only a node that cannot go on is made anew.",
            ));
        };
        let kind = if self.me().is_none() { NodeErrorKind::Removed } else { error.kind };
        if matches!(kind, NodeErrorKind::Removed | NodeErrorKind::Forgetful) {
            let text = format!("a copy of the leader does not mend {}", kind.name());
            return Err(invalid(text, kind.remedy()));
        }
        let silent = |heard: &Heard| heard.dead.is_some() || self.now >= heard.at + self.timeout();
        if self.heard.as_ref().is_none_or(silent) {
            return Err(CommandError::NoLeader);
        }
        self.hard.rewind = RewindState::Recloning;
        self.persist();
        Ok(())
    }

    /// A new copy of the leader, where nothing less brings this node back: once a term, or as the operator says.
    pub(super) fn reclone_order(&mut self, leader: NodeId, end: Position) -> Option<Order> {
        let error = self.hard.error.as_ref()?;
        let tried = self.hard.rewind == RewindState::Recloned(self.hard.term) || self.pauses();
        let by_itself = self.options.autoreclone && !tried && error.kind.is_healed_by_itself();
        if !by_itself && self.hard.rewind != RewindState::Recloning {
            return None;
        }
        let cause = format!("copies node {leader} anew: {}", error.text);
        self.hard.rewind = RewindState::Recloning;
        self.note(EventKind::Reclone, &cause, Vec::new());
        self.persist();
        Some(Order::Reclone { leader, end })
    }

    /// Not to be tried again in this term, unless what hindered it may pass.
    pub(super) fn reclone_failed(&mut self, why: &Hindrance) -> String {
        let said = format!("{FAILED}{}", why.text);
        let term = self.hard.term;
        self.hard.rewind = if why.passing { RewindState::PutOff(term) } else { RewindState::Recloned(term) };
        match self.hard.error.as_mut().filter(|error| error.kind.is_for_good()) {
            Some(error) => {
                let found = error.text.split(FAILED).next().unwrap_or_default().trim_end_matches("; ");
                error.text = format!("{found}; {said}");
            }
            None => {
                let (position, leader) =
                    self.hard.error.as_ref().map_or((None, None), |e| (e.position, e.leader));
                let kind = NodeErrorKind::RecloneFailed;
                self.hard.error = Some(NodeError { kind, text: said.clone(), position, leader });
            }
        }
        said
    }
}
