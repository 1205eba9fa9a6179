//! Reading a command's arguments.

use std::error::Error;
use std::str::FromStr;

use biha_core::*;
use goldenscript::{Argument, Command};

pub type Parsed<T> = Result<T, Box<dyn Error>>;

/// The arguments of a command, taken one by one; what is left over at the end is a mistake.
pub struct Args {
    words: Vec<String>,
    keys: Vec<(String, String)>,
}

impl Args {
    pub fn of(command: &Command) -> Args {
        let mut args = Args { words: Vec::new(), keys: Vec::new() };
        for argument in &command.args {
            match argument {
                Argument::KeyValue(key, value) => args.keys.push((key.clone(), value.clone())),
                Argument::Positional(word) => args.words.push(word.clone()),
                _ => {}
            }
        }
        args
    }

    pub fn end(&self) -> Parsed<()> {
        match (self.words.first(), self.keys.first()) {
            (None, None) => Ok(()),
            (word, key) => Err(format!("what is {word:?} {key:?}?").into()),
        }
    }

    /// The next word.
    pub fn word(&mut self) -> Parsed<String> {
        if self.words.is_empty() { Err("a word is missing".into()) } else { Ok(self.words.remove(0)) }
    }

    /// Is this word there?
    pub fn flag(&mut self, flag: &str) -> bool {
        let at = self.words.iter().position(|w| w == flag);
        at.map(|at| self.words.remove(at)).is_some()
    }

    pub fn number<T: FromStr>(&mut self) -> Parsed<T> {
        parse(&self.word()?)
    }

    pub fn node(&mut self) -> Parsed<NodeId> {
        Ok(NodeId(self.number()?))
    }

    /// All further words, as nodes.
    pub fn nodes(&mut self) -> Parsed<Vec<NodeId>> {
        self.words.drain(..).map(|w| Ok(NodeId(parse(&w)?))).collect()
    }

    /// All further words.
    pub fn rest(&mut self) -> Vec<String> {
        self.words.drain(..).collect()
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        let at = self.keys.iter().position(|(k, _)| k == key)?;
        Some(self.keys.remove(at).1)
    }

    pub fn key<T: FromStr>(&mut self, key: &str) -> Parsed<Option<T>> {
        self.text(key).map(|text| parse(&text)).transpose()
    }

    pub fn key_or<T: FromStr>(&mut self, key: &str, otherwise: T) -> Parsed<T> {
        Ok(self.key(key)?.unwrap_or(otherwise))
    }

    /// on or off.
    pub fn switch(&mut self, key: &str, otherwise: bool) -> Parsed<bool> {
        match self.text(key).as_deref() {
            None => Ok(otherwise),
            Some("on" | "yes") => Ok(true),
            Some("off" | "no") => Ok(false),
            Some(other) => Err(format!("{key} is on or off, not {other}").into()),
        }
    }

    pub fn position(&mut self, key: &str) -> Parsed<Option<Position>> {
        self.text(key).map(|text| position(&text)).transpose()
    }

    /// term.sequence, made by node 1
    pub fn version(&mut self, key: &str) -> Parsed<Option<ConfigVersion>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let (term, seq) = text.split_once('.').ok_or("a version is term.sequence")?;
        Ok(Some(ConfigVersion { term: Term(parse(term)?), seq: parse(seq)?, leader: NodeId(1) }))
    }

    /// timeline@fork/timeline@fork/…
    pub fn history(&mut self, key: &str) -> Parsed<Option<Vec<HistoryEntry>>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let entry = |part: &str| {
            let at = position(part)?;
            Ok(HistoryEntry { timeline: at.timeline, fork: at.lsn })
        };
        text.split('/').filter(|part| !part.is_empty()).map(entry).collect::<Parsed<_>>().map(Some)
    }
}

pub fn parse<T: FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("cannot read {text}").into())
}

/// timeline@position, the position in hexadecimal
pub fn position(text: &str) -> Parsed<Position> {
    let (timeline, lsn) = text.split_once('@').ok_or("a position is timeline@position")?;
    Ok(Position { timeline: parse(timeline)?, lsn: Lsn(u64::from_str_radix(lsn, 16)?) })
}

/// The settings that a command names.
pub fn settings(args: &mut Args) -> Parsed<Settings> {
    let usual = Settings::default();
    Ok(Settings {
        heartbeat_send_period: args.key_or("period", usual.heartbeat_send_period)?,
        heartbeat_max_lost: args.key_or("lost", usual.heartbeat_max_lost)?,
        nquorum: args.key("nquorum")?,
        minnodes: args.key("minnodes")?,
        no_wal_on_follower: args.key_or("no_wal", usual.no_wal_on_follower)?,
        sync_standbys: args.key_or("sync", usual.sync_standbys)?,
        sync_standbys_min: usual.sync_standbys_min,
        lossless: args.key_or("lossless", usual.lossless)?,
    })
}

/// A configuration of members 1 to `count`, with the differences that the command names.
pub fn config(args: &mut Args, count: u32) -> Parsed<ClusterConfig> {
    let mut config = ClusterConfig { settings: settings(args)?, ..ClusterConfig::default() };
    for id in 1..=count {
        config.members.insert(NodeId(id), crate::sim::member(Mode::Regular, -1));
    }
    for (key, mode) in [("referee", Mode::Referee), ("referee_with_wal", Mode::RefereeWithWal)] {
        if let Some(member) = args.key::<u32>(key)?.and_then(|id| config.members.get_mut(&NodeId(id))) {
            member.mode = mode;
        }
    }
    if let Some(text) = args.text("priority") {
        let (id, priority) = text.split_once('@').ok_or("priority is node@ms")?;
        if let Some(member) = config.members.get_mut(&NodeId(parse(id)?)) {
            member.priority = parse(priority)?;
        }
    }
    if let Some(member) = args.key::<u32>("unelectable")?.and_then(|id| config.members.get_mut(&NodeId(id))) {
        member.can_be_leader = false;
    }
    config.version = args.version("config")?.unwrap_or_default();
    Ok(config)
}

/// A user's command.
pub fn user(args: &mut Args) -> Parsed<biha_core::Command> {
    use biha_core::Command::*;
    Ok(match args.word()?.as_str() {
        "set_leader" => SetLeader(args.node()?),
        "add_node" => {
            let (id, referee) = (args.node()?, args.flag("referee"));
            let mode = if referee { Mode::Referee } else { Mode::Regular };
            AddNode(id, crate::sim::member(mode, -1))
        }
        "remove_node" => RemoveNode(args.node()?),
        "reset_node_error" => ResetNodeError,
        "reclone" => Reclone,
        "set_priority" => SetMember(args.node()?, MemberSetting::Priority(args.number()?)),
        "set_can_vote" => SetMember(args.node()?, MemberSetting::CanVote(args.word()? == "on")),
        "set_can_be_leader" => SetMember(args.node()?, MemberSetting::CanBeLeader(args.word()? == "on")),
        "set_nquorum" => Set(vec![Setting::Nquorum(args.number().ok())]),
        "set_minnodes" => Set(vec![Setting::Minnodes(args.number().ok())]),
        "set_period" => Set(vec![Setting::HeartbeatSendPeriod(args.number()?)]),
        "set_sync_standbys" => Set(vec![Setting::SyncStandbys(args.number()?)]),
        "set_lossless" => Set(vec![Setting::Lossless(args.word()?.parse()?)]),
        "set_max_lost" => Set(vec![Setting::HeartbeatMaxLost(args.number()?)]),
        other => return Err(format!("no command {other}").into()),
    })
}
