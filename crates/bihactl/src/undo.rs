//! Takes back what a failed command has done, last first.

use anyhow::Result;

use crate::{interrupt, ui};

/// How to take back a step.
struct Action {
    /// Completes "could not …".
    what: String,
    /// What was done before cannot be taken back without.
    needed: bool,
    run: Box<dyn FnOnce() -> Result<()>>,
}

/// What has been done and can be taken back. Dropped without [`Undo::keep`], it takes everything back.
#[derive(Default)]
pub struct Undo {
    actions: Vec<Action>,
}

impl Undo {
    /// Remembers how to take back a step. `what` completes "could not …", for the case that it fails.
    pub fn push(&mut self, what: impl Into<String>, action: impl FnOnce() -> Result<()> + 'static) {
        self.actions.push(Action { what: what.into(), needed: false, run: Box::new(action) });
    }

    /// As [`Undo::push`]; if it fails nothing that was done before is touched.
    pub fn push_needed(&mut self, what: impl Into<String>, action: impl FnOnce() -> Result<()> + 'static) {
        self.actions.push(Action { what: what.into(), needed: true, run: Box::new(action) });
    }

    /// All is done: nothing is taken back any more.
    pub fn keep(&mut self) {
        self.actions.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.actions.is_empty() {
            ui::say("taking back what was done");
            interrupt::ignore();
        }
        while let Some(Action { what, needed, run }) = self.actions.pop() {
            let Err(error) = run() else { continue };
            ui::warn(&format!("could not {what}: {error:#}"), "");
            if needed {
                let left: Vec<String> = self.actions.drain(..).rev().map(|action| action.what).collect();
                if !left.is_empty() {
                    ui::warn(
                        "what was done before is left as it is",
                        &format!("To do: {}.", left.join("; ")),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use anyhow::anyhow;

    use super::*;

    #[test]
    fn last_is_first_and_one_failure_stops_nothing() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for n in 1..=3 {
            let seen = Rc::clone(&seen);
            undo.push("count", move || {
                seen.borrow_mut().push(n);
                if n == 2 { Err(anyhow!("two")) } else { Ok(()) }
            });
        }
        drop(undo);
        assert_eq!(*seen.borrow(), [3, 2, 1]);
    }

    #[test]
    fn nothing_is_touched_that_needs_what_failed() {
        let mut undo = Undo::default();
        undo.push("put files back", || panic!("was put back"));
        undo.push_needed("stop the server", || Err(anyhow!("it runs on")));
    }

    #[test]
    fn kept_is_kept() {
        let mut undo = Undo::default();
        undo.push("never", || panic!("was taken back"));
        undo.keep();
    }
}
