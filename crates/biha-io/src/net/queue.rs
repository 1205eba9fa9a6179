//! What waits to be sent to one peer.

use std::collections::VecDeque;

use biha_core::Message;

/// What may happen to a frame while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Only the newest counts.
    Heartbeat,
    /// Only the newest counts.
    HeartbeatAck,
    /// Must not be dropped in favour of others: votes, and first and last words.
    Vital,
    /// Anything else.
    Plain,
}

impl Kind {
    fn of(message: &Message) -> Kind {
        match message {
            Message::Heartbeat(_) => Kind::Heartbeat,
            Message::HeartbeatAck(_) => Kind::HeartbeatAck,
            Message::Hello(_)
            | Message::PreVote(_)
            | Message::PreVoteReply(_)
            | Message::Vote(_)
            | Message::VoteReply(_)
            | Message::Goodbye(_)
            | Message::Refused(_) => Kind::Vital,
            Message::Config(_)
            | Message::Forward { .. }
            | Message::ForwardReply { .. }
            | Message::Event(_) => Kind::Plain,
        }
    }
}

#[derive(Debug)]
pub(super) struct SendQueue {
    frames: VecDeque<(Kind, Vec<u8>)>,
    bytes: usize,
    max_frames: usize,
    max_bytes: usize,
}

impl SendQueue {
    pub(super) fn new(max_frames: usize, max_bytes: usize) -> Self {
        SendQueue { frames: VecDeque::new(), bytes: 0, max_frames, max_bytes }
    }

    /// Adds a frame. A newer heartbeat takes the place of an older one; a full queue loses its oldest frame
    /// that is not vital.
    pub(super) fn push(&mut self, message: &Message, frame: Vec<u8>) {
        let kind = Kind::of(message);
        self.bytes += frame.len();
        let waiting = match kind {
            Kind::Heartbeat | Kind::HeartbeatAck => self.frames.iter_mut().find(|(k, _)| *k == kind),
            Kind::Vital | Kind::Plain => None,
        };
        match waiting {
            Some((_, older)) => {
                self.bytes -= older.len();
                *older = frame;
            }
            None => self.frames.push_back((kind, frame)),
        }
        while self.frames.len() > 1 && (self.frames.len() > self.max_frames || self.bytes > self.max_bytes) {
            let victim = self.frames.iter().position(|(k, _)| *k != Kind::Vital).unwrap_or(0);
            if let Some((_, frame)) = self.frames.remove(victim) {
                self.bytes -= frame.len();
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Bytes that wait.
    pub(super) fn held(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use biha_core::{ConfigVersion, Goodbye, HeartbeatAck, Incarnation, NodeState};

    use super::*;

    fn ack() -> Message {
        Message::HeartbeatAck(HeartbeatAck {
            seq: 1,
            leader_incarnation: Incarnation(1),
            handover: 0,
            config: ConfigVersion::default(),
            state: NodeState::Follower,
            position: None,
            streaming: false,
        })
    }

    fn plain() -> Message {
        Message::ForwardReply { request: 1, result: Ok(()) }
    }

    fn content(mut queue: SendQueue) -> Vec<Vec<u8>> {
        let all = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(queue.bytes, 0);
        all
    }

    #[test]
    fn a_newer_acknowledgement_takes_the_place_of_an_older_one() {
        let mut queue = SendQueue::new(10, 1000);
        queue.push(&ack(), vec![1; 10]);
        queue.push(&plain(), vec![2]);
        queue.push(&ack(), vec![3; 4]);
        assert_eq!(content(queue), [vec![3; 4], vec![2]]);
    }

    #[test]
    fn a_full_queue_loses_its_oldest_that_is_not_vital() {
        let mut queue = SendQueue::new(3, 1000);
        queue.push(&Message::Goodbye(Goodbye::Fault), vec![1]);
        for n in 2..6 {
            queue.push(&plain(), vec![n]);
        }
        assert_eq!(content(queue), [vec![1], vec![4], vec![5]]);
    }

    #[test]
    fn bytes_are_bounded_too_and_one_frame_always_fits() {
        let mut queue = SendQueue::new(10, 100);
        for n in 1..5 {
            queue.push(&plain(), vec![n; 40]);
        }
        assert_eq!(content(queue), [vec![3; 40], vec![4; 40]]);
        let mut queue = SendQueue::new(10, 100);
        queue.push(&plain(), vec![1; 500]);
        assert_eq!(content(queue), [vec![1; 500]]);
    }

    #[test]
    fn vital_frames_are_bounded_as_well() {
        let mut queue = SendQueue::new(2, 1000);
        for n in 1..5 {
            queue.push(&Message::Goodbye(Goodbye::Fault), vec![n]);
        }
        assert_eq!(content(queue), [vec![3], vec![4]]);
    }
}
