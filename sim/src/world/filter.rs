//! Takes messages off the network, for scenarios: lost, or held until they are released.

use super::World;
use crate::network::Envelope;

/// Takes messages off the network.
pub(super) struct Filter {
    pub(super) which: Box<dyn Fn(&Envelope) -> bool>,
    /// What it took, in order; `None` = it loses them.
    pub(super) held: Option<Vec<Envelope>>,
    pub(super) is_on: bool,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter(on: {}, held: {:?})", self.is_on, self.held)
    }
}

/// A filter of a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterId(usize);

impl World {
    /// From now on keeps what `which` picks of what is sent, until it is released.
    pub fn hold(&mut self, which: impl Fn(&Envelope) -> bool + 'static) -> FilterId {
        self.filters.push(Filter { which: Box::new(which), held: Some(Vec::new()), is_on: true });
        FilterId(self.filters.len() - 1)
    }

    /// From now on loses what `which` picks of what is sent.
    pub fn lose(&mut self, which: impl Fn(&Envelope) -> bool + 'static) -> FilterId {
        self.filters.push(Filter { which: Box::new(which), held: None, is_on: true });
        FilterId(self.filters.len() - 1)
    }

    /// What a filter holds.
    pub fn held(&self, filter: FilterId) -> &[Envelope] {
        self.filters[filter.0].held.as_deref().unwrap_or_default()
    }

    /// Ends a filter; what it holds arrives now, in order.
    pub fn release(&mut self, filter: FilterId) {
        self.filters[filter.0].is_on = false;
        for envelope in self.filters[filter.0].held.take().unwrap_or_default() {
            self.network.deliver(envelope, self.now);
        }
    }

    /// Ends a filter; what it holds never arrives.
    pub fn forget(&mut self, filter: FilterId) {
        self.filters[filter.0].is_on = false;
    }
}
