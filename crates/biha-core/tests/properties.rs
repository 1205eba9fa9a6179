//! What holds for all values: the core's small decisions against slow and obvious ones.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod sim;

use std::collections::{BTreeMap, BTreeSet};

use biha_core::*;
use proptest::prelude::*;
use sim::{Kind, Log};

fn position() -> impl Strategy<Value = Position> {
    (0u32..4, 0u64..4).prop_map(|(timeline, lsn)| Position { timeline, lsn: Lsn(lsn) })
}

/// Members 1 to n; who votes, and who is a referee.
fn config() -> impl Strategy<Value = ClusterConfig> {
    let kinds = proptest::collection::vec((0u8..6, any::<bool>()), 1..7);
    (kinds, proptest::option::of(1u32..5)).prop_map(|(kinds, nquorum)| {
        let mut config = ClusterConfig::default();
        for (at, (kind, joining)) in kinds.into_iter().enumerate() {
            let mut member = sim::member(Mode::Regular, -1);
            // The first one is the node under test.
            match if at == 0 { 5 } else { kind } {
                0 => member.mode = Mode::Referee,
                1 => member.mode = Mode::RefereeWithWal,
                2 => member.can_vote = false,
                3 => member.joining = joining,
                _ => {}
            }
            config.members.insert(NodeId(at as u32 + 1), member);
        }
        let voters = config.voters().count() as u32;
        config.settings.nquorum = nquorum.filter(|n| *n <= voters);
        config
    })
}

/// All subsets of so many members.
fn subsets(of: &[NodeId], size: usize) -> Vec<BTreeSet<NodeId>> {
    let all = 0u32..1 << of.len();
    let members = |bits: u32| {
        of.iter()
            .enumerate()
            .filter(|(at, _)| bits >> at & 1 == 1)
            .map(|(_, id)| *id)
            .collect::<BTreeSet<_>>()
    };
    all.map(members).filter(|set| set.len() == size).collect()
}

proptest! {
    #[test]
    fn positions_are_ordered_like_raft_logs(a in position(), b in position(), c in position()) {
        // Raft: the log with the later last term is more up to date; with the same, the longer one.
        let better = |x: Position, y: Position| {
            if x.timeline == y.timeline { x.lsn > y.lsn } else { x.timeline > y.timeline }
        };
        prop_assert_eq!(a > b, better(a, b));
        prop_assert_eq!(a < b, better(b, a));
        prop_assert_eq!(a == b, !better(a, b) && !better(b, a));
        prop_assert!(!(a <= b && b <= c) || a <= c);
    }

    #[test]
    fn counts_of_a_configuration(config in config()) {
        let voters: Vec<NodeId> = config
            .members
            .iter()
            .filter(|(_, m)| m.can_vote && !m.joining)
            .map(|(id, _)| *id)
            .collect();
        prop_assert_eq!(&config.voters().collect::<Vec<_>>(), &voters);
        for id in config.members.keys() {
            prop_assert_eq!(config.members[id].is_voter(), voters.contains(id));
        }
        if config.settings.nquorum.is_none() {
            // The smallest number of which any two sets of voters have a member in common.
            let common = |size: usize| {
                let sets = subsets(&voters, size);
                sets.iter().all(|a| sets.iter().all(|b| !a.is_disjoint(b)))
            };
            let smallest = (1..=voters.len()).find(|size| common(*size));
            prop_assert_eq!(Some(config.nquorum()), smallest);
        }
        let quorums = subsets(&voters, config.nquorum());
        let two = quorums.iter().any(|a| quorums.iter().any(|b| a.is_disjoint(b)));
        prop_assert_eq!(config.two_leaders_possible(), two);
        prop_assert_eq!(config.minnodes(), config.nquorum());
    }

    #[test]
    fn a_lease_is_shorter_than_its_promise(promise in 1u64..1_000_000) {
        let lease = lease_of(promise);
        prop_assert!(lease < promise);
        prop_assert!(lease * 10 <= promise * 9);
        prop_assert!(promise < 10 || lease * 10 + 10 > promise * 9);
    }

    #[test]
    fn ancestry_is_what_the_records_say(steps in proptest::collection::vec((0u8..4, 0usize..4, 0usize..4), 1..60)) {
        let mut logs = vec![Log::default(); 4];
        let (mut timeline, mut commit) = (1, 0);
        // Where each timeline ends: only a server that holds all of it writes on it.
        let mut ends = BTreeMap::from([(1, logs[0].end().lsn)]);
        for (what, at, from) in steps {
            match what {
                0 => {
                    timeline += 1;
                    logs[at].open_timeline(timeline, NodeId(at as u32)).unwrap();
                    ends.insert(timeline, logs[at].end().lsn);
                }
                // A base backup.
                1 => logs[at] = logs[from].clone(),
                _ => {
                    let end = logs[at].end();
                    if ends[&end.timeline] == end.lsn {
                        commit += 1;
                        logs[at].append(Kind::Commit(commit));
                        ends.insert(end.timeline, logs[at].end().lsn);
                    }
                }
            }
        }
        for a in &logs {
            for b in logs.iter().filter(|b| a.end().lsn <= b.end().lsn) {
                let prefix = b.records.starts_with(&a.records);
                let common = a.records.iter().zip(&b.records).take_while(|(x, y)| x == y).last();
                match ancestry(a.end(), &b.history) {
                    Ancestry::Contained => prop_assert!(prefix),
                    Ancestry::Parted(fork) => {
                        prop_assert!(!prefix);
                        let known = b.history.iter().any(|e| e.timeline == a.end().timeline);
                        prop_assert!(!known || Some(fork) == common.map(|(x, _)| x.end));
                    }
                }
            }
        }
    }

    #[test]
    fn a_candidate_leads_when_a_quorum_of_voters_said_yes(
        config in config(),
        answers in proptest::collection::vec((2u32..8, any::<bool>()), 0..20),
    ) {
        let mut scene = Candidate::new(&config);
        let mut yes = BTreeSet::from([NodeId(1)]);
        for (id, granted) in answers {
            scene.answer(NodeId(id), granted);
            if granted && config.voters().any(|v| v == NodeId(id)) {
                yes.insert(NodeId(id));
            }
            let leads = config.voters().filter(|v| yes.contains(v)).count() >= config.nquorum();
            prop_assert_eq!(scene.node.state().is_leader(), leads);
        }
    }

    #[test]
    fn the_gate_ends_with_the_best_quorum_of_promises(
        config in config(),
        steps in proptest::collection::vec((0u8..8, 2u32..8, 0u64..20), 1..80),
    ) {
        let mut scene = Candidate::new(&config);
        for id in config.voters().collect::<Vec<_>>() {
            scene.answer(id, true);
        }
        prop_assume!(scene.node.state().is_leader());
        let mut gate = Gate::new(scene, config);
        for (what, id, number) in steps {
            let id = NodeId(id);
            match what {
                0 => gate.lose(id),
                1..=3 => gate.wait(number * 20),
                _ => gate.acknowledge(id, number),
            }
            prop_assert_eq!(gate.word, gate.expected());
        }
    }
}

/// Node 1, which has just asked for votes in term 2.
struct Candidate {
    node: Node,
    outputs: Vec<Output>,
}

const AT: Position = Position { timeline: 1, lsn: Lsn(0x100) };

impl Candidate {
    fn new(config: &ClusterConfig) -> Candidate {
        let hard = HardState::new(ClusterId(1), 1, NodeId(1));
        let options = Options { autorewind: true, autoreclone: false, trust_refused: false };
        let (node, outputs) = Node::new(0, 1, hard, config.clone(), options, None);
        let mut scene = Candidate { node, outputs };
        let status = ServerStatus { consistent: true, hint: Some(AT), ..ServerStatus::default() };
        scene.step(0, Input::Server(status));
        scene.done(OrderResult::Stopped { position: AT, complete: false, max_timeline: 1 });
        for id in config.voters().filter(|id| *id != NodeId(1)).collect::<Vec<_>>() {
            scene.hear(id, Term(0), Message::PreVoteReply(reply(true)));
        }
        scene
    }

    fn step(&mut self, now: Millis, input: Input) {
        let outputs = self.node.step(now, input);
        self.outputs.extend(outputs);
    }

    fn done(&mut self, result: OrderResult) {
        let order = self.outputs.iter().rev().find_map(|o| match o {
            Output::Order(id, _) => Some(*id),
            _ => None,
        });
        self.step(0, Input::Done(order.unwrap(), result));
    }

    fn hear(&mut self, from: NodeId, term: Term, message: Message) {
        let to = NodeId(1);
        let (cluster, incarnation, tag, voted_for) = (ClusterId(1), Incarnation(1), 0, None);
        let envelope = Envelope { cluster, from, to, incarnation, tag, term, voted_for, message };
        self.step(0, Input::Message(envelope));
    }

    fn answer(&mut self, from: NodeId, granted: bool) {
        self.hear(from, Term(2), Message::VoteReply(reply(granted)));
    }
}

fn reply(granted: bool) -> VoteReply {
    let refusal = (!granted).then_some(Refusal::AlreadyVoted);
    VoteReply { term: Term(2), refusal, position: Some(AT), known: Term(1), led: Some(Term(1)) }
}

/// A leader and what it should make of the acknowledgements it gets.
struct Gate {
    scene: Candidate,
    config: ClusterConfig,
    now: Millis,
    /// What the gate was last set to.
    word: Millis,
    seen: usize,
    /// When each round of heartbeats was sent.
    sent: BTreeMap<u64, Millis>,
    /// Of the newest round that each member acknowledged: when it was sent, and when the answer came.
    acknowledged: BTreeMap<NodeId, (Millis, Millis)>,
    promoted: bool,
    /// When the own share was last renewed.
    renewed: Millis,
}

impl Gate {
    fn new(scene: Candidate, config: ClusterConfig) -> Gate {
        let mut gate = Gate {
            scene,
            config,
            now: 0,
            word: 0,
            seen: 0,
            sent: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            promoted: false,
            renewed: 0,
        };
        gate.look();
        gate
    }

    /// Reads what the leader did; answers an order to promote.
    fn look(&mut self) {
        self.renewed = self.now;
        while let Some(output) = self.scene.outputs.get(self.seen).cloned() {
            self.seen += 1;
            match output {
                Output::Gate(until) => self.word = until,
                Output::Send(envelope) => {
                    if let Message::Heartbeat(beat) = envelope.message {
                        self.sent.entry(beat.seq).or_insert(self.now);
                    }
                }
                Output::Order(id, Order::Promote { timeline, .. }) => {
                    let history = vec![
                        HistoryEntry { timeline: 1, fork: Lsn(0) },
                        HistoryEntry { timeline, fork: AT.lsn },
                    ];
                    self.promoted = true;
                    self.scene.step(self.now, Input::Done(id, OrderResult::Promoted { history }));
                }
                _ => {}
            }
        }
    }

    fn wait(&mut self, ms: Millis) {
        let end = self.now + ms;
        while self.scene.node.next_deadline() <= end {
            self.now = self.scene.node.next_deadline();
            self.scene.step(self.now, Input::Tick);
            self.look();
        }
        self.now = end;
        self.scene.step(self.now, Input::Tick);
        self.look();
    }

    fn lose(&mut self, id: NodeId) {
        self.acknowledged.remove(&id);
        self.scene.step(self.now, Input::Disconnected(id, Disconnect::Closed));
        self.look();
    }

    /// A member acknowledges the `back`-th newest round.
    fn acknowledge(&mut self, id: NodeId, back: u64) {
        let newest = self.sent.keys().next_back().copied().unwrap_or(0);
        let Some(seq) = newest.checked_sub(back).filter(|seq| self.sent.contains_key(seq)) else { return };
        let message = Message::HeartbeatAck(HeartbeatAck {
            seq,
            leader_incarnation: self.scene.node.hard().incarnation,
            handover: 0,
            config: self.scene.node.config().version,
            state: NodeState::Follower,
            position: Some(AT),
            streaming: false,
        });
        let envelope = Envelope {
            cluster: ClusterId(1),
            from: id,
            to: NodeId(1),
            incarnation: Incarnation(1),
            tag: 0,
            term: Term(2),
            voted_for: None,
            message,
        };
        let sent = self.sent[&seq];
        let newer = self.acknowledged.get(&id).is_none_or(|(known, _)| *known <= sent);
        if self.config.members.contains_key(&id) && newer {
            self.acknowledged.insert(id, (sent, self.now));
        }
        self.scene.step(self.now, Input::Message(envelope));
        self.look();
    }

    /// The latest moment up to which some quorum of voters is bound.
    fn expected(&self) -> Millis {
        let promise = self.config.settings.election_timeout();
        let end = |id: &NodeId| match self.acknowledged.get(id) {
            _ if *id == NodeId(1) => self.renewed + lease_of(promise),
            Some((sent, _)) => sent + lease_of(promise),
            None => 0,
        };
        let voters: Vec<NodeId> = self.config.voters().collect();
        let quorums = subsets(&voters, self.config.nquorum());
        let lease = quorums.iter().filter_map(|q| q.iter().map(end).min()).max().unwrap_or(0);
        let full = |id: &NodeId| self.config.members.get(id).is_some_and(|m| !m.joining);
        let heard = |(id, (_, at)): &(&NodeId, &(Millis, Millis))| full(id) && self.now < at + promise;
        let alive = 1 + self.acknowledged.iter().filter(heard).count();
        let open = self.promoted && lease > self.now && alive >= self.config.minnodes();
        if open { lease } else { 0 }
    }
}
