//! The events kept for `biha.history()`: an append-only file that is cut back now and then.
//!
//! The file begins with `BIHAHIST` and a format version (2 bytes, little-endian); each record is its length
//! (4 bytes), the crc32c of its body (4 bytes), and the body. A torn end, as a crash leaves it, is dropped.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use biha_core::{EventRecord, Incarnation, NodeId, wire};

use crate::durable_write;

/// Records kept when the file is cut back.
const KEEP: usize = 1000;
/// The file is cut back when it holds more records.
const LIMIT: usize = 2000;

const START: [u8; 10] = *b"BIHAHIST\x01\0";

type Name = (NodeId, Incarnation, u32);

/// The events, in the order in which this node learned of them.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    file: File,
    records: VecDeque<EventRecord>,
    names: BTreeSet<Name>,
    /// Records in the file: more than in memory once the oldest were dropped there.
    in_file: usize,
}

impl History {
    /// Reads the file, or makes it. What cannot be read is dropped: these are notes, not state.
    pub fn open(path: &Path) -> io::Result<History> {
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (records, good) = parse(&content);
        if content.len() > good || good == 0 {
            durable_write(path, if good == 0 { &START } else { &content[..good] })?;
        }
        let mut history = History {
            path: path.to_owned(),
            file: append_to(path)?,
            in_file: records.len(),
            names: records.iter().map(name).collect(),
            records: records.into(),
        };
        history.cut_back()?;
        Ok(history)
    }

    /// The events in the file, for a process that does not own it: nothing is written or mended, so the owner may
    /// go on appending meanwhile.
    pub fn read(path: &Path) -> io::Result<Vec<EventRecord>> {
        match fs::read(path) {
            Ok(content) => Ok(parse(&content).0),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// The events kept, oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &EventRecord> + ExactSizeIterator {
        self.records.iter()
    }

    /// Adds an event and writes it, without waiting for the disk. False if it is known already.
    pub fn append(&mut self, record: EventRecord) -> io::Result<bool> {
        if self.names.contains(&name(&record)) {
            return Ok(false);
        }
        let bytes = encode(&record)?;
        self.names.insert(name(&record));
        self.records.push_back(record);
        self.in_file += 1;
        if self.records.len() > LIMIT {
            self.drop_oldest();
        }
        if let Err(e) = self.file.write_all(&bytes) {
            // It may be there in part: the next sync writes the file anew.
            self.in_file = usize::MAX / 2;
            return Err(e);
        }
        Ok(true)
    }

    /// Waits until everything is on disk, and cuts the file back if it has grown too large. Not for the
    /// controller's hot path.
    pub fn sync(&mut self) -> io::Result<()> {
        self.cut_back()?;
        self.file.sync_data()
    }

    fn cut_back(&mut self) -> io::Result<()> {
        if self.in_file <= LIMIT {
            return Ok(());
        }
        self.drop_oldest();
        let mut content = START.to_vec();
        for record in &self.records {
            content.extend(encode(record)?);
        }
        durable_write(&self.path, &content)?;
        self.file = append_to(&self.path)?;
        self.in_file = self.records.len();
        Ok(())
    }

    fn drop_oldest(&mut self) {
        while self.records.len() > KEEP {
            if let Some(record) = self.records.pop_front() {
                self.names.remove(&name(&record));
            }
        }
    }
}

fn name(record: &EventRecord) -> Name {
    (record.node, record.incarnation, record.seq)
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn encode(record: &EventRecord) -> io::Result<Vec<u8>> {
    let body = wire::pack(record).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(8 + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The records, each once, and the length of the part of `content` that could be read.
fn parse(content: &[u8]) -> (Vec<EventRecord>, usize) {
    let (mut records, mut names) = (Vec::new(), BTreeSet::new());
    let Some(mut rest) = content.strip_prefix(&START) else { return (records, 0) };
    while let Some((record, after)) = next_record(rest) {
        if names.insert(name(&record)) {
            records.push(record);
        }
        rest = after;
    }
    (records, content.len() - rest.len())
}

fn next_record(bytes: &[u8]) -> Option<(EventRecord, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let intact = crc32c::crc32c(body) == u32::from_le_bytes(*crc);
    if !intact {
        return None;
    }
    Some((wire::unpack(body).ok()?, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use biha_core::{Event, EventKind, Term};

    use super::*;

    fn record(seq: u32) -> EventRecord {
        EventRecord {
            node: NodeId(1),
            incarnation: Incarnation(1),
            seq,
            at: 1_700_000_000_000_000 + i64::from(seq),
            event: Event {
                kind: EventKind::Started,
                term: Term(1),
                leader: None,
                position: None,
                cause: "because".to_owned(),
                steps: Vec::new(),
            },
        }
    }

    fn seqs(history: &History) -> Vec<u32> {
        history.records().map(|r| r.seq).collect()
    }

    #[test]
    fn events_outlive_the_process_and_are_kept_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let mut history = History::open(&path).unwrap();
        assert!(history.append(record(1)).unwrap());
        assert!(history.append(record(2)).unwrap());
        assert!(!history.append(record(1)).unwrap(), "known already");
        history.sync().unwrap();
        let mut history = History::open(&path).unwrap();
        assert_eq!(seqs(&history), [1, 2]);
        assert!(!history.append(record(2)).unwrap(), "known from the file");
        assert!(history.append(record(3)).unwrap());
        assert_eq!(seqs(&History::open(&path).unwrap()), [1, 2, 3]);
    }

    #[test]
    fn every_torn_end_is_dropped_and_the_file_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let mut history = History::open(&path).unwrap();
        for seq in 1..=3 {
            history.append(record(seq)).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut history = History::open(&path).unwrap();
            let kept = seqs(&history);
            assert!(kept == [1, 2, 3][..kept.len()] && kept.len() < 3, "cut at {cut}: {kept:?}");
            history.append(record(9)).unwrap();
            let again = History::open(&path).unwrap();
            assert_eq!(seqs(&again).last(), Some(&9), "cut at {cut}");
            assert_eq!(again.records().len(), kept.len() + 1, "cut at {cut}");
        }
    }

    #[test]
    fn the_newest_thousand_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let mut history = History::open(&path).unwrap();
        for seq in 0..2000 {
            history.append(record(seq)).unwrap();
        }
        history.sync().unwrap();
        assert_eq!(history.records().len(), 2000);
        history.append(record(2000)).unwrap();
        assert_eq!(seqs(&history), (1001..=2000).collect::<Vec<_>>());
        assert_eq!(parse(&fs::read(&path).unwrap()).0.len(), 2001, "appending does not rewrite the file");
        history.sync().unwrap();
        assert_eq!(parse(&fs::read(&path).unwrap()).0.len(), 1000);
        history.append(record(2001)).unwrap();
        assert_eq!(seqs(&History::open(&path).unwrap()).last(), Some(&2001));
    }

    #[test]
    fn a_file_of_another_kind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        fs::write(&path, b"something else").unwrap();
        assert_eq!(History::open(&path).unwrap().records().len(), 0);
    }
}
