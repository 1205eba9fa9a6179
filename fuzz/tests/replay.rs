//! Every input of the corpus, then inputs made from them, the same ones at each run: fuzzing without coverage,
//! a C++ compiler or any tool. `BIHA_FUZZ_SECONDS` says how long for each target.
#![allow(clippy::print_stdout, reason = "says how far it came")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use biha_core::wire;
use biha_fuzz::TARGETS;

/// Lengths and numbers at which something changes.
const NUMBERS: [u64; 12] =
    [0, 1, 2, 255, 256, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, 1 << 60, u64::MAX];
/// Where an image says what only it says: after magic, version, length, and the identity, twice.
const STATE_BODY: usize = 14 + 20 + 20;
const CONFIG_BODY: usize = 14;
/// Inputs that are made are no longer, in bytes.
const LONGEST: usize = 8192;

#[test]
fn frame() {
    fuzz("frame");
}

#[test]
fn channel() {
    fuzz("channel");
}

#[test]
fn statefile() {
    fuzz("statefile");
}

#[test]
fn history() {
    fuzz("history");
}

#[test]
fn magic() {
    fuzz("magic");
}

fn fuzz(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let mut corpus = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name));
    assert!(!corpus.is_empty(), "the corpus is part of the repository");
    corpus.extend(written_now(name));
    let mut trial = Trial { target, input: Vec::new(), name };
    for input in &corpus {
        trial.run(input.clone());
    }
    let seconds = std::env::var("BIHA_FUZZ_SECONDS").map_or(1, |s| s.parse().expect("a number of seconds"));
    let (start, mut made) = (Instant::now(), 0u64);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    while start.elapsed() < Duration::from_secs(seconds) {
        trial.run(random.input(&corpus));
        made += 1;
    }
    println!("{name}: {} inputs of the corpus, {made} made of them, in {:?}", corpus.len(), start.elapsed());
}

/// In the order of their names.
fn read(directory: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(directory).expect("the corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("an input")).collect()
}

/// What biha writes now, by the examples that its own tests hold to: the corpus is of all times.
fn written_now(name: &str) -> Vec<Vec<u8>> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/biha-core/tests/data");
    let begins = |path: &Path, with: &str| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(with))
    };
    let of = |with: &str| -> Vec<Vec<u8>> {
        let entries =
            fs::read_dir(&examples).expect("the examples").map(|entry| entry.expect("an entry").path());
        let mut paths: Vec<_> = entries.filter(|path| begins(path, with)).collect();
        paths.sort();
        assert!(!paths.is_empty(), "no example of {with}");
        paths.iter().map(|path| bytes_of(&fs::read_to_string(path).expect("an example"))).collect()
    };
    let body = |frame: &Vec<u8>| frame[wire::HEADER_SIZE + 8..].to_vec();
    let bodies = || of("wire-").into_iter().map(|frame| body(&frame));
    match name {
        "frame" => {
            of("wire-").into_iter().chain(bodies().map(|body| [&[0; 5][..], &body].concat())).collect()
        }
        "channel" => {
            bodies().map(|body| [&[0, 1][..], &(body.len() as u16).to_le_bytes(), &body].concat()).collect()
        }
        "statefile" => {
            let part = |image: Vec<u8>, from: usize| [&[1, 0, 0, 0], &image[from..image.len() - 4]].concat();
            let states = of("state-").into_iter().map(|image| part(image, STATE_BODY));
            states.chain(of("conf-").into_iter().map(|image| part(image, CONFIG_BODY))).collect()
        }
        _ => Vec::new(),
    }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("bytes in hexadecimal")).collect()
}

/// The input at hand is kept as a file if the target panics on it.
struct Trial<'a> {
    target: fn(&[u8]),
    input: Vec<u8>,
    name: &'a str,
}

impl Trial<'_> {
    fn run(&mut self, input: Vec<u8>) {
        self.input = input;
        (self.target)(&self.input);
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(self.name);
            let path = directory.join("crash-replay");
            let kept = fs::create_dir_all(&directory).and_then(|()| fs::write(&path, &self.input));
            println!("{}: {:?} {kept:?}", path.display(), self.input.escape_ascii().to_string());
        }
    }
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// One of the corpus, changed a few times.
    fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..1 + self.below(6) {
            let other = &corpus[self.below(corpus.len())];
            self.change(&mut input, other);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below((input.len() - at).min(64) + 1);
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 => {
                let size = [1, 2, 4, 8][self.below(4)];
                let number = NUMBERS[self.below(NUMBERS.len())].wrapping_sub(self.next() % 2);
                let bytes = &number.to_le_bytes()[..size];
                input.splice(at..(at + size).min(input.len()), bytes.iter().copied());
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let from = self.below(other.len() + 1);
                let to = from + self.below(other.len() - from + 1);
                input.splice(at..end, other[from..to].iter().copied());
            }
            6 => input.truncate(at),
            _ => input.insert(at, self.next() as u8),
        }
    }
}
