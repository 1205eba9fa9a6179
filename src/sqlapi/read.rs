//! Functions that read.

use std::path::Path;
use std::sync::atomic::Ordering;

use biha_core::{ClusterConfig, Mode, NodeId, NodeState};
use biha_io::History;
use pgrx::datum::Interval;
use pgrx::prelude::*;

use super::{error_with_hint, status_or_error};
use crate::{board, paths};

fn sql_id(id: NodeId) -> i32 {
    i32::try_from(id.0).unwrap_or(i32::MAX)
}

fn interval(ms: u64) -> Option<Interval> {
    let us = i64::try_from(ms).ok()?.checked_mul(1000)?;
    Interval::new(0, 0, us).ok()
}

#[pg_extern(stable, parallel_safe)]
#[allow(clippy::type_complexity, reason = "pgrx derives the columns from this type")]
fn status() -> TableIterator<
    'static,
    (
        name!(id, i32),
        name!(leader_id, Option<i32>),
        name!(term, i64),
        name!(online, bool),
        name!(state, String),
        name!(last_known_state, String),
        name!(since_last_hb, Option<Interval>),
    ),
> {
    let status = status_or_error();
    let age = crate::pg::clock::boottime().saturating_sub(status.published);
    let (term, leader) = (i64::from(status.term.0), status.leader.map(sql_id));
    let patience = status.config.settings.election_timeout();
    let rows = status.members.into_iter().map(move |m| {
        let since = m.since_heard.map(|ms| ms + age);
        let online = m.online && since.is_none_or(|ms| ms < patience + age.min(patience));
        let state = if online { m.state } else { NodeState::Unknown };
        (
            sql_id(m.id),
            leader,
            term,
            online,
            state.name().to_owned(),
            m.last_known.name().to_owned(),
            since.and_then(interval),
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

#[pg_extern(stable, parallel_safe)]
fn nodes() -> TableIterator<
    'static,
    (name!(id, i32), name!(host, String), name!(port, i32), name!(state, Option<String>)),
> {
    let status = status_or_error();
    let mut rows = Vec::new();
    for (id, member) in &status.config.members {
        let connection = status.members.iter().find(|m| m.id == *id).and_then(|m| m.connection.clone());
        rows.push((sql_id(*id), member.host.clone(), i32::from(member.biha_port), connection));
    }
    TableIterator::new(rows)
}

#[pg_extern(stable, parallel_safe)]
#[allow(clippy::type_complexity, reason = "pgrx derives the columns from this type")]
fn config() -> TableIterator<
    'static,
    (
        name!(id, i32),
        name!(host, String),
        name!(port, i32),
        name!(biha_port, i32),
        name!(mode, String),
        name!(nquorum, i32),
        name!(minnodes, i32),
        name!(heartbeat_send_period, i32),
        name!(heartbeat_max_lost, i32),
        name!(no_wal_on_follower, i32),
        name!(sync_standbys, i32),
        name!(sync_standbys_min, i32),
        name!(priority, i32),
        name!(can_be_leader, bool),
        name!(can_vote, bool),
        name!(joining, bool),
        name!(lossless, bool),
        name!(lossless_why, String),
        name!(lossless_mode, String),
    ),
> {
    let config = status_or_error().config;
    let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let (nquorum, minnodes) = (config.nquorum() as i32, config.minnodes() as i32);
    let (lossless, why) = lossless(&config);
    let settings = config.settings.clone();
    let rows: Vec<_> = config
        .members
        .into_iter()
        .map(|(id, m)| {
            (
                sql_id(id),
                m.host,
                i32::from(m.port),
                i32::from(m.biha_port),
                mode_name(m.mode).to_owned(),
                nquorum,
                minnodes,
                int(settings.heartbeat_send_period),
                int(settings.heartbeat_max_lost),
                int(settings.no_wal_on_follower),
                int(settings.sync_standbys),
                settings.sync_standbys_min,
                m.priority,
                m.can_be_leader,
                m.can_vote,
                m.joining,
                lossless,
                why.clone(),
                settings.lossless.name().to_owned(),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// Is every acknowledged commit safe, and why (not)?
fn lossless(config: &ClusterConfig) -> (bool, String) {
    let (lossless, why) = config.lossless();
    match board::gate().lowered_commits.load(Ordering::Relaxed) {
        0 => (lossless, why),
        _ if !lossless || !config.guards_commits() => (lossless, why),
        count => (
            false,
            format!(
                "{why}; but {count} commits since this server started asked for less (synchronous_commit)"
            ),
        ),
    }
}

/// The name users write for a mode.
pub(super) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Regular => "regular",
        Mode::Referee => "referee",
        Mode::RefereeWithWal => "referee_with_wal",
    }
}

#[pg_extern(stable, parallel_safe)]
#[allow(clippy::type_complexity, reason = "pgrx derives the columns from this type")]
fn history() -> TableIterator<
    'static,
    (
        name!(at, TimestampWithTimeZone),
        name!(node_id, i32),
        name!(term, i64),
        name!(event, String),
        name!(leader_id, Option<i32>),
        name!(position, Option<String>),
        name!(cause, String),
        name!(total_ms, Option<i64>),
        name!(steps, Option<pgrx::JsonB>),
    ),
> {
    let mut records = match History::read(Path::new(paths::HISTORY)) {
        Ok(records) => records,
        Err(error) => error_with_hint(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("could not read biha's history: {error}"),
            "",
        ),
    };
    records.sort_by_key(|r| r.at);
    let rows: Vec<_> = records
        .into_iter()
        .map(|record| {
            let event = record.event;
            let total = event.steps.iter().find(|s| s.name == "total").map(|s| s.ms as i64);
            let steps: Vec<_> =
                event.steps.iter().map(|s| format!("{{\"step\":\"{}\",\"ms\":{}}}", s.name, s.ms)).collect();
            let steps = (!steps.is_empty())
                .then(|| serde_json::from_str(&format!("[{}]", steps.join(","))).ok())
                .flatten()
                .map(pgrx::JsonB);
            (
                timestamp(record.at),
                sql_id(record.node),
                i64::from(event.term.0),
                event.kind.name().to_owned(),
                event.leader.map(sql_id),
                event.position.map(|p| p.to_string()),
                event.cause,
                total,
                steps,
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// Microseconds since 1970 to PostgreSQL's since 2000.
fn timestamp(unix_us: i64) -> TimestampWithTimeZone {
    const EPOCH_DIFFERENCE_US: i64 = 946_684_800 * 1_000_000;
    TimestampWithTimeZone::try_from(unix_us - EPOCH_DIFFERENCE_US)
        .unwrap_or_else(|_| TimestampWithTimeZone::negative_infinity())
}

// Written out because the column "type" has the name of a Rust keyword.
#[pg_extern(sql = r#"
CREATE FUNCTION biha."error_details"() RETURNS TABLE (
    "type" TEXT, "message" TEXT, "end_lsn" TEXT, "timeline" BIGINT, "leader_id" INT, "what_to_do" TEXT
) STABLE STRICT PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::type_complexity, reason = "pgrx derives the columns from this type")]
fn error_details() -> TableIterator<
    'static,
    (
        name!(kind, String),
        name!(message, Option<String>),
        name!(end_lsn, Option<String>),
        name!(timeline, Option<i64>),
        name!(leader_id, Option<i32>),
        name!(what_to_do, Option<String>),
    ),
> {
    let row = match status_or_error().error {
        None => ("NO_ERROR".to_owned(), None, None, None, None, None),
        Some(error) => (
            error.kind.name().to_owned(),
            Some(error.text),
            error.position.map(|p| p.lsn.to_string()),
            error.position.map(|p| i64::from(p.timeline)),
            error.leader.map(sql_id),
            Some(error.kind.remedy().to_owned()),
        ),
    };
    TableIterator::once(row)
}
