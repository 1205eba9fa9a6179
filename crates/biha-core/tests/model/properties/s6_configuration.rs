//! S6: an acknowledged change of the configuration is in the configuration of every leader of a later term (Ongaro
//! 2014, §4.1, with the correction of 2015: a new leader's own term comes first; consensus.md, "Membership and
//! parameters").

use biha_core::{ClusterConfig, Command, MemberSetting, Setting};

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "S6 no acknowledged change is lost";

pub fn holds(model: &Scenario, state: &State) -> bool {
    if state.seen.settled.is_empty() {
        return true;
    }
    state.hosts.iter().filter(|h| h.leads()).all(|h| {
        let older = state.seen.settled.iter().filter(|(_, term)| **term < h.term());
        older.into_iter().all(|(place, _)| has(&h.disk.config, &model.commands[*place]))
    })
}

/// Does the configuration say what the command asked for?
fn has(config: &ClusterConfig, command: &Command) -> bool {
    match command {
        Command::RemoveNode(id) => !config.members.contains_key(id),
        Command::AddNode(id, _) => config.members.contains_key(id),
        Command::SetMember(id, MemberSetting::Priority(priority)) => {
            config.members.get(id).is_some_and(|m| m.priority == *priority)
        }
        Command::Set(settings) => settings.iter().all(|setting| match setting {
            Setting::Minnodes(count) => config.settings.minnodes == *count,
            Setting::NoWalOnFollower(ms) => config.settings.no_wal_on_follower == *ms,
            other => unreachable!("no scenario sets {other:?}"),
        }),
        other => unreachable!("no scenario gives {other:?}"),
    }
}
