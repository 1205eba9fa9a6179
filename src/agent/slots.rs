//! A physical slot for every other member, on every node: whoever leads next still has the WAL that its
//! laggards need.

use std::collections::BTreeSet;

use biha_core::{Lsn, Mode, NodeId, Position};
use pgrx::{log, warning};

use super::receiver::node_name;
use crate::board::Status;
use crate::pg::recovery;
use crate::pg::slots::{self, Slot};

/// Names of the slots that are biha's begin with this.
const PREFIX: &str = "biha_node_";

/// Keeps the slots as the members are.
#[derive(Default)]
pub struct Keeper {
    /// Slots whose loss has been reported.
    reported: BTreeSet<String>,
}

impl Keeper {
    /// Creates missing slots, drops those of nodes that are no members, and on a follower moves the others
    /// up to where their members are.
    pub fn keep(&mut self, status: &Status) {
        let follows = recovery::in_progress();
        let existing = slots::list();
        let wanted: Vec<_> = streaming_members(status).collect();
        for slot in existing.iter().filter(|slot| slot.name.starts_with(PREFIX)) {
            if !wanted.iter().any(|id| node_name(*id) == slot.name) {
                // This node's own slot is on the leader; after a change of leader an old one may be here.
                drop_slot(slot);
            } else if slot.lost {
                self.lost(slot, follows);
            } else {
                self.reported.remove(&slot.name);
            }
        }
        for id in wanted {
            match existing.iter().find(|slot| slot.name == node_name(id)) {
                None => create_slot(id),
                Some(slot) if follows && slot.user.is_none() => move_up(slot, status, id),
                Some(_) => {}
            }
        }
    }

    /// On a follower a lost slot is made anew: nobody streams through it. On the leader it stays as the
    /// evidence that its member needs a new copy.
    fn lost(&mut self, slot: &Slot, follows: bool) {
        if follows {
            drop_slot(slot);
        } else if self.reported.insert(slot.name.clone()) {
            warning!("replication slot \"{}\" has lost WAL that its node needs", slot.name);
        }
    }
}

/// The other members that receive WAL.
fn streaming_members(status: &Status) -> impl Iterator<Item = NodeId> + '_ {
    let members = status.config.members.iter();
    members.filter(|(id, member)| **id != status.node && member.mode != Mode::Referee).map(|(id, _)| *id)
}

fn create_slot(id: NodeId) {
    let name = node_name(id);
    match slots::create(&name) {
        Ok(()) => log!("created replication slot \"{name}\""),
        // A node that copies this one makes its slot itself.
        Err(_) if slots::list().iter().any(|slot| slot.name == name) => {}
        Err(text) => warning!("could not create replication slot \"{name}\": {text}"),
    }
}

fn drop_slot(slot: &Slot) {
    if slot.user.is_some() {
        return;
    }
    match slots::drop(&slot.name) {
        Ok(()) => log!("dropped replication slot \"{}\"", slot.name),
        Err(text) => warning!("could not drop replication slot \"{}\": {text}", slot.name),
    }
}

fn move_up(slot: &Slot, status: &Status, id: NodeId) {
    let member = status.members.iter().find(|member| member.id == id).and_then(|member| member.position);
    let (Some(member), Some(replayed), Some(restart)) = (member, recovery::replayed(), slot.restart) else {
        return;
    };
    let Some(to) = target(member, replayed) else { return };
    if to > restart
        && let Err(text) = slots::advance(&slot.name, to)
    {
        warning!("could not advance replication slot \"{}\": {text}", slot.name);
    }
}

/// Where a follower may let a member's slot go: not beyond its own replay, and only on the same timeline; a
/// member on another one may have to come back to the fork.
fn target(member: Position, replayed: Position) -> Option<Lsn> {
    (member.timeline == replayed.timeline).then(|| member.lsn.min(replayed.lsn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_goes_no_further_than_its_member_and_this_node() {
        let at = |timeline, lsn| Position { timeline, lsn: Lsn(lsn) };
        assert_eq!(target(at(3, 50), at(3, 90)), Some(Lsn(50)));
        assert_eq!(target(at(3, 90), at(3, 50)), Some(Lsn(50)));
        assert_eq!(target(at(2, 90), at(3, 50)), None);
    }
}
