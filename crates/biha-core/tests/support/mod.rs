//! Samples of everything that is written to disk or sent, and the golden files they are compared with.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use biha_core::*;

/// Compares `bytes` with `tests/data/<name>.hex`. UPDATE=1 writes the file instead: once released, only for a new format
/// version, never to make a test of an old one pass.
pub fn golden(name: &str, bytes: &[u8]) {
    let path = golden_path(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, to_hex(bytes)).unwrap();
    }
    assert_eq!(to_hex(&read_golden(name)), to_hex(bytes), "{name}: the format has changed");
}

/// The bytes of a golden file.
pub fn read_golden(name: &str) -> Vec<u8> {
    let path = golden_path(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(format!("{name}.hex"))
}

fn to_hex(bytes: &[u8]) -> String {
    let line = |row: &[u8]| row.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ") + "\n";
    bytes.chunks(16).map(line).collect()
}

/// Numbers to fill samples with, repeated as needed.
pub struct Numbers(pub Vec<u64>, pub usize);

impl Numbers {
    pub fn counting() -> Self {
        Numbers((1..=97).collect(), 0)
    }

    fn n(&mut self) -> u64 {
        self.1 += 1;
        self.0[(self.1 - 1) % self.0.len()]
    }

    fn small(&mut self) -> u32 {
        self.n() as u32
    }

    fn position(&mut self) -> Position {
        Position { timeline: self.small(), lsn: Lsn(self.n()) }
    }

    fn version(&mut self) -> ConfigVersion {
        ConfigVersion { term: Term(self.small()), seq: self.n(), leader: NodeId(self.small()) }
    }

    fn maybe<T>(&mut self, value: T) -> Option<T> {
        (!self.n().is_multiple_of(5)).then_some(value)
    }

    fn member(&mut self) -> Member {
        Member {
            host: format!("node{}.example", self.n()),
            port: self.n() as u16,
            biha_port: self.n() as u16,
            mode: [Mode::Regular, Mode::Referee, Mode::RefereeWithWal][self.n() as usize % 3],
            can_be_leader: self.n().is_multiple_of(2),
            can_vote: self.n().is_multiple_of(2),
            priority: self.n() as i32,
            joining: self.n().is_multiple_of(2),
        }
    }

    fn record(&mut self) -> EventRecord {
        let position = self.position();
        EventRecord {
            node: NodeId(self.small()),
            incarnation: Incarnation(self.n()),
            seq: self.small(),
            at: self.n() as i64,
            event: Event {
                kind: EventKind::Failover,
                term: Term(self.small()),
                leader: self.maybe(NodeId(2)),
                position: self.maybe(position),
                cause: format!("cause {}", self.n()),
                steps: vec![Step { name: "vote".to_owned(), ms: self.n() }],
            },
        }
    }

    fn request(&mut self) -> VoteRequest {
        VoteRequest {
            term: Term(self.small()),
            position: self.position(),
            config: self.version(),
            handover: self.maybe(4),
        }
    }

    fn reply(&mut self) -> VoteReply {
        let position = self.position();
        VoteReply {
            term: Term(self.small()),
            refusal: self.maybe(Refusal::LeaderAlive(1500)),
            position: self.maybe(position),
            known: Term(self.small()),
            led: self.maybe(Term(7)),
        }
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let position = self.position();
        Heartbeat {
            seq: self.n(),
            promise: self.n(),
            handover: Handover { number: self.small(), target: self.maybe(NodeId(3)) },
            config: self.version(),
            state: NodeState::LeaderRw,
            history: (0..2).map(|_| HistoryEntry { timeline: self.small(), fork: Lsn(self.n()) }).collect(),
            openers: vec![(2, NodeId(1)), (7, NodeId(3))],
            rewind_ready: self.n().is_multiple_of(2),
            oldest_wal: Lsn(self.n()),
            position: Some(position),
            peers: vec![PeerView {
                id: NodeId(self.small()),
                state: NodeState::Follower,
                online: true,
                since_heard: self.n(),
                position: self.maybe(position),
            }],
        }
    }

    fn ack(&mut self) -> HeartbeatAck {
        let position = self.position();
        HeartbeatAck {
            seq: self.n(),
            leader_incarnation: Incarnation(self.n()),
            handover: self.small(),
            config: self.version(),
            state: NodeState::Follower,
            position: self.maybe(position),
            streaming: self.n().is_multiple_of(2),
        }
    }

    pub fn config(&mut self) -> ClusterConfig {
        ClusterConfig {
            version: self.version(),
            members: (1..=3).map(|id| (NodeId(id), self.member())).collect(),
            settings: Settings { nquorum: self.maybe(2), ..Settings::default() },
            stale_quorums: self.n().is_multiple_of(2),
        }
    }

    pub fn state(&mut self) -> HardState {
        let position = self.position();
        let entry = TimelineEntry { term: Term(self.small()), leader: NodeId(2), fork: Lsn(self.n()) };
        HardState {
            incarnation: Incarnation(self.n()),
            term: Term(self.small()),
            voted_for: self.maybe(NodeId(2)),
            longest_promise: self.n(),
            timelines: BTreeMap::from([(self.small(), entry)]),
            lower_bound: self.maybe(position),
            error: Some(NodeError {
                kind: NodeErrorKind::Diverged,
                text: "WAL has parted".to_owned(),
                position: self.maybe(position),
                leader: self.maybe(NodeId(1)),
            }),
            rewind: RewindState::Requested(Term(7)),
            promotion: Some(PromotionIntent { timeline: 7, first_placeholder: 3 }),
            met: BTreeMap::from([(NodeId(3), self.met())]),
            ..HardState::new(ClusterId(self.n()), self.n(), NodeId(self.small()))
        }
    }

    fn met(&mut self) -> Met {
        Met {
            incarnation: Incarnation(self.n()),
            tag: self.small(),
            term: Term(self.small()),
            voted_for: self.maybe(NodeId(1)),
        }
    }

    /// One message of each kind.
    pub fn messages(&mut self) -> Vec<Message> {
        vec![
            Message::Hello(Hello { config: self.version(), state: NodeState::Startup }),
            Message::Heartbeat(Box::new(self.heartbeat())),
            Message::HeartbeatAck(self.ack()),
            Message::PreVote(self.request()),
            Message::PreVoteReply(self.reply()),
            Message::Vote(self.request()),
            Message::VoteReply(self.reply()),
            Message::Goodbye(Goodbye::CleanStop),
            Message::Config(Box::new(self.config())),
            Message::Forward { request: self.n(), command: Command::AddNode(NodeId(4), self.member()) },
            Message::ForwardReply {
                request: self.n(),
                result: Err(CommandError::Invalid { text: "no".to_owned(), hint: "do".to_owned() }),
            },
            Message::Event(Box::new(self.record())),
            Message::Refused(self.met()),
        ]
    }

    pub fn envelope(&mut self, message: Message) -> Envelope {
        Envelope {
            cluster: ClusterId(self.n()),
            from: NodeId(self.small()),
            to: NodeId(self.small()),
            incarnation: Incarnation(self.n()),
            tag: self.small(),
            term: Term(self.small()),
            voted_for: self.maybe(NodeId(3)),
            message,
        }
    }
}

/// The kind of a message; names the golden file. Without a wildcard, so that a new kind is not forgotten.
pub fn kind(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "hello",
        Message::Heartbeat(_) => "heartbeat",
        Message::HeartbeatAck(_) => "heartbeat_ack",
        Message::PreVote(_) => "pre_vote",
        Message::PreVoteReply(_) => "pre_vote_reply",
        Message::Vote(_) => "vote",
        Message::VoteReply(_) => "vote_reply",
        Message::Goodbye(_) => "goodbye",
        Message::Config(_) => "config",
        Message::Forward { .. } => "forward",
        Message::ForwardReply { .. } => "forward_reply",
        Message::Event(_) => "event",
        Message::Refused(_) => "refused",
    }
}
