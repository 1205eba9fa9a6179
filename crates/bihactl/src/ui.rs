//! What the operator sees while it runs: progress and warnings on standard error, results on standard output.

use std::io::{self, Write};

/// Says what is being done.
pub fn say(text: &str) {
    eprintln!("bihactl: {text}");
}

/// Warns, with a hint on its own line.
pub fn warn(text: &str, hint: &str) {
    eprintln!("bihactl: warning: {text}");
    if !hint.is_empty() {
        eprintln!("HINT:  {hint}");
    }
}

/// Prints a result. A closed pipe is no error: nobody wants the rest.
pub fn result(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).is_err()
    {
        crate::interrupt::request();
    }
}
