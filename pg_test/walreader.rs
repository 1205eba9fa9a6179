//! The end of the local WAL, read from the server's own files.

#[pgrx::pg_schema]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;

    use biha_core::{HistoryEntry, Lsn};
    use pgrx::prelude::*;

    use crate::pg::walreader::{Record, WalReader};

    /// A timeline that nothing else knows, for damaged copies of segments.
    const COPY: u32 = 0xFFFF_FFF0;
    const SEGMENT: u64 = 16 * 1024 * 1024;

    fn lsn(query: &str) -> Lsn {
        let text: String = Spi::get_one(&format!("SELECT ({query})::text")).unwrap().unwrap();
        let (high, low) = text.split_once('/').unwrap();
        Lsn(u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap())
    }

    /// Writes some records into a fresh segment, which no other of these tests leaves meanwhile; their limits.
    fn some_wal() -> (Lsn, Lsn) {
        Spi::run("SELECT pg_advisory_xact_lock(1)").unwrap();
        Spi::run("SELECT pg_switch_wal()").unwrap();
        Spi::run("CREATE TABLE wal_of_this_test (a int)").unwrap();
        let start = lsn("pg_current_wal_insert_lsn()");
        Spi::run("INSERT INTO wal_of_this_test SELECT generate_series(1, 1000)").unwrap();
        Spi::run("CHECKPOINT").unwrap();
        (start, lsn("pg_current_wal_flush_lsn()"))
    }

    fn reader(timeline: u32) -> WalReader {
        WalReader::new(vec![HistoryEntry { timeline, fork: Lsn(0) }]).unwrap()
    }

    fn read_on(timeline: u32, from: Lsn) -> Vec<Record> {
        let mut reader = reader(timeline);
        let before = reader.seek(from).expect("the record before must be found");
        assert_eq!(before.end, from);
        std::iter::from_fn(|| reader.next()).collect()
    }

    fn segment(timeline: u32, lsn: Lsn) -> String {
        format!("pg_wal/{timeline:08X}{:08X}{:08X}", lsn.0 >> 32, (lsn.0 & 0xFFFF_FFFF) / SEGMENT)
    }

    /// A copy of the segment that both positions lie in, as a timeline of its own.
    fn copy(start: Lsn, end: Lsn) -> fs::File {
        assert_eq!(start.0 / SEGMENT, end.0 / SEGMENT, "the test's records do not fit into one segment");
        fs::copy(segment(1, start), segment(COPY, start)).unwrap();
        OpenOptions::new().read(true).write(true).open(segment(COPY, start)).unwrap()
    }

    /// What is read of the damaged copy, after the copy has been removed.
    fn read_copy(start: Lsn) -> Vec<Record> {
        let records = read_on(COPY, start);
        fs::remove_file(segment(COPY, start)).unwrap();
        records
    }

    #[pg_test]
    fn reads_to_the_end_of_what_was_flushed() {
        let (start, end) = some_wal();
        let records = read_on(1, start);
        assert!(records.len() > 1000, "{} records", records.len());
        assert!(records.last().unwrap().end >= end);
        assert!(records.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(records.iter().all(|record| !record.shutdown_checkpoint));
    }

    #[pg_test]
    fn a_torn_record_does_not_count() {
        let (start, end) = some_wal();
        let file = copy(start, end);
        let intact = read_on(1, start);
        let torn = intact[500];
        file.write_all_at(&[0xFF], torn.end.0 % SEGMENT - 9).unwrap();
        assert_eq!(read_copy(start).last(), Some(&intact[499]));
    }

    #[pg_test]
    fn old_content_of_a_recycled_file_does_not_count() {
        let (start, end) = some_wal();
        let file = copy(start, end);
        let intact = read_on(1, start);
        // The end is after record 500; behind it stands, whole, an older record.
        let (last, old) = (intact[500], intact[100]);
        let mut content = vec![0; (old.end.0 - old.start.0) as usize];
        file.read_exact_at(&mut content, old.start.0 % SEGMENT).unwrap();
        file.write_all_at(&content, last.end.0 % SEGMENT).unwrap();
        assert_eq!(read_copy(start).last(), Some(&last));
        // Also where it would be the first record to be read.
        let file = copy(start, end);
        file.write_all_at(&content, last.end.0 % SEGMENT).unwrap();
        assert_eq!(read_copy_from(start, last.end), []);
    }

    fn read_copy_from(start: Lsn, from: Lsn) -> Vec<Record> {
        let records = read_on(COPY, from);
        fs::remove_file(segment(COPY, start)).unwrap();
        records
    }

    #[pg_test]
    fn the_end_of_a_record_is_found_behind_a_switch() {
        let (_, end) = some_wal();
        Spi::run("SELECT pg_switch_wal()").unwrap();
        let next = Lsn((end.0 / SEGMENT + 1) * SEGMENT);
        assert_eq!(reader(1).seek(next).map(|record| record.end), Some(next));
    }
}
