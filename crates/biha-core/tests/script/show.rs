//! Outputs as lines of a scenario.

use biha_core::*;

use crate::sim::describe;

/// What a write of the hard state changes.
pub fn persisted(old: &HardState, new: &HardState) -> String {
    let mut changes = Vec::new();
    let mut note = |name: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("{name} {new}"));
        }
    };
    let option = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    note("incarnation", old.incarnation.to_string(), new.incarnation.to_string());
    note("term", old.term.to_string(), new.term.to_string());
    let vote = |h: &HardState| option(h.voted_for.map(|id| format!("n{id}")));
    note("vote", vote(old), vote(new));
    note("longest promise", old.longest_promise.to_string(), new.longest_promise.to_string());
    let bound = |h: &HardState| option(h.lower_bound.map(|p| p.to_string()));
    note("lower bound", bound(old), bound(new));
    note("rewind", format!("{:?}", old.rewind), format!("{:?}", new.rewind));
    let error = |h: &HardState| option(h.error.as_ref().map(|e| e.kind.name().to_owned()));
    note("error", error(old), error(new));
    let intent = |h: &HardState| {
        option(
            h.promotion.map(|p| format!("to {} with placeholders from {}", p.timeline, p.first_placeholder)),
        )
    };
    note("promotion", intent(old), intent(new));
    let timelines = |h: &HardState| {
        h.timelines
            .iter()
            .map(|(t, e)| format!("{t} by n{} at {}", e.leader, e.fork))
            .collect::<Vec<_>>()
            .join(", ")
    };
    note("timelines", timelines(old), timelines(new));
    let met = |h: &HardState| {
        let said = |(id, m): (&NodeId, &Met)| {
            let vote = m.voted_for.map_or_else(String::new, |v| format!(" votes for n{v}"));
            format!("n{id} life {} term {}{vote}", m.incarnation, m.term)
        };
        h.met.iter().filter(|(id, m)| old.met.get(id) != Some(m)).map(said).collect::<Vec<_>>().join(", ")
    };
    note("met", met(old), met(new));
    if changes.is_empty() { "persist".to_owned() } else { format!("persist: {}", changes.join(", ")) }
}

pub fn show(output: &Output) -> String {
    match output {
        Output::Persist(_) => "persist".to_owned(),
        Output::PersistConfig(config) => {
            format!("persist configuration {}.{}", config.version.term, config.version.seq)
        }
        Output::Send(envelope) => {
            format!("to n{} in term {}: {}", envelope.to, envelope.term, describe(&envelope.message))
        }
        Output::Gate(0) => "gate shut".to_owned(),
        Output::Gate(until) => format!("gate open until {until}"),
        Output::Order(_, order) => format!("order {order:?}"),
        Output::Reply(request, Ok(())) => format!("answer to request {request}: done"),
        Output::Reply(request, Err(error)) => match error {
            CommandError::Invalid { text, hint } if !hint.is_empty() => {
                format!("answer to request {request}: ERROR: {text} HINT: {hint}")
            }
            _ => format!("answer to request {request}: ERROR: {error}"),
        },
        Output::Event(event) => format!("event {}: {}", event.kind.name(), event.cause),
        Output::Remember(record) => format!("remember {}", record.event.kind.name()),
    }
}
