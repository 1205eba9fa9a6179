//! The file of events ([`biha_io::History`]): whatever is in it, it is opened, mended once, and written on.

use std::fs;
use std::sync::OnceLock;

use biha_core::{Event, EventKind, EventRecord, Incarnation, NodeId, Term};
use biha_io::History;
use tempfile::TempDir;

use crate::input::{Input, flipped};

/// The target.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.u32();
    let content = match input.byte() % 4 {
        0 => input.bytes(usize::MAX).to_vec(),
        _ => records(&mut input),
    };
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(crate::scratch).path();
    let path = &directory.join("biha.history");
    fs::write(path, &content).expect("written");
    let seen = History::read(path).expect("read");
    assert_eq!(fs::read(path).ok(), Some(content), "a reader changes nothing");
    let (mut history, mut file) = History::open(path).expect("opened");
    assert!(history.records().eq(&seen));
    assert_eq!(History::read(path).ok(), Some(seen.clone()), "mended");
    let (damaged, at) = flipped(&fs::read(path).expect("read"), choice);
    let other = directory.join("damaged");
    fs::write(&other, damaged).expect("written");
    let kept = History::read(&other).expect("read");
    assert!(seen.starts_with(&kept), "a flipped bit in byte {at}");
    let fresh = record(seen.len() as u32);
    let known =
        seen.iter().any(|r| (r.node, r.incarnation, r.seq) == (fresh.node, fresh.incarnation, fresh.seq));
    assert_eq!(history.append(fresh.clone()).expect("appended"), !known);
    if !known {
        assert!(file.write_next(), "written");
    }
    let after = History::read(path).expect("read");
    let expected: Vec<&EventRecord> = seen.iter().chain((!known).then_some(&fresh)).collect();
    assert!(after.iter().eq(expected), "the file goes on after its mended end");
}

/// Records whose checksum and length are mostly right.
fn records(input: &mut Input<'_>) -> Vec<u8> {
    let mut content = b"BIHAHIST\x01\0".to_vec();
    while !input.is_empty() {
        let kind = input.byte();
        let most = usize::from(input.u16() % 1024);
        let body = input.bytes(most);
        let length = body.len() as u32 + u32::from(kind == 1) - u32::from(kind == 2 && !body.is_empty());
        let crc = crc32c::crc32c(body) ^ u32::from(kind == 3);
        content.extend_from_slice(&length.to_le_bytes());
        content.extend_from_slice(&crc.to_le_bytes());
        content.extend_from_slice(body);
    }
    content
}

fn record(seq: u32) -> EventRecord {
    EventRecord {
        node: NodeId(7),
        incarnation: Incarnation(7),
        seq,
        at: 0,
        event: Event {
            kind: EventKind::Started,
            term: Term(1),
            leader: None,
            position: None,
            cause: "fresh".to_owned(),
            steps: Vec::new(),
        },
    }
}
