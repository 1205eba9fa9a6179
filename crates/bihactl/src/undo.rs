//! Takes back what a failed command has done, last first.

use anyhow::Result;

use crate::{interrupt, ui};

type Action = Box<dyn FnOnce() -> Result<()>>;

/// What has been done and can be taken back. Dropped without [`Undo::keep`], it takes everything back.
#[derive(Default)]
pub struct Undo {
    actions: Vec<(String, Action)>,
}

impl Undo {
    /// Remembers how to take back a step. `what` completes "could not …", for the case that it fails.
    pub fn push(&mut self, what: impl Into<String>, action: impl FnOnce() -> Result<()> + 'static) {
        self.actions.push((what.into(), Box::new(action)));
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
        while let Some((what, action)) = self.actions.pop() {
            if let Err(error) = action() {
                ui::warn(&format!("could not {what}: {error:#}"), "");
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
    fn kept_is_kept() {
        let mut undo = Undo::default();
        undo.push("never", || panic!("was taken back"));
        undo.keep();
    }
}
