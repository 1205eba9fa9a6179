//! What pg_rewind found, and what its end means for the data directory, read from its own words. And what may pass of
//! all that hinders.

use std::io;

use biha_core::{Hindrance, Lsn, Position};

/// How pg_rewind ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// All that it wrote, in English, with --progress.
    pub log: String,
    /// It ended with exit code 0.
    pub success: bool,
    /// How it ended, in words.
    pub status: String,
    /// Another process killed it, or the kernel did where memory was short.
    pub killed: bool,
    /// An operator's stop came meanwhile.
    pub stop: bool,
    /// Why it was killed, if it was killed from here.
    pub given_up: Option<String>,
}

/// What to do with the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Rewound: put this node's own files back.
    Rewound,
    /// Unchanged, and it need not be: this node's WAL ends where the source's history left it.
    NotNeeded,
    /// Unchanged, for this reason.
    Failed(Hindrance),
    /// Unchanged, since the operator stopped the server: to be tried again.
    Stopped,
    /// Half changed, for this reason.
    Broken(String),
}

/// Longest reason that is passed on.
const MAX_TEXT: usize = 800;

impl Ending {
    /// It never ran, since this could not be done. What is not there, or not allowed, will not come by itself.
    pub fn not_started(doing: &str, error: &io::Error) -> Self {
        let lasts = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
        let text = format!("could not {doing}: {error}");
        let (log, given_up) =
            if lasts { (format!("error: {text}"), None) } else { (String::new(), Some(text)) };
        Ending { log, success: false, status: String::new(), killed: false, stop: false, given_up }
    }

    /// May it have changed anything? pg_rewind says this right before its point of no return
    /// (pg_rewind.c:main).
    pub fn changes_begun(log: &str) -> bool {
        log.contains("need to copy")
    }

    /// Its complaints, or why it was killed.
    pub fn reason(&self) -> String {
        match &self.given_up {
            Some(why) => why.clone(),
            None => complaints(&self.log, "pg_rewind", &self.status),
        }
    }

    /// Why it has changed nothing. What it says of the data will not pass.
    pub fn hindrance(&self) -> Hindrance {
        let text = self.reason();
        let passing = self.killed || self.given_up.is_some() || is_of_connection(&text);
        Hindrance { text, passing }
    }
}

/// What this node's own disks hinder is for the operator to see to. But a full one may have room in a while.
pub fn of_own_disk(doing: &str, error: &io::Error) -> Hindrance {
    let passing = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    Hindrance { text: format!("could not {doing}: {error}"), passing }
}

/// Does a program complain of its connection to a server? All of libpq's words for that have this one in common, and so
/// have the server's own (fe-connect.c, fe-secure.c, postgres.c:ProcessInterrupts).
pub fn is_of_connection(complaint: &str) -> bool {
    complaint.contains("connection")
}

/// What a program complained of, or how it ended, if it did not say why.
pub fn complaints(log: &str, program: &str, status: &str) -> String {
    let words = ["error:", "fatal:", "detail:", "hint:"];
    let complains = |line: &str| words.iter().any(|word| line.to_ascii_lowercase().contains(word));
    let prefix = format!("{program}: ");
    let complaints: Vec<&str> =
        log.lines().filter(|line| complains(line)).map(|line| line.trim_start_matches(&prefix)).collect();
    let mut text = match complaints.is_empty() {
        true => format!("{program} ended with {status}"),
        false => complaints.join("; "),
    };
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text.truncate(end);
    text
}

/// Where the two servers' WAL parted, on the timeline that both have there; `None` before it says so
/// (pg_rewind.c:main).
pub fn fork(log: &str) -> Option<Position> {
    let (_, rest) = log.split_once("servers diverged at WAL location ")?;
    // A line that is not whole may lack digits.
    let (place, _) = rest.split_once('\n')?;
    let (lsn, timeline) = place.split_once(" on timeline ")?;
    let (high, low) = lsn.split_once('/')?;
    let half = |digits| u64::from_str_radix(digits, 16).ok();
    Some(Position { timeline: timeline.trim().parse().ok()?, lsn: Lsn(half(high)? << 32 | half(low)?) })
}

/// Judges an ending.
pub fn verdict(ending: &Ending) -> Verdict {
    match (ending.success, Ending::changes_begun(&ending.log)) {
        (true, true) => Verdict::Rewound,
        // PostgreSQL 15 compares the timelines of the last checkpoints only.
        (true, false) if ending.log.contains("on the same timeline") => Verdict::Failed(Hindrance {
            text: "pg_rewind saw source and target on the same timeline: the source has made no checkpoint since \
                   its promotion, or two histories bear the same number"
                .into(),
            passing: false,
        }),
        (true, false) if ending.log.contains("no rewind required") => Verdict::NotNeeded,
        // What is not known to be untouched is not started.
        (true, false) => Verdict::Broken("pg_rewind did not say what it has done".into()),
        (false, true) => Verdict::Broken(ending.reason()),
        (false, false) if ending.stop => Verdict::Stopped,
        (false, false) => Verdict::Failed(ending.hindrance()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const BEGUN: &str = "pg_rewind: connected to server\n\
        pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1\n\
        pg_rewind: rewinding from last common checkpoint at 0/2000060 on timeline 1\n\
        pg_rewind: reading source file list\n\
        pg_rewind: need to copy 52 MB (total source directory size is 75 MB)\n";

    fn ending(log: &str, success: bool) -> Ending {
        let status = "exit status: 1".into();
        Ending { log: log.into(), success, status, killed: false, stop: false, given_up: None }
    }

    #[test]
    fn the_fork_is_known_once_its_line_is_whole() {
        assert_eq!(fork(BEGUN), Some(Position { timeline: 1, lsn: Lsn(0x300_0148) }));
        let line = "pg_rewind: servers diverged at WAL location 1/A0 on timeline 12\n";
        assert_eq!(fork(line), Some(Position { timeline: 12, lsn: Lsn(0x1_0000_00A0) }));
        for length in 0..line.len() {
            assert_eq!(fork(&line[..length]), None, "{}", &line[..length]);
        }
    }

    #[test]
    fn success() {
        assert_eq!(verdict(&ending(&format!("{BEGUN}pg_rewind: Done!\n"), true)), Verdict::Rewound);
    }

    #[test]
    fn not_needed_only_after_comparing_histories() {
        let log = "pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1\n\
                   pg_rewind: no rewind required\n";
        assert_eq!(verdict(&ending(log, true)), Verdict::NotNeeded);
        let log = "pg_rewind: source and target cluster are on the same timeline\n\
                   pg_rewind: no rewind required\n";
        assert!(matches!(verdict(&ending(log, true)), Verdict::Failed(_)));
        assert!(matches!(verdict(&ending("pg_rewind: connected to server\n", true)), Verdict::Broken(_)));
    }

    #[test]
    fn a_source_that_cannot_be_reached_changes_nothing() {
        let log = "pg_rewind: error: connection to server failed: Connection refused\n";
        let text = "error: connection to server failed: Connection refused".into();
        assert_eq!(verdict(&ending(log, false)), Verdict::Failed(Hindrance { text, passing: true }));
    }

    #[test]
    fn what_it_says_of_the_data_will_not_pass() {
        let passes = |ending: &Ending| match verdict(ending) {
            Verdict::Failed(why) => why.passing,
            other => panic!("{other:?}"),
        };
        let log = "pg_rewind: error: could not open file \"pg_wal/00000001000000000000000A\": No such file\n";
        assert!(!passes(&ending(log, false)));
        let log = "pg_rewind: error: server closed the connection unexpectedly\n";
        assert!(passes(&ending(log, false)));
        assert!(!passes(&ending("", false)));
        assert!(passes(&Ending { killed: true, ..ending("", false) }));
        let not_started = |kind: io::ErrorKind| Ending::not_started("start pg_rewind", &kind.into());
        assert!(passes(&not_started(io::ErrorKind::OutOfMemory)));
        assert!(!passes(&not_started(io::ErrorKind::NotFound)));
        assert!(not_started(io::ErrorKind::NotFound).reason().contains("could not start pg_rewind: "));
    }

    #[test]
    fn a_full_disk_may_have_room_in_a_while() {
        for (kind, passing) in [(io::ErrorKind::StorageFull, true), (io::ErrorKind::PermissionDenied, false)]
        {
            let why = of_own_disk("make a directory", &kind.into());
            assert_eq!(why.passing, passing, "{why:?}");
            assert!(why.text.starts_with("could not make a directory: "), "{why:?}");
        }
    }

    #[test]
    fn killed_before_and_after_the_point_of_no_return() {
        let mut early = ending("pg_rewind: connected to server\n", false);
        assert!(matches!(verdict(&early), Verdict::Failed(_)));
        early.stop = true;
        assert_eq!(verdict(&early), Verdict::Stopped);
        let mut late = ending(BEGUN, false);
        assert_eq!(verdict(&late), Verdict::Broken("pg_rewind ended with exit status: 1".into()));
        late.stop = true;
        late.given_up = Some("why".into());
        assert_eq!(verdict(&late), Verdict::Broken("why".into()));
    }

    #[test]
    fn a_stop_while_it_succeeds_is_success() {
        let mut ending = ending(BEGUN, true);
        ending.stop = true;
        assert_eq!(verdict(&ending), Verdict::Rewound);
    }

    #[test]
    fn reasons_are_cut_at_a_character() {
        let log = format!("pg_rewind: error: {}\n", "ä".repeat(1000));
        let Verdict::Failed(why) = verdict(&ending(&log, false)) else { panic!("not a failure") };
        assert!(why.text.len() <= MAX_TEXT);
    }
}
