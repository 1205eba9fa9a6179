//! The WAL of a simulated server: real records, so that two servers can be compared byte for byte, and
//! PostgreSQL's own rule of who may stream from whom.

use std::collections::BTreeSet;

use biha_core::*;

/// Bytes of every record.
const RECORD: u64 = 0x10;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A transaction; the number is unique in the simulation.
    Commit(u64),
    /// The first record of a timeline, and who opened it.
    NewTimeline(NodeId),
    /// A shutdown checkpoint, and whose.
    Shutdown(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub timeline: Timeline,
    pub end: Lsn,
    pub kind: Kind,
}

/// All the WAL of a server, and the history files in its pg_wal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    pub records: Vec<Record>,
    pub history: Vec<HistoryEntry>,
    pub files: BTreeSet<Timeline>,
}

impl Default for Log {
    /// Every data directory begins as a copy of the same one.
    fn default() -> Self {
        let first = Record { timeline: 1, end: Lsn(0x100), kind: Kind::Commit(0) };
        let history = vec![HistoryEntry { timeline: 1, fork: Lsn(0) }];
        Log { records: vec![first], history, files: BTreeSet::new() }
    }
}

impl Log {
    pub fn end(&self) -> Position {
        let last = self.records.last().expect("a log is never empty");
        Position { timeline: last.timeline, lsn: last.end }
    }

    pub fn append(&mut self, kind: Kind) {
        let timeline = self.history.last().expect("a log has a timeline").timeline;
        let end = Lsn(self.end().lsn.0 + RECORD);
        self.records.push(Record { timeline, end, kind });
    }

    /// Opens a timeline as PostgreSQL does: the number must be above every history file's.
    pub fn open_timeline(&mut self, timeline: Timeline, by: NodeId) -> Result<(), String> {
        if timeline <= self.max_timeline() {
            return Err(format!("timeline {timeline} is not above {}", self.max_timeline()));
        }
        self.history.push(HistoryEntry { timeline, fork: self.end().lsn });
        self.files.extend(2..=timeline);
        self.append(Kind::NewTimeline(by));
        Ok(())
    }

    pub fn max_timeline(&self) -> Timeline {
        self.files.last().copied().unwrap_or(0).max(self.end().timeline)
    }

    pub fn complete(&self) -> bool {
        matches!(self.records.last(), Some(Record { kind: Kind::Shutdown(_), .. }))
    }

    pub fn has_commit(&self, id: u64) -> bool {
        self.records.iter().any(|r| r.kind == Kind::Commit(id))
    }

    /// Would PostgreSQL let this server stream from `source`? The own end must lie on the source's history
    /// and not past its end.
    pub fn can_stream_from(&self, source: &Log) -> bool {
        ancestry(self.end(), &source.history) == Ancestry::Contained && self.end().lsn <= source.end().lsn
    }

    /// The first timeline after the parting whose number the other has too, or that on which the two part; and who opened
    /// it here.
    pub fn parts_on(&self, other: &Log) -> Option<(Timeline, NodeId)> {
        let same = self.records.iter().zip(&other.records).take_while(|(own, its)| own == its).count();
        let (common, own) = self.records.split_at(same);
        let opened = |record: &Record| match record.kind {
            Kind::NewTimeline(by) => Some((record.timeline, by)),
            _ => None,
        };
        let in_both = |(at, _): &(Timeline, NodeId)| other.history.iter().any(|entry| entry.timeline == *at);
        own.iter().filter_map(opened).find(in_both).or_else(|| common.iter().rev().find_map(opened))
    }

    /// Receives everything that `source` has. An error if the two had parted unnoticed.
    pub fn receive(&mut self, source: &Log) -> Result<bool, String> {
        if !source.records.starts_with(&self.records) {
            return Err(format!(
                "WAL ending at {} is no prefix of WAL ending at {}",
                self.end(),
                source.end()
            ));
        }
        let more = source.records.len() > self.records.len();
        self.records.extend_from_slice(&source.records[self.records.len()..]);
        self.history.clone_from(&source.history);
        self.files.extend(source.files.iter().copied());
        Ok(more)
    }

    /// Receives what `source` has more, being a stream that has begun with [`Log::receive`]: only the last record
    /// that both have is compared.
    pub fn receive_more(&mut self, source: &Log) -> Result<bool, String> {
        let have = self.records.len();
        if source.records.get(have - 1) != self.records.last() || self.history.len() != source.history.len() {
            return self.receive(source);
        }
        self.records.extend_from_slice(&source.records[have..]);
        Ok(self.records.len() > have)
    }

    /// How many records end there or before.
    pub fn records_until(&self, lsn: Lsn) -> usize {
        self.records.partition_point(|record| record.end <= lsn)
    }

    /// Loses what follows the first `keep` records. History files stay.
    pub fn truncate(&mut self, keep: usize) {
        self.records.truncate(keep.max(1));
        let timeline = self.end().timeline;
        self.history.retain(|entry| entry.timeline <= timeline);
    }

    /// What pg_rewind takes for common, up to the fork, must be so: of the timelines of one number that begin at one place
    /// it takes one for a part of the other (`findCommonAncestorTimeline`).
    pub fn can_be_rewound(&self, source: &Log) -> Result<(), String> {
        let pairs = self.history.iter().zip(&source.history);
        let common = pairs.take_while(|(own, its)| own == its).count();
        let end = |log: &Log| log.history.get(common).map_or(log.end().lsn, |next| next.fork);
        let fork = end(self).min(end(source));
        let until = self.records_until(fork);
        match self.records.get(..until) == source.records.get(..until) {
            true => Ok(()),
            false => Err(format!("what lies before the fork at {fork} differs")),
        }
    }

    /// What pg_rewind does.
    pub fn rewind(&mut self, source: &Log) {
        self.records.clone_from(&source.records);
        self.history.clone_from(&source.history);
        self.files.clone_from(&source.files);
    }
}
