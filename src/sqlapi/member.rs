//! Commands about members.

use std::fs;

use biha_core::{Command, Member, MemberSetting, Mode, bare_host};
use biha_io::{Identity, Magic, StateFiles};
use pgrx::prelude::*;

use super::command::carry_out;
use super::{error_with_hint, given, invalid, natural, node_id, status_or_error};
use crate::paths;
use crate::pg::status;

fn port(name: &str, value: Option<i32>) -> u16 {
    match u16::try_from(natural(name, value)) {
        Ok(port) if port > 0 => port,
        _ => invalid(format!("{name} must be between 1 and 65535"), ""),
    }
}

/// Longer names are not resolved, and would not fit where this is kept.
const LONGEST_HOST: usize = 255;

/// A name or an address, as DNS and libpq take it: not a list of them, not a directory with a socket.
fn host(value: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-:[]%".contains(c);
    if value.is_empty() || value.len() > LONGEST_HOST || !value.chars().all(fits) {
        invalid(
            format!("host must be a name or an address of 1 to {LONGEST_HOST} characters"),
            "Write a name of another alphabet in its ASCII form.",
        );
    }
    bare_host(value).to_owned()
}

#[pg_extern(volatile, parallel_unsafe)]
fn add_node(
    id: Option<i32>,
    host: Option<&str>,
    port: Option<i32>,
    biha_port: Option<i32>,
    mode: default!(Option<&str>, "'regular'"),
) -> bool {
    let mode = match given("mode", mode) {
        "regular" => Mode::Regular,
        "referee" | "referee_with_wal" => error_with_hint(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "referees are not supported yet",
            "Add the node with mode regular.",
        ),
        unknown => invalid(
            format!("unknown mode \"{unknown}\""),
            "The modes are regular, referee and referee_with_wal.",
        ),
    };
    let member = Member {
        host: self::host(given("host", host)),
        port: self::port("port", port),
        biha_port: self::port("biha_port", biha_port),
        mode,
        can_be_leader: true,
        can_vote: true,
        priority: -1,
        joining: true,
    };
    carry_out(&Command::AddNode(node_id(id), member))
}

#[pg_extern(volatile, parallel_unsafe)]
fn remove_node(id: Option<i32>) -> bool {
    carry_out(&Command::RemoveNode(node_id(id)))
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_priority(id: Option<i32>, priority: Option<i32>) -> bool {
    carry_out(&Command::SetMember(node_id(id), MemberSetting::Priority(given("priority", priority))))
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_can_vote(id: Option<i32>, can_vote: Option<bool>) -> bool {
    carry_out(&Command::SetMember(node_id(id), MemberSetting::CanVote(given("can_vote", can_vote))))
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_can_be_leader(id: Option<i32>, can_be_leader: Option<bool>) -> bool {
    carry_out(&Command::SetMember(
        node_id(id),
        MemberSetting::CanBeLeader(given("can_be_leader", can_be_leader)),
    ))
}

/// What `bihactl add` needs to know, secrets included.
#[pg_extern(volatile, parallel_unsafe)]
fn get_magic_string() -> String {
    match magic() {
        Ok(text) => text,
        Err(why) => error_with_hint(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("could not make the magic string: {why}"),
            "",
        ),
    }
}

fn magic() -> Result<String, String> {
    let status = status_or_error();
    let node = status.leader.unwrap_or(status.node);
    let member = status.config.members.get(&node).ok_or("the leader is not a member")?;
    let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let identity =
        Identity { cluster: None, system_identifier: status::system_identifier(), node: status.node };
    let hard = StateFiles::new(paths::DIR.as_ref()).load_state(&identity).map_err(|e| e.to_string())?;
    let passfile = read(paths::PASSFILE)?;
    let password = passfile.trim_end().rsplit(':').next().unwrap_or_default().to_owned();
    let magic = Magic {
        cluster: hard.cluster,
        host: member.host.clone(),
        port: member.port,
        ca_certificate: read(paths::CA)?,
        ca_key: read(paths::CA_KEY)?,
        password,
    };
    magic.encode().map_err(|e| e.to_string())
}
