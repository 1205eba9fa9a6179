//! The trace of a run: lines to read where somebody reads them, always a fingerprint.

use std::hash::{Hash, Hasher};

use biha_core::*;

use super::Cluster;

/// A line of the trace; made only if somebody will read it.
macro_rules! say {
    ($cluster:expr, $id:expr, $($text:tt)*) => {
        if $cluster.tracing {
            let text = format!($($text)*);
            $cluster.note($id, text);
        }
    };
}
pub(crate) use say;

/// Of everything that happened: equal for equal runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    pub fn add(&mut self, what: &impl Hash) {
        what.hash(self);
    }
}

/// A multiplicative hash, with a rotation so that order counts (as in rustc's FxHash). There is nobody to
/// defend it against.
impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Cluster {
    /// Adds a line to the trace.
    pub fn note(&mut self, id: NodeId, text: String) {
        self.trace.push(format!("{:>6} n{id} {text}", self.now));
    }

    pub(super) fn trace_message(&mut self, id: NodeId, envelope: &Envelope) {
        if self.trace_messages.is_empty() {
            return;
        }
        let text = describe(&envelope.message);
        if self.trace_messages.iter().any(|kind| text.starts_with(kind.as_str())) {
            say!(self, id, "-> n{} {text}", envelope.to);
        }
    }
}

/// A message in a few words.
pub fn describe(message: &Message) -> String {
    let answer = |r: &VoteReply| {
        let led = r.led.map_or(String::new(), |led| format!(", led in term {led}"));
        match r.refusal {
            None => format!("yes in term {}{led}", r.term),
            Some(why) => format!("no in term {}: {why:?}{led}", r.term),
        }
    };
    let asks = |r: &VoteRequest| {
        let handover = r.handover.map_or(String::new(), |n| format!(" by hand-over {n}"));
        format!("term {} at {}{handover}", r.term, r.position)
    };
    match message {
        Message::Hello(_) => "Hello".to_owned(),
        Message::Heartbeat(b) => {
            let target = b.handover.target.map_or(String::new(), |t| format!(" to n{t}"));
            format!("Heartbeat {} {} handover {}{target}", b.seq, b.state.name(), b.handover.number)
        }
        Message::HeartbeatAck(a) => format!("HeartbeatAck {} {}", a.seq, a.state.name()),
        Message::PreVote(r) => format!("PreVote {}", asks(r)),
        Message::PreVoteReply(r) => format!("PreVoteReply {}", answer(r)),
        Message::Vote(r) => format!("Vote {}", asks(r)),
        Message::VoteReply(r) => format!("VoteReply {}", answer(r)),
        Message::Goodbye(g) => format!("Goodbye {g:?}"),
        Message::Config(c) => format!("Config {}.{}", c.version.term, c.version.seq),
        Message::Forward { request, .. } => format!("Forward {request}"),
        Message::ForwardReply { request, result } => {
            format!("ForwardReply {request} {}", if result.is_ok() { "done" } else { "failed" })
        }
        Message::Event(_) => "Event".to_owned(),
        Message::Refused(known) => format!("Refused, life {} known", known.incarnation),
    }
}

/// A member that nobody connects to.
pub fn member(mode: Mode, priority: i32) -> Member {
    Member {
        host: "host".to_owned(),
        port: 5432,
        biha_port: 5433,
        mode,
        can_be_leader: true,
        can_vote: true,
        priority,
        joining: false,
    }
}
