//! Scenes with one node: the script is its network, its server and its clock; everything it wants is printed,
//! in order.

use biha_core::*;
use goldenscript::Command;

use super::Answer;
use super::args::{Args, Parsed, config, user};
use super::show::{persisted, show};

pub struct Scene {
    node: Node,
    now: Millis,
    shown: HardState,
    order: Option<OrderId>,
    requests: RequestId,
    /// The number of the last heartbeat that each peer sent.
    seq: u64,
}

impl Scene {
    /// `node 1 of=3 [settings] [what is on disk]`
    pub fn begin(command: &Command) -> Parsed<(Scene, String)> {
        let mut args = Args::of(command);
        let id = args.node()?;
        let count = args.key_or("of", 3)?;
        let config = config(&mut args, count)?;
        let options = Options {
            autorewind: args.switch("autorewind", true)?,
            autoreclone: args.switch("autoreclone", false)?,
            trust_refused: args.switch("trust_refused", false)?,
        };
        let mut hard = HardState::new(ClusterId(1), 1, id);
        hard.term = Term(args.key_or("term", 0)?);
        hard.voted_for = args.key("voted")?.map(NodeId);
        hard.longest_promise = args.key_or("promised", 0)?;
        hard.lower_bound = args.position("lower_bound")?;
        hard.incarnation = Incarnation(args.key_or("incarnation", 0)?);
        hard.rewind = match args.text("rewind").as_deref() {
            None => RewindState::None,
            Some("requested") => RewindState::Requested(hard.term),
            Some("recloning") => RewindState::Recloning,
            Some("put_off") => RewindState::PutOff(hard.term),
            Some(term) => RewindState::Done(Term(super::args::parse(term)?)),
        };
        let rewound = match args.text("rewound").as_deref() {
            None => None,
            Some("done") => Some(Ok(Mended::Rewound)),
            Some("copied") => Some(Ok(Mended::Copied)),
            // As libpq says it (fe-connect.c).
            Some(error) => {
                Some(Err(Hindrance { text: error.to_owned(), passing: error.contains("connect") }))
            }
        };
        args.end()?;
        let before = hard.clone();
        let (node, outputs) = Node::new(0, 1, hard, config, options, rewound);
        let mut scene = Scene { node, now: 0, shown: before, order: None, requests: 0, seq: 0 };
        let answer = scene.print(outputs);
        Ok((scene, answer))
    }

    pub fn run(&mut self, command: &Command) -> Answer {
        let mut args = Args::of(command);
        let answer = self.act(command.name.as_str(), &mut args)?;
        args.end()?;
        Ok(answer)
    }

    fn act(&mut self, name: &str, args: &mut Args) -> Answer {
        match name {
            "wait" => {
                let ms: Millis = args.number()?;
                return Ok(self.wait(ms));
            }
            "lead" => return self.lead(args),
            "state" => {
                let view = self.node.view();
                let leader = view.leader.map_or("-".to_owned(), |id| format!("n{id}"));
                return Ok(format!("{} term {} leader {leader}", view.state.name(), view.term));
            }
            "synchronous" => {
                let names: Vec<String> =
                    self.node.view().synchronous.iter().map(|id| format!("n{id}")).collect();
                return Ok(names.join(" "));
            }
            _ => {}
        }
        let input = match name {
            "server" => server(args)?,
            "stopped" => {
                let position = args.position("at")?.ok_or("at which position?")?;
                let max_timeline = args.key_or("timelines", position.timeline)?;
                self.done(OrderResult::Stopped { position, complete: args.flag("complete"), max_timeline })?
            }
            "promoted" => {
                let history = args.history("history")?.ok_or("which history?")?;
                self.done(OrderResult::Promoted { history })?
            }
            "done" => self.done(OrderResult::Done)?,
            "failed" => {
                let text = args.word()?;
                self.done(OrderResult::Failed(text))?
            }
            "lost" => Input::Disconnected(args.node()?, Disconnect::Closed),
            "refused" => Input::Disconnected(args.node()?, Disconnect::Refused),
            "stop" => Input::Stop(goodbye(&args.word()?)?),
            "user" => {
                self.requests += 1;
                Input::Command(self.requests, user(args)?)
            }
            _ => Input::Message(self.message(name, args)?),
        };
        Ok(self.give(input))
    }

    /// The node is elected by node 2 and is LEADER_RW on the new timeline; nobody but node 2 has answered yet.
    fn lead(&mut self, args: &mut Args) -> Answer {
        let at = args.position("at")?.unwrap_or(Position { timeline: 1, lsn: Lsn(0x100) });
        let status = ServerStatus { consistent: true, hint: Some(at), ..ServerStatus::default() };
        let mut answer = self.give(Input::Server(status));
        let stopped = OrderResult::Stopped { position: at, complete: false, max_timeline: at.timeline };
        let stopped = self.done(stopped)?;
        answer += &self.give(stopped);
        let term = Term(at.timeline.max(self.node.hard().term.0) + 1);
        let yes = VoteReply { term, refusal: None, position: Some(at), known: Term(term.0 - 1), led: None };
        // At the start of a cluster every voter's position is waited for.
        let others: Vec<NodeId> = self.node.config().voters().filter(|id| *id != NodeId(1)).collect();
        for id in others {
            let from = self.envelope(id, self.node.hard().term, Message::PreVoteReply(yes.clone()));
            answer += &self.give(Input::Message(from));
        }
        let quorum: Vec<NodeId> =
            (2..).map(NodeId).take(self.node.config().nquorum().saturating_sub(1)).collect();
        for id in &quorum {
            let from = self.envelope(*id, term, Message::VoteReply(yes.clone()));
            answer += &self.give(Input::Message(from));
        }
        let ack = HeartbeatAck {
            seq: 1,
            leader_incarnation: self.node.hard().incarnation,
            handover: 0,
            config: self.node.config().version,
            state: NodeState::Follower,
            position: Some(at),
            streaming: true,
        };
        for id in &quorum {
            let from = self.envelope(*id, term, Message::HeartbeatAck(ack.clone()));
            answer += &self.give(Input::Message(from));
        }
        let history = vec![
            HistoryEntry { timeline: at.timeline, fork: Lsn(0) },
            HistoryEntry { timeline: term.0, fork: at.lsn },
        ];
        let promoted = self.done(OrderResult::Promoted { history })?;
        answer += &self.give(promoted);
        let hint = Some(Position { timeline: term.0, lsn: Lsn(at.lsn.0 + 0x10) });
        let status = ServerStatus { production: true, checkpointed: true, hint, ..status };
        answer += &self.give(Input::Server(status));
        Ok(answer)
    }

    fn envelope(&self, from: NodeId, term: Term, message: Message) -> Envelope {
        let own = self.node.hard();
        let (cluster, to, incarnation) = (own.cluster, own.node, Incarnation(1));
        Envelope { cluster, from, to, incarnation, tag: 0, term, voted_for: None, message }
    }

    fn give(&mut self, input: Input) -> String {
        let outputs = self.node.step(self.now, input);
        self.print(outputs)
    }

    /// Time passes; ticks come when they are due.
    fn wait(&mut self, ms: Millis) -> String {
        let end = self.now + ms;
        let mut answer = String::new();
        while self.node.next_deadline() <= end {
            self.now = self.node.next_deadline();
            let outputs = self.node.step(self.now, Input::Tick);
            answer += &self.print(outputs);
        }
        self.now = end;
        answer
    }

    fn done(&mut self, result: OrderResult) -> Parsed<Input> {
        let order = self.order.take().ok_or("no order is being carried out")?;
        Ok(Input::Done(order, result))
    }

    fn print(&mut self, outputs: Vec<Output>) -> String {
        let mut answer = String::new();
        for output in outputs {
            let text = match &output {
                Output::Persist(hard) => {
                    let text = persisted(&self.shown, hard);
                    self.shown = (**hard).clone();
                    text
                }
                Output::Order(id, _) => {
                    self.order = Some(*id);
                    show(&output)
                }
                _ => show(&output),
            };
            answer += &format!("{:>6} {text}\n", self.now);
        }
        answer
    }

    /// `<message> from=N term=T [incarnation=I] …`
    fn message(&mut self, name: &str, args: &mut Args) -> Parsed<Envelope> {
        let from = NodeId(args.key("from")?.ok_or("from whom?")?);
        let term = Term(args.key_or("term", self.node.hard().term.0)?);
        let version = args.version("config")?.unwrap_or(self.node.config().version);
        let message = match name {
            "hello" => Message::Hello(Hello { config: version, state: NodeState::Follower }),
            "heartbeat" => {
                self.seq = args.key_or("seq", self.seq + 1)?;
                Message::Heartbeat(Box::new(heartbeat(args, self.seq, version)?))
            }
            "ack" => Message::HeartbeatAck(HeartbeatAck {
                seq: args.key("seq")?.ok_or("which heartbeat?")?,
                leader_incarnation: Incarnation(
                    args.key_or("leader_incarnation", self.node.hard().incarnation.0)?,
                ),
                handover: args.key_or("handover", 0)?,
                config: version,
                state: NodeState::Follower,
                position: args.position("at")?,
                streaming: args.switch("streaming", true)?,
            }),
            "prevote" => Message::PreVote(request(args, term, version)?),
            "vote" => Message::Vote(request(args, term, version)?),
            "prevote_reply" => Message::PreVoteReply(reply(args, term)?),
            "vote_reply" => Message::VoteReply(reply(args, term)?),
            "forgotten" => Message::Refused(Met {
                incarnation: Incarnation(args.key_or("life", 0)?),
                tag: args.key_or("life_tag", 0)?,
                term,
                voted_for: args.key("vote")?.map(NodeId),
            }),
            "goodbye" => Message::Goodbye(goodbye(&args.word()?)?),
            "new_config" => {
                let mut config = self.node.config().clone();
                config.version = version;
                if let Some(id) = args.key("without")? {
                    config.members.remove(&NodeId(id));
                }
                Message::Config(Box::new(config))
            }
            other => return Err(format!("no command {other}").into()),
        };
        let own = self.node.hard();
        // Whoever asks for a pre-vote, or answers one, has no higher term than before.
        let usual = if name.starts_with("prevote") { own.term } else { term };
        Ok(Envelope {
            cluster: own.cluster,
            from,
            to: own.node,
            incarnation: Incarnation(args.key_or("incarnation", 1)?),
            tag: args.key_or("tag", 0)?,
            term: Term(args.key_or("speaker_term", usual.0)?),
            voted_for: args.key("voted_for")?.map(NodeId),
            message,
        })
    }
}

fn server(args: &mut Args) -> Parsed<Input> {
    let production = args.flag("production");
    let consistent = args.flag("standby") || production;
    let hint = args.position("at")?;
    let end = hint.map_or(0, |at| at.lsn.0);
    Ok(Input::Server(ServerStatus {
        production,
        consistent,
        streaming: args.flag("streaming"),
        checkpointed: args.flag("checkpointed"),
        sick: args.flag("sick"),
        oldest_wal: Lsn(args.key_or("oldest", 0)?),
        synced: Lsn(args.key_or("synced", 0)?),
        counts_others: args.flag("counts-others"),
        end_on_file: Lsn(args.key_or("on_file", end)?),
        asked: args.key_or("asked", 0)?,
        hint,
    }))
}

fn heartbeat(args: &mut Args, seq: u64, config: ConfigVersion) -> Parsed<Heartbeat> {
    Ok(Heartbeat {
        seq,
        promise: args.key_or("promise", 2000)?,
        handover: Handover { number: args.key_or("handover", 0)?, target: args.key("to")?.map(NodeId) },
        config,
        state: if args.flag("read-only") { NodeState::LeaderRo } else { NodeState::LeaderRw },
        history: args.history("history")?.unwrap_or_default(),
        openers: Vec::new(),
        rewind_ready: args.switch("rewind_ready", true)?,
        oldest_wal: Lsn(args.key_or("oldest", 0)?),
        position: args.position("at")?,
        peers: Vec::new(),
    })
}

fn request(args: &mut Args, term: Term, config: ConfigVersion) -> Parsed<VoteRequest> {
    let position = args.position("at")?.ok_or("at which position?")?;
    Ok(VoteRequest { term, position, config, handover: args.key("handover")? })
}

fn reply(args: &mut Args, term: Term) -> Parsed<VoteReply> {
    let refusal = match args.word()?.as_str() {
        "yes" => None,
        "alive" => Some(Refusal::LeaderAlive(args.key_or("ms", 500)?)),
        "behind" => Some(Refusal::PositionBehind),
        "config" => Some(Refusal::ConfigOlder),
        "voted" => Some(Refusal::AlreadyVoted),
        "low" => Some(Refusal::TermTooLow),
        "unready" => Some(Refusal::NotReady),
        other => return Err(format!("no refusal {other}").into()),
    };
    let known = Term(args.key_or("known", term.0 - 1)?);
    Ok(VoteReply { term, refusal, position: args.position("at")?, known, led: args.key("led")?.map(Term) })
}

fn goodbye(word: &str) -> Parsed<Goodbye> {
    match word {
        "postmaster" => Ok(Goodbye::PostmasterDied),
        "clean" => Ok(Goodbye::CleanStop),
        "fault" => Ok(Goodbye::Fault),
        other => Err(format!("no goodbye {other}").into()),
    }
}
