//! The events kept for `biha.history()`: an append-only file that is cut back when it is opened.
//!
//! The file begins with `BIHAHIST` and a format version (2 bytes, little-endian); each record is its length
//! (4 bytes), the crc32c of its body (4 bytes), and the body. A torn end, as a crash leaves it, is dropped.
//!
//! Whoever notes an event must not wait for a disk that hangs: [`History`] is in memory only, and [`HistoryFile`]
//! is for a thread that may wait.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use biha_core::{EventRecord, Incarnation, NodeId, wire};

use crate::durable_write;

/// Records kept when there are too many.
const KEEP: usize = 1000;
/// As many are too many, in memory and when the file is opened.
const LIMIT: usize = 2000;
/// How long a disk that has refused a record is left alone.
const RETRY: Duration = Duration::from_secs(1);

const START: [u8; 10] = *b"BIHAHIST\x01\0";

type Name = (NodeId, Incarnation, u32);

/// The events, in the order in which this node learned of them.
#[derive(Debug)]
pub struct History {
    records: VecDeque<EventRecord>,
    names: BTreeSet<Name>,
    queue: Arc<Queue>,
}

/// Where the events are written. Waits for the disk.
#[derive(Debug)]
pub struct HistoryFile {
    file: File,
    /// Length of what is known to be whole.
    good: u64,
    queue: Arc<Queue>,
}

/// What is noted and not yet written.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Vec<u8>>,
    /// The first record is being written.
    busy: bool,
    failing: bool,
    failure: Option<io::Error>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record to be written next.
    fn next(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        loop {
            if let Some(bytes) = waiting.records.pop_front() {
                waiting.busy = true;
                return bytes;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What came of it. A record that was refused waits on, unless too many wait.
    fn done(&self, bytes: Vec<u8>, result: io::Result<()>) {
        let mut waiting = self.lock();
        waiting.busy = false;
        let failed = result.is_err();
        if let Err(error) = result {
            if !waiting.failing {
                waiting.failure = Some(error);
            }
            if waiting.records.len() < LIMIT {
                waiting.records.push_front(bytes);
            }
        }
        waiting.failing = failed;
        self.changed.notify_all();
    }
}

impl History {
    /// Reads the file, or makes it. What cannot be read is dropped: these are notes, not state.
    pub fn open(path: &Path) -> io::Result<(History, HistoryFile)> {
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (records, good) = parse(&content);
        let mut history = History {
            names: records.iter().map(name).collect(),
            records: records.into(),
            queue: Arc::default(),
        };
        if history.drop_oldest() {
            let mut kept = START.to_vec();
            for record in &history.records {
                kept.extend(encode(record)?);
            }
            durable_write(path, &kept)?;
        } else if content.len() > good || good == 0 {
            durable_write(path, if good == 0 { &START } else { &content[..good] })?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.sync_data()?;
        let good = file.metadata()?.len();
        let queue = history.queue.clone();
        Ok((history, HistoryFile { file, good, queue }))
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

    /// Adds an event, to be written soon. False if it is known already.
    pub fn append(&mut self, record: EventRecord) -> io::Result<bool> {
        if self.names.contains(&name(&record)) {
            return Ok(false);
        }
        let bytes = encode(&record)?;
        self.names.insert(name(&record));
        self.records.push_back(record);
        self.drop_oldest();
        let mut waiting = self.queue.lock();
        if waiting.records.len() >= LIMIT {
            waiting.records.pop_front();
        }
        waiting.records.push_back(bytes);
        self.queue.changed.notify_all();
        Ok(true)
    }

    /// Waits until everything is written, but not for longer than `limit`; true if it is.
    pub fn written(&self, limit: Duration) -> bool {
        let waits = |waiting: &mut Waiting| waiting.busy || !waiting.records.is_empty();
        let waited = self.queue.changed.wait_timeout_while(self.queue.lock(), limit, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Why the file could not be written, told once until it can be again.
    pub fn failure(&self) -> Option<io::Error> {
        self.queue.lock().failure.take()
    }

    fn drop_oldest(&mut self) -> bool {
        if self.records.len() <= LIMIT {
            return false;
        }
        while self.records.len() > KEEP {
            if let Some(record) = self.records.pop_front() {
                self.names.remove(&name(&record));
            }
        }
        true
    }
}

impl HistoryFile {
    /// Writes whatever is noted, as soon as the disk takes it. Does not return.
    pub fn write_for_ever(mut self) {
        loop {
            if !self.write_next() {
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Waits for the next record and writes it; false if the disk refuses it.
    pub fn write_next(&mut self) -> bool {
        let bytes = self.queue.next();
        let result = self.write(&bytes);
        let well = result.is_ok();
        self.queue.done(bytes, result);
        well
    }

    /// What an attempt that failed has left is cut off, or nothing behind it could be read.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.len() != self.good {
            self.file.set_len(self.good)?;
        }
        self.file.write_all(bytes)?;
        self.good += bytes.len() as u64;
        Ok(())
    }
}

fn name(record: &EventRecord) -> Name {
    (record.node, record.incarnation, record.seq)
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

    fn opened(path: &Path) -> History {
        History::open(path).unwrap().0
    }

    #[test]
    fn events_outlive_the_process_and_are_kept_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let (mut history, mut file) = History::open(&path).unwrap();
        assert!(history.append(record(1)).unwrap());
        assert!(history.append(record(2)).unwrap());
        assert!(!history.append(record(1)).unwrap(), "known already");
        assert!(file.write_next() && file.write_next());
        let (mut history, mut file) = History::open(&path).unwrap();
        assert_eq!(seqs(&history), [1, 2]);
        assert!(!history.append(record(2)).unwrap(), "known from the file");
        assert!(history.append(record(3)).unwrap());
        assert!(file.write_next());
        assert_eq!(seqs(&opened(&path)), [1, 2, 3]);
    }

    #[test]
    fn every_torn_end_is_dropped_and_the_file_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let (mut history, mut file) = History::open(&path).unwrap();
        for seq in 1..=3 {
            history.append(record(seq)).unwrap();
            assert!(file.write_next());
        }
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut history, mut file) = History::open(&path).unwrap();
            let kept = seqs(&history);
            assert!(kept == [1, 2, 3][..kept.len()] && kept.len() < 3, "cut at {cut}: {kept:?}");
            history.append(record(9)).unwrap();
            assert!(file.write_next());
            let again = opened(&path);
            assert_eq!(seqs(&again).last(), Some(&9), "cut at {cut}");
            assert_eq!(again.records().len(), kept.len() + 1, "cut at {cut}");
        }
    }

    #[test]
    fn what_a_failed_write_has_left_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let (mut history, mut file) = History::open(&path).unwrap();
        history.append(record(1)).unwrap();
        assert!(file.write_next());
        file.file.write_all(&[7; 5]).unwrap();
        history.append(record(2)).unwrap();
        assert!(file.write_next());
        assert_eq!(seqs(&opened(&path)), [1, 2]);
    }

    #[test]
    fn nobody_waits_for_a_disk_that_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let (mut history, mut file) = History::open(&path).unwrap();
        let well = std::mem::replace(&mut file.file, File::open(&path).unwrap());
        for seq in 0..=LIMIT as u32 {
            history.append(record(seq)).unwrap();
        }
        assert!(!history.written(Duration::from_millis(1)));
        assert!(!file.write_next() && !file.write_next());
        assert!(history.failure().is_some());
        assert!(history.failure().is_none(), "told once");
        file.file = well;
        for _ in 0..LIMIT {
            assert!(file.write_next());
        }
        assert!(history.written(Duration::ZERO));
        assert_eq!(seqs(&opened(&path)), (1..=LIMIT as u32).collect::<Vec<_>>(), "the oldest is dropped");
    }

    #[test]
    fn the_newest_thousand_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        let (mut history, mut file) = History::open(&path).unwrap();
        for seq in 0..2000 {
            history.append(record(seq)).unwrap();
            assert!(file.write_next());
        }
        assert_eq!(history.records().len(), 2000);
        history.append(record(2000)).unwrap();
        assert!(file.write_next());
        assert_eq!(seqs(&history), (1001..=2000).collect::<Vec<_>>());
        assert_eq!(parse(&fs::read(&path).unwrap()).0.len(), 2001, "appending does not rewrite the file");
        assert_eq!(seqs(&opened(&path)), (1001..=2000).collect::<Vec<_>>());
        assert_eq!(parse(&fs::read(&path).unwrap()).0.len(), 1000);
    }

    #[test]
    fn a_file_of_another_kind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("biha.history");
        fs::write(&path, b"something else").unwrap();
        assert_eq!(opened(&path).records().len(), 0);
    }
}
