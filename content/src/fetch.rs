//! The fetching end of a transfer as a decision: which ranges to ask for, when again, and what an answer is worth.
//!
//! The requests are the credit. Like a reader who has sixteen inter-library slips out at a time, a fetch never has more
//! on the way than it can take, the sender never sends what was not asked for, and a lost slip costs one reminder. Ranges may
//! be answered in any order and more than once. Bytes do not come through here: the driver keeps them.

use std::collections::BTreeMap;

use wire::limit::BLOCK_SIZE;
use wire::{Duration, ErrorCode, FileAddress, FileRequest, FixedPart, Instant, Message, NodeId, U64};

/// Settings of a fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchSettings {
    /// Ranges asked for and not yet here; 16 = a window of 16 MiB.
    pub ranges_in_flight_max: usize,
    /// How long nothing may come before what is missing is asked for again.
    pub range_timeout: Duration,
    /// How long to leave a sender alone that is busy.
    pub busy_pause: Duration,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self { ranges_in_flight_max: 16, range_timeout: Duration::from_secs(2), busy_pause: Duration::from_millis(50) }
    }
}

/// Why a file does not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("no file {0} there")]
    FileUnknown(FileAddress),
    #[error("the piece {address} is outside the file of {file_length} bytes")]
    OutOfRange { address: FileAddress, file_length: u64 },
    #[error("refused: {code}: {detail}")]
    Refused { code: ErrorCode, detail: String },
    #[error("the answer for {address} breaks the protocol: {what}")]
    Protocol { address: FileAddress, what: &'static str },
    #[error("the bytes of {address} are not those that its name stands for")]
    Mismatch { address: FileAddress },
    #[error("wrong bytes of {address} came from {}: {what}", holders.join(", "))]
    Wrong { address: FileAddress, what: &'static str, holders: Vec<String> },
    #[error("{address} was not here by the deadline: {held} bytes had come")]
    Deadline { address: FileAddress, held: u64 },
    #[error("{what}: {why}")]
    Local { what: String, why: String },
}

/// What a message means for a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchAnswer {
    /// The payload is the bytes of the file at `offset`, and they were wanted.
    Bytes { offset: u64 },
    /// Not for this fetch, or a repetition.
    Ignored,
}

/// A range that is asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    end: u64,
    request: u64,
    deadline: Instant,
}

/// One file or piece on its way here.
#[derive(Debug)]
pub struct Fetch {
    sender: NodeId,
    address: FileAddress,
    settings: FetchSettings,
    /// Where the wanted bytes end; `None` until the file's length is known.
    end: Option<u64>,
    /// The length of the whole file as the sender tells it.
    file_length: Option<u64>,
    /// The first byte that was never asked for.
    ahead: u64,
    /// By offset. Ranges do not overlap.
    asked: BTreeMap<u64, Asked>,
    /// To be asked again not before the instant: offset to (end, instant).
    again: BTreeMap<u64, (u64, Instant)>,
    next_request: u64,
}

impl Fetch {
    /// A fetch of `address` from byte `held` of it on, in messages of `sender`. Requests are numbered from `first_request`.
    pub fn new(
        sender: NodeId,
        address: FileAddress,
        held: u64,
        known_length: Option<u64>,
        first_request: u64,
        settings: FetchSettings,
    ) -> Self {
        let (start, end) = match address.piece {
            Some((offset, length)) => (offset, Some(offset.saturating_add(length))),
            None => (0, known_length),
        };
        Self {
            sender,
            address,
            settings,
            end,
            file_length: if address.piece.is_none() { known_length } else { None },
            ahead: start.saturating_add(held),
            asked: BTreeMap::new(),
            again: BTreeMap::new(),
            next_request: first_request,
        }
    }

    /// True when every wanted byte has come. An empty piece is complete at once.
    pub fn is_complete(&self) -> bool {
        self.end.is_some_and(|end| self.ahead >= end) && self.asked.is_empty() && self.again.is_empty()
    }

    /// The length of the wanted bytes, once it is known.
    pub fn length(&self) -> Option<u64> {
        let start = self.address.piece.map_or(0, |(offset, _)| offset);
        self.end.map(|end| end - start)
    }

    /// The requests to send now.
    pub fn requests(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.time_out(now);
        let mut frames = Vec::new();
        while self.asked.len() < self.settings.ranges_in_flight_max {
            let Some((offset, end)) = self.next_range(now) else { break };
            let request = self.next_request;
            self.next_request += 1;
            self.asked.insert(offset, Asked { end, request, deadline: now + self.settings.range_timeout });
            let fixed = FileRequest {
                file_uuid: self.address.file.into(),
                offset: U64::new(offset),
                length: U64::new(end - offset),
                request: U64::new(request),
                ..FileRequest::DEFAULT
            };
            frames.push(fixed.frame(self.sender, &[]));
        }
        frames
    }

    /// When `requests` wants to be called, if nothing comes first.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timeouts = self.asked.values().map(|asked| asked.deadline);
        let pauses = self.again.values().map(|(_, not_before)| *not_before);
        timeouts.chain(pauses).min()
    }

    /// Takes one message with `payload_length` bytes of payload behind it.
    pub fn receive(
        &mut self,
        message: &Message<'_>,
        payload_length: u64,
        now: Instant,
    ) -> Result<FetchAnswer, FetchError> {
        if let Message::Error(error, detail) = message {
            return self.on_error(error.request.get(), error.code.get(), detail, now);
        }
        let Message::FileResponse(response, _) = message else { return Ok(FetchAnswer::Ignored) };
        if response.file_uuid.file() != self.address.file {
            return Ok(FetchAnswer::Ignored);
        }
        if response.status.get() != 0 {
            let code = u16::try_from(response.status.get()).unwrap_or(u16::MAX);
            return self.on_error(response.request.get(), code, b"", now);
        }
        // Files do not change, so a late answer to an earlier request is as good as one to the last.
        let offset = response.offset.get();
        let Some(end) = self.asked.get(&offset).map(|asked| asked.end) else { return Ok(FetchAnswer::Ignored) };
        let end = self.on_file_length(response.file_length.get())?.min(end);
        self.asked.remove(&offset);
        let got = offset.saturating_add(payload_length);
        if got > end {
            return Err(self.protocol("it has more bytes than were asked for"));
        }
        if got < end {
            if payload_length == 0 {
                return Err(self.protocol("it has no bytes"));
            }
            self.again.insert(got, (end, now));
        }
        // The others stand in the same line: while it moves, none of them is late.
        for asked in self.asked.values_mut() {
            asked.deadline = now + self.settings.range_timeout;
        }
        Ok(FetchAnswer::Bytes { offset })
    }

    /// Learns the file's length, or holds it against what is known; returns where the wanted bytes end.
    fn on_file_length(&mut self, file_length: u64) -> Result<u64, FetchError> {
        if self.file_length.is_some_and(|known| known != file_length) {
            return Err(self.protocol("the file has another length than before"));
        }
        self.file_length = Some(file_length);
        let end = *self.end.get_or_insert(file_length);
        if end > file_length {
            return Err(FetchError::OutOfRange { address: self.address, file_length });
        }
        // The first request was made without knowing where the file ends.
        self.ahead = self.ahead.min(end);
        Ok(end)
    }

    fn on_error(&mut self, request: u64, code: u16, detail: &[u8], now: Instant) -> Result<FetchAnswer, FetchError> {
        let Some((offset, end)) = self.asked_as(request) else { return Ok(FetchAnswer::Ignored) };
        let detail = wire::bytes_text(detail);
        match ErrorCode::from_number(code) {
            Some(ErrorCode::Busy | ErrorCode::NotReady) => {
                self.asked.remove(&offset);
                self.again.insert(offset, (end, now + self.settings.busy_pause));
                Ok(FetchAnswer::Ignored)
            }
            Some(ErrorCode::FileUnknown) => Err(FetchError::FileUnknown(self.address)),
            Some(code) => Err(FetchError::Refused { code, detail }),
            None => Err(self.protocol("its error code is unknown")),
        }
    }

    /// Puts what was asked for too long ago in line again.
    fn time_out(&mut self, now: Instant) {
        let again = &mut self.again;
        self.asked.retain(|offset, asked| {
            let late = asked.deadline <= now;
            if late {
                again.insert(*offset, (asked.end, now));
            }
            !late
        });
    }

    /// The next range worth asking for: first what did not come, then what lies ahead.
    fn next_range(&mut self, now: Instant) -> Option<(u64, u64)> {
        let due = self.again.iter().find(|(_, (_, not_before))| *not_before <= now).map(|(offset, _)| *offset);
        if let Some(offset) = due {
            let (end, _) = self.again.remove(&offset)?;
            // Its end may be a guess from before the file's length was known.
            return Some((offset, self.end.map_or(end, |known| end.min(known))));
        }
        let offset = self.ahead;
        // Ranges end at multiples of a block, so that every fetch of a file asks for the same ones.
        let block_end = (offset / BLOCK_SIZE as u64 + 1).saturating_mul(BLOCK_SIZE as u64);
        let end = match self.end {
            Some(end) if offset < end => end.min(block_end),
            Some(_) => return None,
            // The length is not known: one range tells it.
            None if self.asked.is_empty() && self.again.is_empty() => block_end,
            None => return None,
        };
        self.ahead = end;
        Some((offset, end))
    }

    fn asked_as(&self, request: u64) -> Option<(u64, u64)> {
        self.asked.iter().find(|(_, asked)| asked.request == request).map(|(offset, asked)| (*offset, asked.end))
    }

    fn protocol(&self, what: &'static str) -> FetchError {
        FetchError::Protocol { address: self.address, what }
    }
}
