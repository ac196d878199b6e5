//! A load balancer's core: all of it is soft, so there is no disk.

use loadbalancer::core::{Action, Config, Event, LoadBalancer, Timings};
use wire::PeerId;

use super::{Identity, Outside};
use crate::network;

#[derive(Debug)]
pub struct LoadBalancerShell {
    pub core: LoadBalancer,
    /// Decisions worth a line, since somebody last took them.
    pub notes: Vec<String>,
}

impl LoadBalancerShell {
    pub fn start(identity: &Identity, outside: &Outside<'_>) -> Self {
        let config = Config {
            node: identity.node,
            boot: identity.boot,
            name: identity.name.clone(),
            endpoint: network::endpoint(identity.host),
            public_key: identity.key,
            pid: 1,
            masters: identity.masters.iter().map(|host| network::server(*host)).collect(),
            timings: Timings::default(),
        };
        Self { core: LoadBalancer::new(config, outside.now), notes: Vec::new() }
    }

    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        let Some(frame) = frames.first() else { return };
        self.step(Event::Received { from, frame }, outside);
    }

    /// The connection of a boot that is gone.
    pub fn peer_gone(&mut self, peer: PeerId, outside: &mut Outside<'_>) {
        self.step(Event::PeerGone { peer }, outside);
    }

    pub fn tick(&mut self, outside: &mut Outside<'_>) {
        self.step(Event::Tick, outside);
    }

    fn step(&mut self, event: Event<'_>, outside: &mut Outside<'_>) {
        let mut actions = Vec::new();
        self.core.step(event, outside.now, &mut actions);
        for action in actions {
            match action {
                Action::Send { to, frame } => outside.send(to, frame),
                Action::Note(note) => outside.note(&mut self.notes, || note.to_string()),
            }
        }
    }
}
