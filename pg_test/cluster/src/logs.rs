//! Server logs: a line of WARNING or worse that no scenario expects fails the test.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result};

use crate::node::Node;

/// Lines that are looked at: PostgreSQL's levels, errors of its programs that write to the same log, crashes, which
/// PostgreSQL reports as LOG, and last words of a C library that finds its memory damaged, or of a failed assertion.
const LOOKED_AT: [&str; 16] = [
    " WARNING:  ",
    " ERROR:  ",
    " FATAL:  ",
    " PANIC:  ",
    "pg_rewind: error: ",
    "pg_rewind: fatal: ",
    " was terminated by signal ",
    " panicked at ",
    "TRAP: ",
    "free(): ",
    "malloc(): ",
    "realloc(): ",
    "double free",
    "corrupted size",
    "corrupted double-linked",
    "stack smashing",
];
/// SQLSTATEs in a line's prefix of what is wrong with the program, or with its data. A panic of Rust in a server process
/// is such an error, too.
const INTERNAL: [&str; 3] = [" XX000 ", " XX001 ", " XX002 "];
/// How the postmaster tells of a process that has aborted.
const ABORTED: &str = " was terminated by signal 6";

/// A line that may be there, and why that is right. A pattern that ends with the level, and so holds for any message,
/// holds for none of `INTERNAL`; and an abort is right only after a PANIC that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Part of the line; `*` stands for anything.
    pub pattern: &'static str,
    /// Why it is right.
    pub why: &'static str,
}

/// Short for an [`Expected`].
pub const fn expect(pattern: &'static str, why: &'static str) -> Expected {
    Expected { pattern, why }
}

/// What any scenario may see: the oracle's clients dial servers that start and stop, and its writes reach
/// servers that take none. And a server with biha starts by receiving from nobody.
pub const ANYWHERE: [Expected; 9] = [
    expect("FATAL:  canceling authentication due to timeout", "so says a session that a stop meets at login"),
    expect("client backend*FATAL:  connection to client lost", "a client gave up waiting"),
    expect("startup*WARNING:  specified neither primary_conninfo nor restore_command", "every start of biha"),
    expect("FATAL:  the database system is starting up", "a client dials a server that starts"),
    expect("FATAL:  the database system is shutting down", "a client dials a server that stops"),
    expect("FATAL:  the database system is not yet accepting connections", "a client dials too early"),
    expect("FATAL:  terminating connection due to administrator command", "a client's server stops"),
    expect("ERROR:  cannot execute INSERT in a read-only transaction", "a patient client at a follower"),
    expect("FATAL:  terminating walreceiver process due to administrator command", "a voter stops receiving"),
];

/// What a follower says whose leader goes away or can't be reached.
pub const LEADER_GONE: [Expected; 4] = [
    expect("walreceiver*FATAL:  could not connect to the primary server", "the leader is away"),
    expect("walreceiver*FATAL:  could not receive data from WAL stream", "the leader is away"),
    expect("walreceiver*FATAL:  could not send data to WAL stream", "the leader is away"),
    expect("walreceiver*FATAL:  could not send end-of-streaming message", "the leader is away"),
];

/// Lines of a log that should not be there.
pub fn unexpected<'a>(log: &'a str, expected: &[Expected]) -> Vec<&'a str> {
    let excused = |line: &&str| ANYWHERE.iter().chain(expected).any(|allowed| allowed.excuses(line));
    let panics: Vec<&str> = log.lines().filter(|line| line.contains(" PANIC:  ")).filter(excused).collect();
    let of_a_panic = |line: &str| {
        let pid = line.split_once("(PID ").and_then(|(_, rest)| rest.split_once(')')).map(|(pid, _)| pid);
        pid.is_some_and(|pid| panics.iter().any(|panic| panic.contains(&format!("[{pid}]"))))
    };
    log.lines()
        .filter(|line| LOOKED_AT.iter().any(|mark| line.contains(mark)))
        .filter(|line| !excused(line) || (line.contains(ABORTED) && !of_a_panic(line)))
        .collect()
}

impl Expected {
    fn excuses(&self, line: &str) -> bool {
        let of_any_message = self.pattern.ends_with(":  ");
        let internal = INTERNAL.iter().any(|state| line.contains(state));
        matches(self.pattern, line) && !(of_any_message && internal)
    }
}

/// Does the line contain the pattern's parts in order?
fn matches(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// Unexpected lines of the logs of all nodes that ever were in a cluster's directory, each with its log's name; empty is
/// good. An error where a log cannot be read, or a node that is there has none.
pub fn check(directory: &Path, nodes: &[Node], expected: &[Expected]) -> Result<Vec<String>> {
    let mut logs = logs_in(directory).with_context(|| format!("logs in {}", directory.display()))?;
    logs.extend(nodes.iter().map(|node| node.log.clone()));
    logs.sort();
    logs.dedup();
    let mut found = Vec::new();
    for path in logs {
        let log = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let log = String::from_utf8_lossy(&log);
        found.extend(unexpected(&log, expected).iter().map(|line| format!("{name}: {line}")));
    }
    Ok(found)
}

fn logs_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let number = name.strip_prefix('n').and_then(|rest| rest.strip_suffix(".log"));
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-01 00:00:00.000 UTC [1] postmaster 00000 LOG:  starting PostgreSQL
2026-01-01 00:00:01.000 UTC [2] client backend 25006 ERROR:  cannot execute INSERT in a read-only transaction
2026-01-01 00:00:01.000 UTC [2] client backend 25006 STATEMENT:  INSERT INTO t VALUES ('ERROR:  none')
2026-01-01 00:00:02.000 UTC [3] walreceiver 08006 FATAL:  could not connect to the primary server: refused
2026-01-01 00:00:03.000 UTC [1] postmaster 00000 LOG:  server process (PID 9) was terminated by signal 11: fault
pg_rewind: error: could not open file
thread '<unnamed>' panicked at src/lib.rs:1:1:
";

    #[test]
    fn every_line_of_weight_is_found_unless_expected() {
        assert_eq!(unexpected(LOG, &[]).len(), 4);
        let refused = expect("walreceiver*FATAL:  could not connect*refused", "the leader is dead");
        let left = unexpected(LOG, &[refused]);
        assert_eq!(left.len(), 3);
        assert!(left.iter().all(|line| !line.contains("walreceiver")));
    }

    #[test]
    fn what_excuses_any_message_excuses_no_internal_error_and_no_corruption() {
        let any = [expect(" ERROR:  ", "faults"), expect(" WARNING:  ", "faults")];
        let line =
            |code, level| format!("2026-01-01 00:00:00.000 UTC [1] startup {code} {level}:  it is lost");
        for (code, level) in [("XX000", "ERROR"), ("XX001", "WARNING"), ("XX002", "ERROR")] {
            assert_eq!(unexpected(&line(code, level), &any).len(), 1, "{code}");
            let named = expect("startup XX00*:  it is", "this very one");
            assert!(unexpected(&line(code, level), &[any[0], named]).is_empty(), "{code}");
        }
        assert!(unexpected(&line("58030", "ERROR"), &any).is_empty());
        assert!(unexpected("… client backend 22023 ERROR:  no SQLSTATE is XX000", &any).is_empty());
        assert!(unexpected("… startup 00000 HINT:  … some data might be corrupted and …", &any).is_empty());
        assert_eq!(unexpected("free(): invalid pointer\ncorrupted size vs. prev_size\n", &any).len(), 2);
    }

    #[test]
    fn an_abort_needs_a_panic_of_that_process_that_is_excused() {
        let expected = [
            expect(" PANIC:  *No space left on device", "a full disk"),
            expect("was terminated by signal 6", "a PANIC"),
        ];
        let panic = |pid, text| format!("[{pid}] walreceiver 53100 PANIC:  could not write: {text}\n");
        let aborted = "[1] postmaster 00000 LOG:  process (PID 16) was terminated by signal 6: Aborted\n";
        let found = |log: String| unexpected(&log, &expected).len();
        assert_eq!(found(panic(16, "No space left on device") + aborted), 0);
        assert_eq!(found(aborted.into()), 1);
        assert_eq!(found(panic(6, "No space left on device") + aborted), 1);
        assert_eq!(found(panic(16, "it is lost") + aborted), 2);
    }

    #[test]
    fn the_logs_of_nodes_that_are_gone_are_read_and_one_that_cannot_be_is_an_error() {
        let directory = std::env::temp_dir().join(format!("biha-logs-{}", std::process::id()));
        let [gone, not_a_nodes] = ["n7.log", "copy1.log"].map(|name| directory.join(name));
        fs::create_dir_all(&directory).unwrap();
        fs::write(&gone, LOG).unwrap();
        fs::write(&not_a_nodes, LOG).unwrap();
        let found = check(&directory, &[], &[]).unwrap();
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|line| line.starts_with("n7: ")), "{found:?}");
        fs::remove_file(&gone).unwrap();
        fs::create_dir(&gone).unwrap();
        let unread = check(&directory, &[], &[]);
        fs::remove_dir_all(&directory).unwrap();
        assert!(unread.is_err());
    }

    #[test]
    fn a_pattern_matches_its_parts_in_order_only() {
        assert!(matches("a*c", "xabbcx"));
        assert!(!matches("c*a", "xabbc"));
        assert!(matches("", "anything"));
    }
}
