//! Decides which messages get in: well-formed, from the node that the connection belongs to, of a kind it may send.
//!
//! ZeroMQ tells who holds the key at the other end; this tells whether what he says is his to say. A key that is bound
//! to a node speaks for that node only. A key that is bound to none speaks for the first node uuid that it uses on a
//! connection, if that uuid is no other key's, and only as a peer of the seed or as a client.

use wire::{ErrorCode, FixedPart, GenericMessage, HEADER_SIZE, JobId, KINDS, Kind, NodeId, Role};

use crate::PeerClass;

/// What is known of the other end of a connection before it has said anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grant {
    /// It holds a key that has this certificate here.
    Certificate { role: Option<Role>, node: Option<NodeId> },
    /// We connected to it and pinned its key.
    Server { role: Role },
    /// A local socket: whoever can open its path could as well read our keys.
    Local,
}

/// A message that gets in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    pub kind: Kind,
    /// The sender; from now on the connection is bound to it.
    pub node: NodeId,
}

/// A message that does not get in, and what to tell its sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub code: ErrorCode,
    pub kind: Option<Kind>,
    pub detail: String,
}

/// Judges a message of `frame_count` frames that begins with `frame`. `bound` is the node that the connection has used
/// before; `is_bound_elsewhere` says whether a node belongs to another key.
pub fn admit(
    frame: &[u8],
    frame_count: usize,
    grant: Grant,
    class: PeerClass,
    bound: Option<NodeId>,
    is_bound_elsewhere: impl FnOnce(NodeId) -> bool,
) -> Result<Admitted, Refusal> {
    let refuse = |code, kind, detail| Err(Refusal { code, kind, detail });
    let header = match GenericMessage::peek(frame) {
        Ok(header) => header,
        Err(error) => return refuse(ErrorCode::Malformed, None, error.to_string()),
    };
    let Some(kind) = Kind::from_number(header.message_type) else {
        let detail = format!("message type {} is not known here", header.message_type);
        return refuse(ErrorCode::UnknownType, None, detail);
    };
    let header_length = header.header_length.get();
    if header_length < HEADER_SIZE as u64 || header_length > frame.len() as u64 {
        let detail =
            format!("header_length {header_length} of {kind:?} does not fit its frame of {} bytes", frame.len());
        return refuse(ErrorCode::Malformed, Some(kind), detail);
    }
    if frame_count > wire::limit::FRAMES_MAX {
        let detail = format!("{kind:?} has {frame_count} frames, at most {} are allowed", wire::limit::FRAMES_MAX);
        return refuse(ErrorCode::Malformed, Some(kind), detail);
    }

    let node = header.node_uuid.node();
    let owned = match grant {
        Grant::Certificate { node, .. } => node,
        Grant::Server { .. } | Grant::Local => None,
    };
    match owned.or(bound) {
        Some(expected) if expected != node => {
            let detail = format!("node_uuid {node} is not {expected}, the node of this connection");
            return refuse(ErrorCode::NotAllowed, Some(kind), detail);
        }
        Some(_) => {}
        None if node.is_nil() => {
            return refuse(ErrorCode::NotAllowed, Some(kind), "node_uuid is zero".into());
        }
        // A server is known by its pinned key and a local peer by its path, whatever key their node has elsewhere.
        None if matches!(grant, Grant::Certificate { .. }) && is_bound_elsewhere(node) => {
            let detail = format!("node_uuid {node} belongs to another key");
            return refuse(ErrorCode::NotAllowed, Some(kind), detail);
        }
        None => {}
    }

    match permission(grant, class, kind) {
        Ok(()) => Ok(Admitted { kind, node }),
        Err(detail) => refuse(ErrorCode::NotAllowed, Some(kind), detail),
    }
}

fn permission(grant: Grant, class: PeerClass, kind: Kind) -> Result<(), String> {
    let role = match grant {
        Grant::Local => return Ok(()),
        Grant::Server { role } => Some(role),
        Grant::Certificate { role: Some(Role::Client), .. } => Some(Role::Client),
        // A daemon's messages count for its node, so its key must name one.
        Grant::Certificate { role, node: Some(_) } => role,
        Grant::Certificate { role: Some(role), node: None } if !kind.is_seed_level() => {
            return Err(format!("the certificate has role {role} but no node, so it may not send {kind:?}"));
        }
        Grant::Certificate { role: _, node: None } => None,
    };
    if class == PeerClass::Raft && role != Some(Role::Master) {
        return Err("only masters may use this socket".into());
    }
    if kind.is_seed_level() || role.is_some_and(|role| kind.senders().contains(&role)) {
        return Ok(());
    }
    match role {
        Some(role) => Err(format!("role {role} may not send {kind:?}")),
        None => Err(format!("a certificate without a role may not send {kind:?}")),
    }
}

/// The `error` that answers a refused message; `None` for a refused `error`, lest two peers answer each other for ever.
pub fn answer(refusal: &Refusal, frame: &[u8], sender: NodeId) -> Option<Vec<u8>> {
    // By number, since the refused one need not have been well-formed enough to have a kind.
    if frame.first() == Some(&(wire::Error::KIND as u8)) {
        return None;
    }
    let request = refusal.kind.map_or(0, |kind| request_of(kind, frame));
    Some(wire::error_frame(sender, refusal.code, refusal.kind, request, JobId::NIL, &refusal.detail))
}

/// The number that the sender gave its request, so that it learns which one was refused; 0 if there is none.
fn request_of(kind: Kind, frame: &[u8]) -> u64 {
    let row = KINDS.iter().find(|row| row.kind == kind);
    let field = row.and_then(|row| row.fields.iter().find(|field| field.name == "request"));
    let header_length = GenericMessage::peek(frame).map_or(0, |header| header.header_length.get());
    let bytes = field
        .filter(|field| (field.offset + field.size) as u64 <= header_length)
        .and_then(|field| frame.get(field.offset..field.offset + field.size))
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use wire::{FixedPart, Message, U64};

    use super::*;

    const N1: NodeId = NodeId([1; 16]);
    const N2: NodeId = NodeId([2; 16]);

    fn status(node: NodeId) -> Vec<u8> {
        wire::WorkerStatus::DEFAULT.seed_frame(node, &[])
    }

    fn watch(node: NodeId) -> Vec<u8> {
        wire::Watch { request: U64::new(41), ..wire::Watch::DEFAULT }.frame(node, &[])
    }

    fn certificate(role: impl Into<Option<Role>>, node: impl Into<Option<NodeId>>) -> Grant {
        Grant::Certificate { role: role.into(), node: node.into() }
    }

    fn judge(frame: &[u8], grant: Grant, bound: Option<NodeId>) -> Result<NodeId, ErrorCode> {
        admit(frame, 1, grant, PeerClass::Control, bound, |_| false).map(|a| a.node).map_err(|r| r.code)
    }

    #[test]
    fn a_bound_key_speaks_for_its_node_only() {
        let worker = certificate(Role::Worker, N1);
        assert_eq!(judge(&status(N1), worker, None), Ok(N1));
        assert_eq!(judge(&status(N2), worker, None), Err(ErrorCode::NotAllowed));
        assert_eq!(judge(&status(N2), worker, Some(N2)), Err(ErrorCode::NotAllowed));
    }

    #[test]
    fn an_unbound_key_keeps_the_first_uuid_it_uses() {
        let stranger = certificate(None, None);
        assert_eq!(judge(&status(N1), stranger, None), Ok(N1));
        assert_eq!(judge(&status(N1), stranger, Some(N1)), Ok(N1));
        assert_eq!(judge(&status(N2), stranger, Some(N1)), Err(ErrorCode::NotAllowed));
        assert_eq!(judge(&status(NodeId::NIL), stranger, None), Err(ErrorCode::NotAllowed));
    }

    #[test]
    fn an_unbound_key_cannot_take_the_uuid_of_another_key() {
        let refused = admit(&status(N2), 1, certificate(None, None), PeerClass::Control, None, |node| node == N2);
        assert_eq!(refused.unwrap_err().code, ErrorCode::NotAllowed);
    }

    #[test]
    fn the_role_says_which_kinds() {
        assert_eq!(judge(&watch(N1), certificate(Role::Client, None), None), Ok(N1));
        assert_eq!(judge(&watch(N1), certificate(Role::Worker, N1), None), Ok(N1));
        assert_eq!(judge(&watch(N1), certificate(Role::Storage, N1), None), Err(ErrorCode::NotAllowed));
        assert_eq!(judge(&watch(N1), certificate(None, None), None), Err(ErrorCode::NotAllowed));
        assert_eq!(judge(&watch(N1), certificate(None, N1), None), Err(ErrorCode::NotAllowed));
        assert_eq!(judge(&watch(N1), Grant::Server { role: Role::Master }, None), Err(ErrorCode::NotAllowed));
        assert_eq!(judge(&watch(N1), Grant::Local, None), Ok(N1));
        let submit = wire::SubmitJob::DEFAULT.frame(N1, &[]);
        assert_eq!(judge(&submit, certificate(Role::Worker, N1), None), Err(ErrorCode::NotAllowed));
    }

    #[test]
    fn a_daemon_without_a_node_is_a_peer_of_the_seed() {
        let nameless = certificate(Role::Worker, None);
        assert_eq!(judge(&status(N1), nameless, None), Ok(N1));
        let hello = wire::NodeHello::DEFAULT.frame(N1, &[]);
        let refusal = admit(&hello, 1, nameless, PeerClass::Control, None, |_| false).unwrap_err();
        assert!(refusal.detail.contains("no node"), "{refusal:?}");
    }

    #[test]
    fn raft_sockets_are_for_masters() {
        let judge = |grant| admit(&status(N1), 1, grant, PeerClass::Raft, None, |_| false).is_ok();
        assert!(judge(certificate(Role::Master, N1)));
        assert!(!judge(certificate(Role::Worker, N1)));
        assert!(!judge(certificate(None, None)));
    }

    #[test]
    fn what_is_not_a_message_is_malformed_or_unknown() {
        let worker = certificate(Role::Worker, N1);
        assert_eq!(judge(&[], worker, None), Err(ErrorCode::Malformed));
        assert_eq!(judge(&status(N1)[..24], worker, None), Err(ErrorCode::Malformed));
        for length in [0u64, 24, 43, u64::MAX] {
            let mut frame = status(N1);
            frame[17..25].copy_from_slice(&length.to_le_bytes());
            assert_eq!(judge(&frame, worker, None), Err(ErrorCode::Malformed), "{length}");
        }
        for number in [0, 200, 255] {
            let mut frame = status(N1);
            frame[0] = number;
            assert_eq!(judge(&frame, worker, None), Err(ErrorCode::UnknownType), "{number}");
        }
        let many = admit(&status(N1), wire::limit::FRAMES_MAX + 1, worker, PeerClass::Control, None, |_| false);
        assert_eq!(many.unwrap_err().code, ErrorCode::Malformed);
    }

    #[test]
    fn the_answer_names_the_request_and_errors_are_not_answered() {
        let frame = watch(N1);
        let refusal = admit(&frame, 1, certificate(None, None), PeerClass::Control, None, |_| false).unwrap_err();
        let answered = answer(&refusal, &frame, N2).unwrap();
        let Ok(Message::Error(error, detail)) = Message::decode(&answered) else { panic!("an error is an error") };
        assert_eq!((error.request.get(), error.code.get()), (41, ErrorCode::NotAllowed as u16));
        assert_eq!(error.regarding, Kind::Watch as u8);
        assert!(std::str::from_utf8(detail).unwrap().contains("Watch"));

        let error = wire::error_frame(N1, ErrorCode::Busy, None, 0, JobId::NIL, "");
        let refusal = admit(&error, 1, certificate(None, None), PeerClass::Control, None, |_| false).unwrap_err();
        assert_eq!(answer(&refusal, &error, N2), None);
        // Cut short, the request number is not read from beyond the header.
        let short = wire::Watch { request: U64::new(41), ..wire::Watch::DEFAULT }.frame(N1, &[]);
        assert_eq!(request_of(Kind::Watch, &short[..30]), 0);
    }
}
