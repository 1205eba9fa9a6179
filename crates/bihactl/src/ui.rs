//! What the operator sees while it runs: progress and warnings on standard error, results on standard output.

use std::io::{self, Write};

/// Says what is being done.
pub fn say(text: &str) {
    tell(&format!("bihactl: {text}\n"));
}

/// Warns, with a hint on its own line.
pub fn warn(text: &str, hint: &str) {
    let hint = if hint.is_empty() { String::new() } else { format!("HINT:  {hint}\n") };
    tell(&format!("bihactl: warning: {text}\n{hint}"));
}

/// A closed terminal must not keep anything from being taken back.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints a result. A closed pipe is no error: nobody wants the rest.
pub fn result(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).is_err()
    {
        crate::interrupt::request();
    }
}
