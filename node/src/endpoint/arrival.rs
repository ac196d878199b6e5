//! Takes messages off the sockets, finds out who sent them, and hands on what admission lets in.

use wire::{ClientKey, ErrorCode, PeerId, Role};

use super::{Endpoint, Identity};
use crate::admission::{self, Grant, Refusal};
use crate::certificate::parse_z85;
use crate::frame::Frame;
use crate::queue::Queue;
use crate::table::Guest;
use crate::zap::AllowList;

impl Endpoint {
    /// Takes one message that came to a socket of ours: `None` = there is none, `Some(false)` = it was refused.
    pub(super) fn take_from_router(
        &mut self,
        router: usize,
        each: &mut dyn FnMut(PeerId, &Identity, Vec<Frame>),
    ) -> Option<bool> {
        // With room for the routing id and REQ's empty frame.
        let socket = &mut self.routers[router].socket;
        let routing_id = socket.receive_routing_id()?;
        let (mut frames, mut count) = if routing_id.has_more() {
            // With room for REQ's empty frame.
            socket.receive(wire::limit::FRAMES_MAX + 1).expect("libzmq hands out whole messages")
        } else {
            (Vec::new(), 0)
        };
        let has_delimiter = count > 1 && frames.first().is_some_and(|frame| frame.is_empty());
        if has_delimiter {
            frames.remove(0);
            count -= 1;
        }
        // libzmq does not put it on every routing id.
        let user = match frames.first() {
            Some(Frame::Message(message)) => message.user(),
            Some(Frame::Bytes(_) | Frame::Shared(_)) | None => "",
        };
        let peer = self.guest(router, &routing_id, user);

        let turn = self.turn;
        let guest = self.guests.get_mut(peer).expect("taken in above");
        guest.has_delimiter = has_delimiter;
        guest.heard = turn;
        let (key, bound, class) = (guest.identity.key, guest.identity.node, guest.identity.class);
        let list = self.allow_list.as_deref();
        let is_bound_elsewhere = |node| list.and_then(|list| list.owner(node)).is_some_and(|owner| owner != key);
        let first = frames.first().map_or(&[][..], |frame| frame);
        let verdict = match guest.grant {
            Some(grant) => admission::admit(first, count, grant, class, bound, is_bound_elsewhere),
            None => {
                let detail = "the certificate of this connection is no longer admitted".into();
                Err(Refusal { code: ErrorCode::NotAllowed, kind: None, detail })
            }
        };
        match verdict {
            Ok(admitted) => {
                guest.identity.node = Some(admitted.node);
                each(peer, &guest.identity, frames);
                Some(true)
            }
            Err(refusal) => {
                if !std::mem::replace(&mut guest.is_noted, true) {
                    tracing::warn!(?peer, identity = ?guest.identity, ?refusal, "message refused");
                }
                self.answer_refusal(peer, &refusal, first);
                Some(false)
            }
        }
    }

    /// Takes one message from a server that we are connected to, as `take_from_router` does.
    pub(super) fn take_from_dealer(
        &mut self,
        peer: PeerId,
        each: &mut dyn FnMut(PeerId, &Identity, Vec<Frame>),
    ) -> Option<bool> {
        let dealer = self.dealers.get_mut(&peer)?;
        let (frames, count) = dealer.socket.receive(wire::limit::FRAMES_MAX + 1)?;
        let first = frames.first().map_or(&[][..], |frame| frame);
        let (class, bound) = (dealer.identity.class, dealer.identity.node);
        match admission::admit(first, count, dealer.grant, class, bound, |_| false) {
            Ok(admitted) => {
                dealer.identity.node = Some(admitted.node);
                each(peer, &dealer.identity, frames);
                Some(true)
            }
            Err(refusal) => {
                tracing::warn!(address = dealer.address, ?refusal, "message refused");
                self.answer_refusal(peer, &refusal, first);
                Some(false)
            }
        }
    }

    fn answer_refusal(&mut self, peer: PeerId, refusal: &Refusal, frame: &[u8]) {
        if let Some(answer) = admission::answer(refusal, frame, self.node) {
            // A peer that does not take its answers goes without.
            let _ = self.send(peer, answer);
        }
    }

    /// The number of the guest with this routing id and key; it gets one if it is new.
    fn guest(&mut self, router: usize, routing_id: &[u8], user: &str) -> PeerId {
        let version = self.allow_list.as_deref().map_or(0, AllowList::version);
        let known = self.guests.find(router, routing_id);
        if let Some(peer) = known
            && let Some(guest) = self.guests.get(peer)
            && guest.user == user
            && guest.version == version
        {
            return peer;
        }
        let (grant, key) = self.grant(router, user);
        let (role, node) = match grant {
            Some(Grant::Certificate { role, node }) => (role.unwrap_or(Role::Client), node),
            Some(Grant::Server { .. } | Grant::Local) | None => (Role::Client, None),
        };
        if let Some(peer) = known
            && let Some(guest) = self.guests.get_mut(peer)
            && guest.user == user
        {
            // The same connection, but the certificates have changed.
            guest.grant = grant;
            guest.version = version;
            guest.identity.role = role;
            guest.identity.node = node.or(guest.identity.node);
            return peer;
        }
        let peer = self.next_peer();
        let guest = Guest {
            router,
            routing_id: routing_id.to_vec(),
            user: user.to_owned(),
            grant,
            version,
            identity: Identity { role, node, key, class: self.routers[router].class },
            has_delimiter: false,
            queue: Queue::new(self.queued_total.clone()),
            is_noted: false,
            heard: self.turn,
        };
        self.guests.insert(peer, guest);
        peer
    }

    fn grant(&self, router: usize, user: &str) -> (Option<Grant>, ClientKey) {
        if self.routers[router].is_local {
            return (Some(Grant::Local), ClientKey::default());
        }
        let Some(key) = parse_z85(user).map(ClientKey) else { return (None, ClientKey::default()) };
        let entry = self.allow_list.as_deref().and_then(|list| list.find(key));
        (entry.map(|entry| Grant::Certificate { role: entry.role, node: entry.node }), key)
    }
}
