//! What a command is going to do, decided before anything is done.

use std::fmt;
use std::path::PathBuf;

/// One step. Each can be taken back, or leaves what a second run can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Empty the data directory of what an earlier run left unfinished.
    ClearUnfinished,
    /// Make a new PostgreSQL cluster.
    Initdb(Vec<String>),
    /// Enter the node in the cluster's configuration.
    AddMember,
    /// Make the node's replication slot on the leader, unless the cluster has done so.
    CreateSlot,
    /// Copy the leader.
    BaseBackup(Vec<String>),
    /// Remove what belongs to the leader alone from the copy.
    RemoveCopied,
    /// Run the server where nobody else reaches it.
    StartPrivate,
    /// Make roles, database and extension.
    CreateObjects,
    /// Note how the server runs: it does so again if a later step fails.
    NoteServer,
    /// Write pg_biha: configuration, state, certificates, password.
    WriteIdentity,
    /// Write postgresql.biha.conf.
    WriteBihaConf,
    /// Take what biha sets out of postgresql.auto.conf.
    CleanAutoConf,
    /// Let the members in by pg_hba.conf.
    InsertHba,
    /// Make postgresql.conf include postgresql.biha.conf.
    InsertInclude,
    /// Make the server start as a standby.
    StandbySignal,
    /// Stop the private server.
    StopPrivate,
    /// See that the server would start with these files.
    CheckConfig,
    /// From here on nothing is taken back.
    Keep,
    /// Start the server.
    Start,
    /// Restart the running server.
    Restart,
    /// Wait until the node is in one of these states.
    WaitFor(&'static str),
}

/// Names in the steps' descriptions.
#[derive(Clone, Debug)]
pub struct Names {
    /// Data directory.
    pub pgdata: PathBuf,
    /// postgresql.conf.
    pub config_file: PathBuf,
    /// pg_hba.conf.
    pub hba_file: PathBuf,
    /// The node.
    pub id: u32,
}

impl Step {
    /// What the step does, for `--dry-run` and for progress. Empty: nothing to tell.
    pub fn describe(&self, names: &Names) -> String {
        let Names { pgdata, config_file, hba_file, id } = names;
        let pgdata = pgdata.display();
        match self {
            Step::ClearUnfinished => format!("emptying \"{pgdata}\", where an earlier run was cut short"),
            Step::Initdb(args) => format!("making a new PostgreSQL cluster: initdb {}", Words(args)),
            Step::AddMember => format!("entering node {id} in the cluster's configuration"),
            Step::CreateSlot => format!("making sure of replication slot biha_node_{id} on the leader"),
            Step::BaseBackup(args) => format!("copying the leader: pg_basebackup {}", Words(args)),
            Step::RemoveCopied => "removing from the copy what is the leader's own".to_owned(),
            Step::StartPrivate => "starting the server, reachable for bihactl alone".to_owned(),
            Step::CreateObjects => {
                "making roles, database biha_db and extension biha; revoking pg_promote".to_owned()
            }
            Step::WriteIdentity => format!("writing \"{pgdata}/pg_biha\""),
            Step::WriteBihaConf => format!("writing \"{pgdata}/{}\"", crate::conf::BIHA_CONF_FILE),
            Step::CleanAutoConf => format!("taking what biha sets out of \"{pgdata}/postgresql.auto.conf\""),
            Step::InsertHba => format!("letting the members in: \"{}\"", hba_file.display()),
            Step::InsertInclude => format!("including biha's settings: \"{}\"", config_file.display()),
            Step::NoteServer | Step::StandbySignal | Step::Keep => String::new(),
            Step::StopPrivate => "stopping the server".to_owned(),
            Step::CheckConfig => "checking the configuration files".to_owned(),
            Step::Start => "starting the server".to_owned(),
            Step::Restart => "restarting the server".to_owned(),
            Step::WaitFor(states) => format!("waiting until node {id} is {states}"),
        }
    }
}

struct Words<'a>(&'a [String]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self
            .0
            .iter()
            .map(|w| shlex::try_quote(w).map_or_else(|_| w.clone(), |q| q.into_owned()))
            .collect();
        f.write_str(&words.join(" "))
    }
}

/// Whether the server runs while its files are edited, and what happens to it afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It is left stopped.
    Nothing,
    /// It is started.
    Start,
    /// It runs and is restarted.
    Restart,
}

impl Finish {
    fn steps(self, states: &'static str) -> Vec<Step> {
        match self {
            Finish::Nothing => vec![Step::Keep],
            // A node that starts but does not get its role is not taken back: its log tells why.
            Finish::Start => vec![Step::Start, Step::Keep, Step::WaitFor(states)],
            Finish::Restart => vec![Step::Restart, Step::Keep, Step::WaitFor(states)],
        }
    }
}

const FILES: [Step; 6] = [
    Step::WriteIdentity,
    Step::WriteBihaConf,
    Step::CleanAutoConf,
    Step::InsertHba,
    Step::InsertInclude,
    Step::CheckConfig,
];

/// A new cluster.
pub fn init(initdb: Vec<String>, unfinished: bool, finish: Finish) -> Vec<Step> {
    let mut steps = Vec::new();
    if unfinished {
        steps.push(Step::ClearUnfinished);
    }
    steps.extend([Step::Initdb(initdb), Step::StartPrivate, Step::CreateObjects]);
    steps.extend(FILES);
    steps.push(Step::StopPrivate);
    steps.extend(finish.steps("LEADER_RW"));
    steps
}

/// An existing server becomes the first node. `running`: it runs now, and its objects are made there.
pub fn convert(running: bool, finish: Finish) -> Vec<Step> {
    let mut steps = Vec::new();
    if !running {
        steps.push(Step::StartPrivate);
    }
    steps.push(Step::CreateObjects);
    if !running || finish == Finish::Restart {
        steps.push(Step::NoteServer);
    }
    steps.extend(FILES);
    if !running {
        steps.push(Step::StopPrivate);
    }
    steps.extend(finish.steps("LEADER_RW"));
    steps
}

/// A copy of the leader becomes a further node.
pub fn add(backup: Vec<String>, unfinished: bool, finish: Finish) -> Vec<Step> {
    let mut steps = Vec::new();
    if unfinished {
        steps.push(Step::ClearUnfinished);
    }
    steps.extend([Step::AddMember, Step::CreateSlot, Step::BaseBackup(backup), Step::RemoveCopied]);
    steps.extend(FILES);
    steps.push(Step::StandbySignal);
    steps.extend(finish.steps("FOLLOWER"));
    steps
}

/// An existing standby becomes a further node.
pub fn convert_standby(finish: Finish) -> Vec<Step> {
    let mut steps = vec![Step::AddMember, Step::CreateSlot];
    if finish == Finish::Restart {
        steps.push(Step::NoteServer);
    }
    steps.extend(FILES);
    steps.extend(finish.steps("FOLLOWER"));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(steps: &[Step], step: &Step) -> usize {
        steps.iter().position(|s| s == step).unwrap_or_else(|| panic!("{step:?} is missing"))
    }

    fn all() -> Vec<Vec<Step>> {
        let mut plans = Vec::new();
        for finish in [Finish::Nothing, Finish::Start, Finish::Restart] {
            plans.push(init(vec![], true, finish));
            plans.push(convert(true, finish));
            plans.push(convert(false, finish));
            plans.push(add(vec![], true, finish));
            plans.push(convert_standby(finish));
        }
        plans
    }

    #[test]
    fn the_include_comes_after_all_that_it_needs() {
        for steps in all() {
            let include = position(&steps, &Step::InsertInclude);
            for before in [Step::WriteIdentity, Step::WriteBihaConf, Step::CleanAutoConf] {
                assert!(position(&steps, &before) < include, "{steps:?}");
            }
        }
    }

    #[test]
    fn nothing_is_kept_before_all_files_are_checked() {
        for steps in all() {
            let keep = position(&steps, &Step::Keep);
            assert!(position(&steps, &Step::CheckConfig) < keep);
            let later: Vec<_> = steps[keep + 1..].iter().filter(|s| !matches!(s, Step::WaitFor(_))).collect();
            assert!(later.is_empty(), "{later:?} could not be taken back");
        }
    }

    #[test]
    fn the_member_is_entered_before_it_is_copied() {
        let steps = add(vec![], false, Finish::Nothing);
        assert!(position(&steps, &Step::AddMember) < position(&steps, &Step::BaseBackup(vec![])));
        assert!(position(&steps, &Step::CreateSlot) < position(&steps, &Step::BaseBackup(vec![])));
    }

    /// Taken back in the other order: the files, then the server runs, then what was made in it goes.
    #[test]
    fn a_server_that_ends_is_noted_between_what_is_made_in_it_and_its_files() {
        for (running, finish) in [(true, Finish::Restart), (false, Finish::Nothing), (false, Finish::Start)] {
            let steps = convert(running, finish);
            let noted = position(&steps, &Step::NoteServer);
            assert!(position(&steps, &Step::CreateObjects) < noted, "{steps:?}");
            assert!(FILES.iter().all(|file| noted < position(&steps, file)), "{steps:?}");
        }
        let steps = convert_standby(Finish::Restart);
        assert!(position(&steps, &Step::NoteServer) < position(&steps, &Step::WriteIdentity));
        assert!(
            !convert(true, Finish::Nothing).contains(&Step::NoteServer),
            "it is the operator's to restart"
        );
    }

    #[test]
    fn a_private_server_is_stopped() {
        for steps in all() {
            let starts = steps.iter().filter(|s| **s == Step::StartPrivate).count();
            let stops = steps.iter().filter(|s| **s == Step::StopPrivate).count();
            assert_eq!(starts, stops);
        }
    }

    #[test]
    fn descriptions_name_the_files() {
        let names = Names {
            pgdata: "/d".into(),
            config_file: "/etc/x/postgresql.conf".into(),
            hba_file: "/etc/x/pg_hba.conf".into(),
            id: 3,
        };
        assert_eq!(
            Step::InsertInclude.describe(&names),
            "including biha's settings: \"/etc/x/postgresql.conf\""
        );
        let initdb = Step::Initdb(vec!["-D".into(), "/a b".into()]);
        assert_eq!(initdb.describe(&names), "making a new PostgreSQL cluster: initdb -D '/a b'");
    }
}
