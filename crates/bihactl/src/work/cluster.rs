//! Steps that speak with the leader of the cluster that a node joins.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use biha_core::{NodeId, image};
use postgres::error::SqlState;

use super::{Leader, Work};
use crate::interrupt;
use crate::outcome::refused;
use crate::sql::describe;
use crate::tools::{Show, run};
use crate::ui;

/// How long the leader has to make a slot.
const SLOT_PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);

impl Work {
    fn leader(&self) -> Result<Leader> {
        self.leader.clone().context("no leader to speak with")
    }

    fn slot(&self) -> String {
        format!("biha_node_{}", self.node.id)
    }

    pub(super) fn add_member(&mut self) -> Result<()> {
        let leader = self.leader()?;
        let number = |n: u32| i32::try_from(n);
        let (id, port, biha_port) =
            (number(self.node.id)?, i32::from(self.node.port), i32::from(self.node.biha_port));
        let params: &[&(dyn postgres::types::ToSql + Sync)] = &[&id, &self.node.host, &port, &biha_port];
        let member =
            leader.client.borrow_mut().query_opt("SELECT FROM biha.config() WHERE id = $1", &[&id])?;
        if member.is_some() {
            ui::say(&format!("node {id} is a member already, from an earlier run"));
            return Ok(());
        }
        let added = leader.client.borrow_mut().execute("SELECT biha.add_node($1, $2, $3, $4)", params);
        added.map_err(|e| refused(describe(&e)))?;
        let slot = self.slot();
        self.undo.push(format!("remove node {id} from the cluster"), move || {
            let mut client = leader.client.borrow_mut();
            if client.is_closed() {
                *client = leader.login.connect()?;
            }
            client.execute("SELECT biha.remove_node($1)", &[&id]).map_err(|e| anyhow!(describe(&e)))?;
            let query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                         WHERE slot_name = $1 AND NOT active";
            match client.execute(query, &[&slot]) {
                Err(e) if e.code() != Some(&SqlState::UNDEFINED_OBJECT) => Err(anyhow!(describe(&e))),
                _ => Ok(()),
            }
        });
        Ok(())
    }

    /// The cluster makes the slot of a new member by itself, within moments. If it does not, it is made here.
    pub(super) fn create_slot(&mut self) -> Result<()> {
        let leader = self.leader()?;
        let mut client = leader.client.borrow_mut();
        let slot = self.slot();
        let start = Instant::now();
        while start.elapsed() < SLOT_PATIENCE {
            if client.query_opt("SELECT FROM pg_replication_slots WHERE slot_name = $1", &[&slot])?.is_some()
            {
                return Ok(());
            }
            interrupt::pause(POLL)?;
        }
        match client.execute("SELECT pg_create_physical_replication_slot($1, true)", &[&slot]) {
            Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(()),
            Err(e) => bail!(describe(&e)),
            Ok(_) => Ok(()),
        }
    }

    pub(super) fn base_backup(&mut self, args: &[String]) -> Result<()> {
        self.will_fill_directory();
        let mut command = self.tools.command("pg_basebackup");
        // A file would be left by a bihactl that is killed; the environment is its owner's to read, as pg_biha is.
        command.args(args).env("PGPASSWORD", &self.secrets.password);
        run(&mut command, Show::All)?;
        Ok(())
    }

    /// The cluster's configuration as the leader has it on disk; it must name this node.
    pub(super) fn fetch_config(&mut self) -> Result<Vec<u8>> {
        let leader = self.leader()?;
        let row =
            leader.client.borrow_mut().query_one("SELECT pg_read_binary_file('pg_biha/biha.conf')", &[]);
        let bytes: Vec<u8> = row.map_err(|e| anyhow!(describe(&e)))?.get(0);
        let config = image::decode_config(&bytes).context("the leader's pg_biha/biha.conf cannot be used")?;
        if !config.members.contains_key(&NodeId(self.node.id)) {
            bail!("the leader's configuration does not name node {}", self.node.id);
        }
        Ok(bytes)
    }
}
