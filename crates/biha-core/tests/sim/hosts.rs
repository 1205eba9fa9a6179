//! All hosts, by number.

use std::ops::Index;

use biha_core::NodeId;

use super::Host;

/// Numbers are small and begin at 1: a place for each, found without a search.
#[derive(Debug, Default)]
pub struct Hosts {
    places: Vec<Option<Box<Host>>>,
    count: usize,
}

impl Hosts {
    pub fn insert(&mut self, id: NodeId, host: Host) {
        let place = id.0 as usize;
        if self.places.len() <= place {
            self.places.resize_with(place + 1, || None);
        }
        if self.places[place].replace(Box::new(host)).is_none() {
            self.count += 1;
        }
    }

    pub fn get(&self, id: &NodeId) -> Option<&Host> {
        self.places.get(id.0 as usize).and_then(Option::as_deref)
    }

    pub fn get_mut(&mut self, id: &NodeId) -> Option<&mut Host> {
        self.places.get_mut(id.0 as usize).and_then(Option::as_deref_mut)
    }

    /// Ascending.
    pub fn values(&self) -> impl Iterator<Item = &Host> {
        self.places.iter().filter_map(Option::as_deref)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Host> {
        self.places.iter_mut().filter_map(Option::as_deref_mut)
    }

    pub fn keys(&self) -> impl Iterator<Item = NodeId> {
        self.values().map(|host| host.id)
    }

    pub fn len(&self) -> usize {
        self.count
    }
}

impl Index<&NodeId> for Hosts {
    type Output = Host;

    fn index(&self, id: &NodeId) -> &Host {
        self.get(id).expect("a known host")
    }
}
