//! Scenes with a whole simulated cluster. What happened since the last command is printed after each.

use biha_core::*;
use goldenscript::Command;

use super::Answer;
use super::args::{Args, Parsed, config, user};
use crate::sim::{Cluster, Kind, ServerMode};

pub struct Scene {
    cluster: Cluster,
    shown: usize,
    requests: RequestId,
}

impl Scene {
    /// `cluster N [settings]`: N hosts, none started.
    pub fn begin(command: &Command) -> Parsed<(Scene, String)> {
        let mut args = Args::of(command);
        let count = args.number()?;
        let seed = args.key_or("seed", 1)?;
        let config = config(&mut args, count)?;
        let options = Options {
            autorewind: args.switch("autorewind", true)?,
            autoreclone: args.switch("autoreclone", false)?,
            trust_refused: args.switch("trust_refused", false)?,
        };
        args.end()?;
        let mut cluster = Cluster::new(seed);
        cluster.checks.two_leaders = config.two_leaders_possible();
        for id in config.members.keys() {
            cluster.add_host(*id, config.clone(), options);
        }
        Ok((Scene { cluster, shown: 0, requests: 0 }, String::new()))
    }

    pub fn run(&mut self, command: &Command) -> Answer {
        let mut args = Args::of(command);
        let mut answer = self.act(command.name.as_str(), &mut args)?;
        args.end()?;
        if !self.cluster.checks.violations.is_empty() {
            return Err(self.cluster.checks.violations.join("\n").into());
        }
        let happened = self.cluster.trace[self.shown..].iter().map(|line| line.clone() + "\n");
        answer.insert_str(0, &happened.collect::<String>());
        self.shown = self.cluster.trace.len();
        Ok(answer)
    }

    fn act(&mut self, name: &str, args: &mut Args) -> Answer {
        match name {
            "start" => self.each(args, Cluster::boot)?,
            "stop" => self.each(args, Cluster::stop)?,
            "freeze" => self.each(args, Cluster::freeze)?,
            "stall" => self.each(args, Cluster::stall)?,
            "thaw" => self.each(args, Cluster::thaw)?,
            "kill" => self.kill(args)?,
            "run" => {
                let ms = args.number()?;
                self.cluster.run(ms);
            }
            "until" => return self.until(args),
            "cut" => {
                let (a, b, one_way) = (args.node()?, args.node()?, args.flag("one-way"));
                self.cluster.net.cut(a, b);
                if !one_way {
                    self.cluster.net.cut(b, a);
                }
            }
            "isolate" => {
                for id in args.nodes()? {
                    for other in self.cluster.ids() {
                        self.cluster.net.cut(id, other);
                        self.cluster.net.cut(other, id);
                    }
                }
            }
            "heal" => self.heal(),
            "promote" => self.each(args, Cluster::promote_by_hand)?,
            "reset" => {
                let (a, b) = (args.node()?, args.node()?);
                self.cluster.reset_connection(a, b);
            }
            "commit" => return self.commit(args),
            "wal" => self.wal(args)?,
            "host" => self.new_host(args)?,
            "order" => self.order(args)?,
            "trace" => self.cluster.trace_messages = args.rest(),
            "user" => {
                self.requests += 1;
                let (at, request) = (args.node()?, self.requests);
                let command = user(args)?;
                self.cluster.step(at, Input::Command(request, command));
            }
            "options" => {
                let id = args.node()?;
                let options = Options {
                    autorewind: args.switch("autorewind", true)?,
                    autoreclone: args.switch("autoreclone", false)?,
                    trust_refused: args.switch("trust_refused", false)?,
                };
                let host = self.cluster.host_mut(id);
                host.options = options;
                if let Some(node) = &mut host.controller {
                    node.set_options(options);
                }
            }
            "status" => return Ok(self.status()),
            "config" => return self.config(args),
            "error" => return self.error(args),
            other => return Err(format!("no command {other}").into()),
        }
        Ok(String::new())
    }

    fn each(&mut self, args: &mut Args, act: impl Fn(&mut Cluster, NodeId)) -> Parsed<()> {
        let mut nodes = args.nodes()?;
        if nodes.is_empty() {
            nodes = self.cluster.ids();
        }
        for id in nodes {
            act(&mut self.cluster, id);
        }
        Ok(())
    }

    /// `kill N postmaster|controller|host`
    fn kill(&mut self, args: &mut Args) -> Parsed<()> {
        let id = args.node()?;
        match args.word()?.as_str() {
            "postmaster" => self.cluster.kill_postmaster(id),
            "controller" => self.cluster.kill_controller(id),
            "host" => self.cluster.kill_host(id),
            other => return Err(format!("cannot kill a {other}").into()),
        }
        Ok(())
    }

    /// `until leader=N | follows=N | state=N@NAME [max=ms]`
    fn until(&mut self, args: &mut Args) -> Answer {
        let max: Millis = args.key_or("max", 20_000)?;
        let end = self.cluster.now + max;
        let done = if let Some(id) = args.key::<u32>("leader")? {
            self.cluster.run_until(end, |c| c.host(NodeId(id)).state() == Some(NodeState::LeaderRw))
        } else if let Some(id) = args.key::<u32>("follows")? {
            self.cluster.run_until(end, |c| c.host(NodeId(id)).server.streaming)
        } else if let Some(text) = args.text("state") {
            let (id, name) = text.split_once('@').ok_or("state is node@NAME")?;
            let id = NodeId(super::args::parse(id)?);
            self.cluster.run_until(end, |c| c.host(id).state().is_some_and(|s| s.name() == name))
        } else {
            return Err("until what?".into());
        };
        Ok(if done { String::new() } else { format!("not within {max} ms") })
    }

    fn heal(&mut self) {
        self.cluster.net.heal_all();
        let ids = self.cluster.ids();
        for a in &ids {
            for b in ids.iter().filter(|b| *b > a) {
                self.cluster.healed(*a, *b);
            }
        }
    }

    fn commit(&mut self, args: &mut Args) -> Answer {
        let (id, count) = (args.node()?, args.key_or("count", 1)?);
        for _ in 0..count {
            if let Err(why) = self.cluster.commit(id) {
                return Ok(format!("refused: {why}"));
            }
        }
        Ok(format!("committed {count}"))
    }

    /// `wal N records=K`: more WAL on the disk of a host that does not run.
    fn wal(&mut self, args: &mut Args) -> Parsed<()> {
        let (id, records) = (args.node()?, args.key::<u64>("records")?);
        let cut = args.key::<usize>("loses")?;
        let server = &mut self.cluster.host_mut(id).server;
        if server.mode != ServerMode::Down {
            return Err("the server runs".into());
        }
        for number in 0..records.unwrap_or(0) {
            server.log.append(Kind::Commit(1_000_000 + number));
        }
        let keep = server.log.records.len() - cut.unwrap_or(0);
        server.log.records.truncate(keep);
        Ok(())
    }

    /// `host N like=M`: a new host with a base backup of M and M's configuration.
    fn new_host(&mut self, args: &mut Args) -> Parsed<()> {
        let (id, like) = (args.node()?, NodeId(args.key("like")?.ok_or("like whom?")?));
        let source = self.cluster.host(like);
        let (config, options, log) = (source.disk.config.clone(), source.options, source.server.log.clone());
        self.cluster.add_host(id, config, options);
        self.cluster.host_mut(id).server.log = log;
        Ok(())
    }

    /// `order N Name takes=ms | fails=text | works`
    fn order(&mut self, args: &mut Args) -> Parsed<()> {
        const NAMES: [&str; 7] =
            ["StopReceiving", "Follow", "AwaitEnd", "PrepareHandover", "Promote", "Restart", "EndWalsenders"];
        let (id, name) = (args.node()?, args.word()?);
        let name = NAMES.into_iter().find(|n| *n == name).ok_or("no such order")?;
        if let Some(ms) = args.key("takes")? {
            self.cluster.order_delay.insert((id, name), ms);
        }
        if let Some(text) = args.text("fails") {
            self.cluster.order_fails.insert((id, name), text);
        }
        if args.flag("works") {
            self.cluster.order_fails.remove(&(id, name));
            self.cluster.order_delay.remove(&(id, name));
        }
        Ok(())
    }

    fn status(&self) -> String {
        let mut table = String::new();
        for host in self.cluster.hosts.values() {
            let line = match &host.controller {
                None => "down".to_owned(),
                Some(node) => {
                    let view = node.view();
                    let leader = view.leader.map_or("-".to_owned(), |id| format!("n{id}"));
                    let gate = if host.gate_open(self.cluster.now) { " gate open" } else { "" };
                    let streams = host.server.receiver.filter(|_| host.server.streaming);
                    let streams = streams.map_or(String::new(), |id| format!(" streams from n{id}"));
                    format!(
                        "{} term {} leader {leader} at {}{streams}{gate}",
                        view.state.name(),
                        view.term,
                        host.server.log.end()
                    )
                }
            };
            table += &format!("n{}: {line}\n", host.id);
        }
        table
    }

    fn config(&self, args: &mut Args) -> Answer {
        let config = &self.cluster.host(args.node()?).disk.config;
        let members: Vec<String> = config
            .members
            .iter()
            .map(|(id, m)| {
                let joining = if m.joining { " joining" } else { "" };
                let referee = if m.mode == Mode::Regular { "" } else { " referee" };
                format!("n{id}{joining}{referee}")
            })
            .collect();
        Ok(format!(
            "version {}.{}: {}; voters {}, nquorum {}, minnodes {}{}",
            config.version.term,
            config.version.seq,
            members.join(", "),
            config.voters().count(),
            config.nquorum(),
            config.minnodes(),
            if config.two_leaders_possible() { "; two leaders possible" } else { "" }
        ))
    }

    fn error(&self, args: &mut Args) -> Answer {
        let hard = &self.cluster.host(args.node()?).disk.hard;
        Ok(match &hard.error {
            None => "no error".to_owned(),
            Some(error) => format!("{}: {}", error.kind.name(), error.text),
        })
    }
}
