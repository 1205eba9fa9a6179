//! Every file of biha's in the data directory, named once. The server's working directory is the data
//! directory, so all are relative.

/// biha's own directory.
pub const DIR: &str = "pg_biha";
/// The node's memory.
pub const STATE: &str = "pg_biha/biha.state";
/// The replicated configuration.
pub const CONF: &str = "pg_biha/biha.conf";
/// The events kept for `biha.history()`.
pub const HISTORY: &str = "pg_biha/biha.history";
/// PostgreSQL settings that change with the node's role; included by postgresql.biha.conf.
pub const SERVER_CONF: &str = "pg_biha/server.conf";
/// PostgreSQL's lock file.
pub const PID_FILE: &str = "postmaster.pid";
/// The same while it is being made again.
pub const PID_FILE_NEW: &str = "postmaster.pid.new";
/// A second link to it, for the time of a restart in place.
pub const PID_FILE_LINK: &str = "pg_biha/postmaster.pid";
/// What pg_rewind said at the last rewind.
pub const REWIND_LOG: &str = "pg_biha/rewind.log";
/// Marks a directory that an unfinished bihactl made, which a later one may empty.
pub const UNFINISHED: &str = "pg_biha/bihactl.unfinished";
/// What pg_rewind is shown of the data directory while it only looks for the fork.
pub const REWIND_VIEW: &str = "pg_biha/rewind.view";
/// What the programs of the last re-clone said.
pub const RECLONE_LOG: &str = "pg_biha/reclone.log";
/// Bytes that are to be free before another re-clone is begun, if there was too little room for the last one.
pub const RECLONE_ROOM: &str = "pg_biha/reclone.room";
/// A link that is about to become pg_wal.
pub const WAL_LINK: &str = "pg_biha/pg_wal.link";
/// What came of a rewind or a re-clone, until it is taken note of.
pub const REWIND_RESULT: &str = "pg_biha/rewind.result";
/// The cluster's certificate authority.
pub const CA: &str = "pg_biha/ca.crt";
/// Its private key, so that any member can tell a new one how to join.
pub const CA_KEY: &str = "pg_biha/ca.key";
/// Password file of biha_replication_user, in libpq's format.
pub const PASSFILE: &str = "pg_biha/pgpass";
