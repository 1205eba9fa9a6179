//! Carries out the steps of a plan.

mod cluster;
mod filesteps;
mod server;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use biha_core::{ClusterConfig, ClusterId};
use postgres::Client;

use crate::certs::Certificate;
use crate::conf::BihaConf;
use crate::interrupt;
use crate::plan::{Names, Step};
use crate::sql::Login;
use crate::tools::Tools;
use crate::ui;
use crate::undo::Undo;

pub use server::{PrivateServer, is_private, local_login, service_of, stop};

/// Where the server's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Data directory.
    pub pgdata: PathBuf,
    /// postgresql.conf.
    pub config_file: PathBuf,
}

impl Layout {
    /// Arguments that make `postgres` find its files.
    pub fn server_args(&self) -> Vec<String> {
        let mut args = vec!["-D".to_owned(), self.pgdata.display().to_string()];
        if self.external_config() {
            args.extend(["-c".to_owned(), format!("config_file={}", self.config_file.display())]);
        }
        args
    }

    /// Is postgresql.conf elsewhere than in the data directory?
    pub fn external_config(&self) -> bool {
        self.config_file.parent() != Some(&self.pgdata)
    }

    /// How postgresql.conf names a file of the data directory.
    pub fn include_path(&self, file: &str) -> String {
        if self.external_config() { self.pgdata.join(file).display().to_string() } else { file.to_owned() }
    }
}

/// The node that is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its number.
    pub id: u32,
    /// Where it is reached.
    pub host: String,
    /// Port of its server.
    pub port: u16,
    /// Port of its control channel.
    pub biha_port: u16,
}

/// What all members share, and keep secret.
#[derive(Clone)]
pub struct Secrets {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its certificate authority.
    pub authority: Certificate,
    /// Password of biha_replication_user.
    pub password: String,
}

/// The leader, for a node that is added.
#[derive(Clone)]
pub struct Leader {
    /// How to reach it.
    pub login: Login,
    /// A connection to it.
    pub client: Rc<RefCell<Client>>,
}

/// What the steps need.
pub struct Work {
    /// PostgreSQL's programs.
    pub tools: Tools,
    /// Where the server's files are.
    pub layout: Layout,
    /// pg_hba.conf; asked of the server's configuration where it is not yet known.
    pub hba_file: Option<PathBuf>,
    /// The node.
    pub node: NodeSpec,
    /// postgresql.biha.conf as it shall be.
    pub conf: BihaConf,
    /// The cluster's secrets.
    pub secrets: Secrets,
    /// The configuration that the first node writes; a further one fetches it from the leader.
    pub config: Option<ClusterConfig>,
    /// The leader, for a further node.
    pub leader: Option<Leader>,
    /// A superuser of the running server; for a stopped one its name, and any host.
    pub superuser: Login,
    /// Keep a copy of files that lose something.
    pub keep_copies: bool,
    /// Log of a server that is started.
    pub log: PathBuf,
    /// How long to wait for a server.
    pub timeout: Duration,
    /// What can be taken back.
    pub undo: Undo,
    /// The private server, while it runs.
    pub private: Rc<RefCell<Option<PrivateServer>>>,
}

impl Work {
    /// The names in the steps' descriptions.
    pub fn names(&self) -> Names {
        let hba_file = self.hba_file.clone().unwrap_or_else(|| self.layout.pgdata.join("pg_hba.conf"));
        Names {
            pgdata: self.layout.pgdata.clone(),
            config_file: self.layout.config_file.clone(),
            hba_file,
            id: self.node.id,
        }
    }

    /// Shows the steps.
    pub fn show(&self, steps: &[Step]) {
        let names = self.names();
        ui::result("would be done:");
        for text in steps.iter().map(|step| step.describe(&names)).filter(|text| !text.is_empty()) {
            ui::result(&format!("  {text}"));
        }
    }

    /// Does the steps. After an error everything that can be taken back has been. An error after
    /// [`Step::Keep`] is returned as a value: the node is made, but does not yet do what was waited for.
    pub fn run(mut self, steps: &[Step]) -> Result<Option<Error>> {
        let mut kept = false;
        for step in steps {
            let text = step.describe(&self.names());
            if !text.is_empty() {
                ui::say(&text);
            }
            match interrupt::check().and_then(|()| self.step(step)) {
                Ok(()) => kept |= *step == Step::Keep,
                Err(error) if kept => return Ok(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::ClearUnfinished => self.clear_unfinished(),
            Step::Initdb(args) => self.initdb(args),
            Step::AddMember => self.add_member(),
            Step::CreateSlot => self.create_slot(),
            Step::BaseBackup(args) => self.base_backup(args),
            Step::RemoveCopied => self.remove_copied(),
            Step::StartPrivate => self.start_private(),
            Step::CreateObjects => self.create_objects(),
            Step::NoteServer => {
                self.note_server();
                Ok(())
            }
            Step::WriteIdentity => self.write_identity(),
            Step::WriteBihaConf => self.write_biha_conf(),
            Step::CleanAutoConf => self.clean_auto_conf(),
            Step::InsertHba => self.insert_hba(),
            Step::InsertInclude => self.insert_include(),
            Step::StandbySignal => self.standby_signal(),
            Step::StopPrivate => self.stop_private(),
            Step::CheckConfig => self.check_config(),
            Step::Keep => self.keep(),
            Step::Start => self.start(),
            Step::Restart => self.restart(),
            Step::WaitFor(states) => self.wait_for(states),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.layout.pgdata.join(name)
    }

    fn setting(&self, name: &str) -> Result<String> {
        setting(&self.tools, &self.layout, name)
    }
}

/// A setting as the server would read it from its files at its next start.
pub fn setting(tools: &Tools, layout: &Layout, name: &str) -> Result<String> {
    let mut command = tools.command("postgres");
    command.args(layout.server_args()).args(["-C", name]);
    let text = crate::tools::run(&mut command, crate::tools::Show::Failure);
    Ok(text.with_context(|| format!("could not read setting \"{name}\""))?.trim_end().to_owned())
}

/// Where postgresql.conf is: as given, in the data directory, or where Debian puts it for this directory.
pub fn find_config_file(pgdata: &Path, given: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
    }
    let own = pgdata.join("postgresql.conf");
    let debian =
        pgdata.strip_prefix("/var/lib/postgresql").map(|rest| Path::new("/etc/postgresql").join(rest));
    match debian.map(|directory| directory.join("postgresql.conf")) {
        Ok(debian) if !own.exists() && debian.exists() => debian,
        _ => own,
    }
}
