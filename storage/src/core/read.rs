//! Questions that the disk answers: files and ranges of them, and which files are here.

use wire::{ErrorCode, FileId, FixedPart, HaveResponse, Kind, PeerId, U32, U64};

use content::{Ask, Refusal};

use super::{Action, Order, Outcome, Storage, Ticket, Work};

/// How long a "have" holds, in seconds: nothing is deleted sooner.
const LEASE_S: u64 = 3_600;

impl Storage {
    pub(super) fn on_file_request(&mut self, from: PeerId, ask: Ask, actions: &mut Vec<Action>) {
        let size = ask.size_max();
        let is_full = self.read_bytes + size > self.config.limits.read_bytes_max;
        if is_full || self.reads_of(from) >= self.config.limits.reads_per_peer_max {
            let refusal = Refusal { code: ErrorCode::Busy, detail: "too many reads at once".into() };
            return actions.push(Action::Send { to: from, frame: ask.refusal(self.config.node, &refusal) });
        }
        self.read_bytes += size;
        self.order(Work::Read { to: from, ask }, Order::Read { ask }, actions);
    }

    pub(super) fn on_read(
        &mut self,
        ticket: Ticket,
        to: PeerId,
        ask: Ask,
        outcome: Outcome,
        actions: &mut Vec<Action>,
    ) {
        self.read_bytes -= ask.size_max();
        match outcome {
            Outcome::Read { file_length } => {
                let frame = ask.response(self.config.node, file_length);
                actions.push(Action::SendContent { to, frame, ticket });
            }
            Outcome::Failed { code, detail } => {
                let frame = ask.refusal(self.config.node, &Refusal { code, detail });
                actions.push(Action::Send { to, frame });
            }
            Outcome::Unchecked { file } => {
                self.check(file, actions);
                let refusal = Refusal { code: ErrorCode::NotReady, detail: "it is read again first".into() };
                actions.push(Action::Send { to, frame: ask.refusal(self.config.node, &refusal) });
            }
            Outcome::Begun
            | Outcome::Exists { .. }
            | Outcome::Written { .. }
            | Outcome::Committed { .. }
            | Outcome::Aborted
            | Outcome::Had { .. }
            | Outcome::Checked => unreachable!("the disk answered a read with {outcome:?}"),
        }
    }

    pub(super) fn on_have_request(
        &mut self,
        from: PeerId,
        request: u64,
        num_files: u32,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let (ids, rest) = body.as_chunks::<16>();
        if ids.len() as u64 != u64::from(num_files) || !rest.is_empty() {
            let detail = format!("{num_files} files are announced, and the body has {} bytes", body.len());
            return self.refuse(from, ErrorCode::Malformed, Some(Kind::HaveRequest), request, &detail, actions);
        }
        if self.reads_of(from) >= self.config.limits.reads_per_peer_max {
            let detail = "too many questions at once";
            return self.refuse(from, ErrorCode::Busy, Some(Kind::HaveRequest), request, detail, actions);
        }
        let files = ids.iter().map(|id| FileId(*id)).collect();
        self.order(Work::Have { to: from, request, files: num_files }, Order::Have { files }, actions);
    }

    pub(super) fn on_had(&mut self, to: PeerId, request: u64, files: u32, outcome: Outcome, actions: &mut Vec<Action>) {
        match outcome {
            Outcome::Had { bits } => {
                assert_eq!(bits.len(), (files as usize).div_ceil(8));
                let fixed = HaveResponse {
                    request: U64::new(request),
                    num_files: U32::new(files),
                    lease_s: U64::new(LEASE_S),
                    ..HaveResponse::DEFAULT
                };
                actions.push(Action::Send { to, frame: fixed.frame(self.config.node, &bits) });
            }
            Outcome::Failed { code, detail } => {
                self.refuse(to, code, Some(Kind::HaveRequest), request, &detail, actions);
            }
            Outcome::Begun
            | Outcome::Exists { .. }
            | Outcome::Written { .. }
            | Outcome::Committed { .. }
            | Outcome::Aborted
            | Outcome::Read { .. }
            | Outcome::Unchecked { .. }
            | Outcome::Checked => unreachable!("the disk answered a have with {outcome:?}"),
        }
    }

    /// Questions of one peer that the disk has not answered.
    pub(super) fn reads_of(&self, peer: PeerId) -> usize {
        let is_of_peer = |work: &&Work| match work {
            Work::Read { to, .. } | Work::Have { to, .. } | Work::Commit { to, .. } => *to == peer,
            Work::Begin { .. } | Work::Write { .. } | Work::Abort | Work::Check { .. } => false,
        };
        self.work.values().filter(is_of_peer).count()
    }
}
