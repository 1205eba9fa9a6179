//! Reads the WAL in pg_wal, or in another directory, record by record, with PostgreSQL's own reader and its checks.
//! Nothing is taken from counters in shared memory: those both under- and overstate what is on disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr;

use biha_core::{HistoryEntry, Lsn};
use pgrx::pg_sys;

use crate::lost;
use crate::pg::xlog;

/// Size of a WAL page.
const PAGE: u64 = pg_sys::XLOG_BLCKSZ as u64;
/// `sizeof(XLogPageHeaderData)` and `sizeof(XLogLongPageHeaderData)`.
const PAGE_HEADERS: [u64; 2] = [24, 40];

/// Segments that a record may span; PostgreSQL makes none longer than 1 GB.
const LONGEST: u64 = 64;

/// A complete and valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends, and the next one may begin.
    pub end: Lsn,
    /// It is a shutdown checkpoint: the last record of a server that was stopped cleanly.
    pub shutdown_checkpoint: bool,
}

/// What a record says of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The transaction's number, of a prepared one its own.
    pub xid: u32,
    /// When it happened, in microseconds since 2000.
    pub time: i64,
    /// What happened.
    pub kind: Kind,
}

/// What happened to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was committed.
    Commit,
    /// It was prepared for a two-phase commit.
    Prepare,
    /// It had been prepared, and was committed.
    CommitPrepared,
}

impl Kind {
    /// The name users read.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Commit => "commit",
            Kind::Prepare => "prepare",
            Kind::CommitPrepared => "commit prepared",
        }
    }
}

/// Where the pages come from.
struct Source {
    directory: PathBuf,
    /// Oldest first.
    history: Vec<HistoryEntry>,
    segment_size: u64,
    open: Option<(u64, File)>,
}

impl Source {
    /// The file that holds a segment.
    fn segment(&mut self, number: u64) -> Option<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            let size = self.segment_size;
            let name = lost::segment_name(&self.history, number, size)?;
            self.open = Some((number, File::open(self.directory.join(name)).ok()?));
        }
        self.open.as_ref().map(|(_, file)| file)
    }

    fn read_page(&mut self, page: u64, buffer: &mut [u8]) -> bool {
        let size = self.segment_size;
        self.segment(page / size).is_some_and(|file| file.read_exact_at(buffer, page % size).is_ok())
    }
}

/// PostgreSQL's `page_read` callback. It raises no ERROR.
///
/// # Safety
/// `private_data` is the reader's [`Source`]; `buffer` has room for a page.
unsafe extern "C-unwind" fn read_page(
    state: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    _wanted: i32,
    _record: pg_sys::XLogRecPtr,
    buffer: *mut std::ffi::c_char,
) -> i32 {
    // SAFETY: as the caller promises; nothing else refers to the source meanwhile.
    let (source, buffer) = unsafe {
        let source = &mut *(*state).private_data.cast::<Source>();
        (source, std::slice::from_raw_parts_mut(buffer.cast::<u8>(), PAGE as usize))
    };
    if source.read_page(page, buffer) { PAGE as i32 } else { -1 }
}

/// Reads the records of one history.
pub struct WalReader {
    state: *mut pg_sys::XLogReaderState,
    source: *mut Source,
}

impl WalReader {
    /// A reader of this history, oldest timeline first. `None` without memory.
    pub fn new(history: Vec<HistoryEntry>) -> Option<Self> {
        Self::of_directory("pg_wal".into(), history)
    }

    /// [`WalReader::new`], of the segments in another directory.
    pub fn of_directory(directory: PathBuf, history: Vec<HistoryEntry>) -> Option<Self> {
        let source = Source { directory, history, segment_size: xlog::segment_size(), open: None };
        let source = Box::into_raw(Box::new(source));
        let mut routine =
            pg_sys::XLogReaderRoutine { page_read: Some(read_page), segment_open: None, segment_close: None };
        // SAFETY: the routine is copied; the source lives as long as the reader (see `drop`).
        let state = unsafe {
            pg_sys::XLogReaderAllocate(pg_sys::wal_segment_size, ptr::null(), &mut routine, source.cast())
        };
        let reader = WalReader { state, source };
        if state.is_null() {
            return None;
        }
        // SAFETY: just allocated. With the identifier set, segments of another cluster are not valid.
        unsafe { (*state).system_identifier = pg_sys::GetSystemIdentifier() };
        Some(reader)
    }

    /// The next record, or `None` where the valid WAL ends.
    pub fn next(&mut self) -> Option<Record> {
        let mut message = ptr::null_mut();
        // SAFETY: the state is this reader's own, and placed at a record; the record returned is valid until
        // the next call, and only its header is looked at.
        unsafe {
            let record = pg_sys::XLogReadRecord(self.state, &mut message);
            if record.is_null() {
                return None;
            }
            let kind = u32::from((*record).xl_info) & !pg_sys::XLR_INFO_MASK;
            Some(Record {
                start: Lsn((*self.state).ReadRecPtr),
                end: Lsn((*self.state).EndRecPtr),
                shutdown_checkpoint: u32::from((*record).xl_rmid) == pg_sys::RmgrIds::RM_XLOG_ID
                    && kind == pg_sys::XLOG_CHECKPOINT_SHUTDOWN,
            })
        }
    }

    /// What the record last returned says of a transaction, if it does.
    pub fn transaction(&self) -> Option<Transaction> {
        // SAFETY: the state is this reader's own; the record it holds is valid until the next one is read, its data
        // are what PostgreSQL itself passes to the functions that parse them, and those only read.
        unsafe {
            let record = (*self.state).record;
            if record.is_null() || u32::from((*record).header.xl_rmid) != pg_sys::RmgrIds::RM_XACT_ID {
                return None;
            }
            let (info, data) = ((*record).header.xl_info, (*record).main_data);
            let kind = match u32::from(info) & pg_sys::XLOG_XACT_OPMASK {
                pg_sys::XLOG_XACT_COMMIT => Kind::Commit,
                pg_sys::XLOG_XACT_COMMIT_PREPARED => Kind::CommitPrepared,
                pg_sys::XLOG_XACT_PREPARE => {
                    let prepared = data.cast::<pg_sys::xl_xact_prepare>().read_unaligned();
                    let (xid, time) = (prepared.xid.into_inner(), prepared.prepared_at);
                    return Some(Transaction { xid, time, kind: Kind::Prepare });
                }
                _ => return None,
            };
            let mut parsed = pg_sys::xl_xact_parsed_commit::default();
            pg_sys::ParseCommitRecord(info, data.cast(), &mut parsed);
            let xid = match kind {
                Kind::CommitPrepared => parsed.twophase_xid,
                _ => (*record).header.xl_xid,
            };
            Some(Transaction { xid: xid.into_inner(), time: parsed.xact_time, kind })
        }
    }

    /// Places the reader at the first record that begins at `position`, the end of a record, or after it. Nothing
    /// vouches for that record; where `position` is a fork on this history, the fork does. False if there is none.
    pub fn seek_first(&mut self, position: Lsn) -> bool {
        // SAFETY: the state is this reader's own; position 0 is not valid for the reader. Returns 0 if no record is
        // found.
        unsafe { pg_sys::XLogFindNextRecord(self.state, position.0.max(xlog::segment_size())) != 0 }
    }

    /// Places the reader so that [`WalReader::next`] returns the record after `position`, which must be the
    /// end of a record, and returns that record. It is reached by reading up to it: only so is the next
    /// one's link to it checked, without which old content of a recycled file may look like a record.
    pub fn seek(&mut self, position: Lsn) -> Option<Record> {
        let size = xlog::segment_size();
        let page = position.0.saturating_sub(1) / PAGE * PAGE;
        let segment = page / size * size;
        // Most records are short: a few pages will do. A segment left by a switch is empty but for its
        // beginning, and a long record may have begun in an earlier one.
        let pages =
            (0..).map(|n| (1_u64 << n) - 1).map(|n| n * PAGE).take_while(|back| segment + back < page);
        let segments = (0..=LONGEST).map_while(|n| segment.checked_sub(n * size));
        pages.map(|back| page - back).chain(segments).find_map(|from| self.read_up_to(Lsn(from), position))
    }

    /// Places the reader at the first record of a segment, whose predecessor may be gone (a base backup
    /// begins so). False if `position` is elsewhere.
    pub fn seek_segment_start(&mut self, position: Lsn) -> bool {
        let offset = position.0 % xlog::segment_size();
        let first = offset == 0 || offset == PAGE_HEADERS[1];
        if first {
            // SAFETY: the state is this reader's own; the position is where a record may begin.
            unsafe { pg_sys::XLogBeginRead(self.state, position.0) };
        }
        first
    }

    /// Reads from the first record at or after `start` to the one that ends at `position`.
    fn read_up_to(&mut self, start: Lsn, position: Lsn) -> Option<Record> {
        // Position 0 is not valid for the reader.
        let start = start.0.max(xlog::segment_size());
        // SAFETY: the state is this reader's own. Returns 0 if no record is found.
        if unsafe { pg_sys::XLogFindNextRecord(self.state, start) } == 0 {
            return None;
        }
        loop {
            let record = self.next()?;
            if same_place(record.end.0, position.0) {
                return Some(record);
            }
            if record.end > position {
                return None;
            }
        }
    }
}

/// Are these the same place in the WAL? At a page's start a record's end is given before the page's header,
/// and a redo point behind it.
fn same_place(end: u64, position: u64) -> bool {
    end == position
        || (end.is_multiple_of(PAGE) && PAGE_HEADERS.iter().any(|header| end + header == position))
}

impl Drop for WalReader {
    fn drop(&mut self) {
        // SAFETY: both were made in `new`, and nothing refers to them any more.
        unsafe {
            if !self.state.is_null() {
                pg_sys::XLogReaderFree(self.state);
            }
            drop(Box::from_raw(self.source));
        }
    }
}
