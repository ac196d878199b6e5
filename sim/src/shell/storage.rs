//! A storage node's core over a simulated disk.

use storage::{Action, CoreConfig, Event, Limits, Outcome, Payload, Storage};
use wire::{Message, PeerId};

use super::{Frames, Identity, Outside, RECEIPT_KEY};
use crate::disk::{StorageDisk, StorageWork};
use crate::network;

#[derive(Debug)]
pub struct StorageShell {
    pub core: Storage,
    pub disk: StorageDisk,
    payloads: u64,
}

impl StorageShell {
    pub fn start(identity: &Identity, mut disk: StorageDisk, outside: &Outside<'_>) -> Self {
        disk.start();
        let config = CoreConfig {
            node: identity.node,
            boot: identity.boot,
            name: identity.name.clone(),
            endpoint: network::endpoint(identity.host),
            bulk_endpoint: String::new(),
            public_key: identity.key,
            pid: 1,
            cpus_milli: 1_000,
            memory: 1 << 30,
            receipt_key: RECEIPT_KEY,
            masters: identity.masters.iter().map(|host| (network::server(*host), network::endpoint(*host))).collect(),
            limits: Limits::default(),
        };
        Self { core: Storage::new(config, outside.now), disk, payloads: 0 }
    }

    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        let Some((first, content)) = frames.split_first() else { return };
        match Message::decode(first) {
            Ok(message) => {
                self.payloads += 1;
                let number = self.payloads;
                let payload = content.first().map(|bytes| Payload { number, length: bytes.len() as u64 });
                self.step(Event::Received { from, message, payload }, content, outside);
            }
            Err(error) => self.step(Event::Malformed { from, error }, &[], outside),
        }
    }

    pub fn due(&mut self, number: u64, outside: &mut Outside<'_>) {
        let StorageWork { ticket, outcome, content } = self.disk.perform(number);
        debug_assert!(content.is_empty() || matches!(outcome, Outcome::Read { .. }), "only reads bring content");
        self.step(Event::Performed { ticket, outcome }, &content, outside);
    }

    pub fn tick(&mut self, outside: &mut Outside<'_>) {
        self.step(Event::Tick, &[], outside);
    }

    /// `content` is what came with the event: a payload, or what was read.
    fn step(&mut self, event: Event<'_>, content: &[Vec<u8>], outside: &mut Outside<'_>) {
        let mut actions = Vec::new();
        self.core.step(event, outside.now, &mut actions);
        for action in actions {
            match action {
                Action::Send { to, frame } => outside.send(to, frame),
                Action::SendContent { to, frame, .. } => {
                    let mut frames: Frames = vec![frame];
                    frames.extend_from_slice(content);
                    outside.sent.push((to, frames));
                }
                Action::Order { ticket, order } => {
                    let payload = content.first().cloned().unwrap_or_default();
                    let number = self.disk.order(ticket, order, payload);
                    let at = self.disk.ready_at(outside.now, outside.disk_pace.draw(outside.chance));
                    outside.due.push((at, number));
                }
            }
        }
    }

    pub fn crash(mut self, outside: &mut Outside<'_>) -> StorageDisk {
        self.disk.crash(outside.chance);
        self.disk
    }
}
