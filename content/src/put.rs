//! The putting end of a transfer as a decision: begin, send blocks while there is credit, commit, take the receipt.
//!
//! Whatever is lost, the cure is the same: begin again under the same upload number, learn from the grant how much is held,
//! and go on from there. A commit of what is already there is success, so a lost receipt costs one repetition.

use wire::limit::BLOCK_SIZE;
use wire::record::Receipt;
use wire::{
    Duration, ErrorCode, FileId, FixedPart, Hash, Instant, Kind, Message, NodeId, PutBegin, PutBlock, PutCommit,
    Reader, U16, U64,
};

mod source;
pub use source::{Part, Source};

/// Settings of a put.
#[derive(Clone, Copy, Debug)]
pub struct PutSettings {
    /// How long nothing may come before the upload is begun again or committed again.
    pub answer_timeout: Duration,
    /// How long to leave a receiver alone that is busy.
    pub busy_pause: Duration,
}

impl Default for PutSettings {
    fn default() -> Self {
        Self { answer_timeout: Duration::from_secs(2), busy_pause: Duration::from_millis(50) }
    }
}

/// Why a file is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    #[error("refused: {code}: {detail}")]
    Refused { code: ErrorCode, detail: String },
    #[error("the answer breaks the protocol: {what}")]
    Protocol { what: &'static str },
    #[error("{file} was not stored by the deadline: {held} of {length} bytes are there")]
    Deadline { file: FileId, held: u64, length: u64 },
    #[error("{what}: {why}")]
    Local { what: String, why: String },
}

/// What there is to put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutContent {
    pub hash: Hash,
    /// Bytes.
    pub length: u64,
    /// 0 input, 1 result, 2 temp.
    pub class: u16,
    /// A copy that is there is not believed: it is read again before it counts.
    pub is_checked: bool,
}

/// One thing for the driver to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutAction {
    Send {
        frame: Vec<u8>,
    },
    /// Send `frame` and behind it the content's bytes at `offset`.
    SendBlock {
        frame: Vec<u8>,
        offset: u64,
        length: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `put_begin` is to be sent, or sent and not answered.
    Beginning,
    Sending,
    /// `put_commit` is to be sent, or sent and not answered.
    Committing,
    Done,
}

/// One upload.
#[derive(Debug)]
pub struct Put {
    sender: NodeId,
    upload: u64,
    content: PutContent,
    settings: PutSettings,
    state: State,
    /// Bytes that the receiver says it has from the start on.
    held: u64,
    /// Bytes sent since the last grant, from the start on.
    sent: u64,
    /// Blocks that may be in flight.
    credit: u64,
    /// When to act next if nothing comes: a pause before it, or a repetition at it.
    deadline: Option<Instant>,
    /// When the receiver showed last that it gets on.
    progressed_at: Option<Instant>,
    /// The receiver once had other bytes than ours, and got them all again.
    is_begun_anew: bool,
    /// The receiver has said something: then it has looked at the copy that it may have had, if it was to.
    is_heard: bool,
    receipts: Vec<Receipt>,
}

impl Put {
    /// An upload of `content` under the number `upload`, in messages of `sender`.
    pub fn new(sender: NodeId, upload: u64, content: PutContent, settings: PutSettings) -> Self {
        Self {
            sender,
            upload,
            content,
            settings,
            state: State::Beginning,
            held: 0,
            sent: 0,
            credit: 0,
            deadline: None,
            progressed_at: None,
            is_begun_anew: false,
            is_heard: false,
            receipts: Vec::new(),
        }
    }

    /// The receipts, once the file is stored.
    pub fn receipts(&self) -> Option<&[Receipt]> {
        match self.state {
            State::Done => Some(&self.receipts),
            State::Beginning | State::Sending | State::Committing => None,
        }
    }

    /// Bytes that the receiver is known to have.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// When the receiver last had more than before, or was at work on the commit. That it answers at all is no progress: it
    /// does so while its disk stands still.
    pub fn progressed_at(&self) -> Option<Instant> {
        self.progressed_at
    }

    /// When `actions` wants to be called, if nothing comes first; `None` = now, or never once it is done.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What to do now. At most one credit's worth of blocks.
    pub fn actions(&mut self, now: Instant) -> Vec<PutAction> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            // Nothing has come for too long: ask what of it arrived. A commit is simply said again.
            if self.state == State::Sending {
                self.state = State::Beginning;
            }
        }
        match self.state {
            State::Beginning if self.deadline.is_none() => {
                self.deadline = Some(now + self.settings.answer_timeout);
                vec![PutAction::Send { frame: self.begin() }]
            }
            State::Sending => self.blocks(now),
            State::Committing if self.deadline.is_none() => {
                self.deadline = Some(now + self.settings.answer_timeout);
                vec![PutAction::Send { frame: self.commit() }]
            }
            State::Beginning | State::Committing | State::Done => Vec::new(),
        }
    }

    /// Takes one message; those of other conversations are ignored.
    pub fn receive(&mut self, message: &Message<'_>, now: Instant) -> Result<(), PutError> {
        match message {
            Message::PutGrant(grant, _) if grant.upload.get() == self.upload && self.state == State::Beginning => {
                self.is_heard = true;
                if grant.flags.get() & wire::GRANT_EXISTS != 0 {
                    self.held = self.content.length;
                    self.progressed_at = Some(now);
                    self.go_commit();
                    return Ok(());
                }
                self.on_progress(grant.contiguous.get(), grant.credit.get(), now)?;
                self.sent = self.held;
                if self.state == State::Beginning {
                    self.state = State::Sending;
                    self.deadline = Some(now + self.settings.answer_timeout);
                }
                Ok(())
            }
            Message::PutAck(ack, _) if ack.upload.get() == self.upload && self.state == State::Sending => {
                // An ack after a gap says nothing new; the silence that follows leads to a new beginning.
                let more_credit = ack.contiguous.get() == self.held && u64::from(ack.credit.get()) != self.credit;
                if ack.contiguous.get() > self.held || more_credit {
                    self.on_progress(ack.contiguous.get(), ack.credit.get(), now)?;
                }
                Ok(())
            }
            Message::PutDone(done, body) if done.upload.get() == self.upload => {
                self.on_done(done.hash, done.file_length.get(), body)
            }
            Message::Error(error, detail)
                if error.request.get() == self.upload
                    && is_about_a_put(error.regarding)
                    && self.state != State::Done =>
            {
                self.on_error(error.code.get(), error.regarding, detail, now)
            }
            // Everything else belongs to another conversation, or to an earlier state of this one.
            _ => Ok(()),
        }
    }

    fn on_progress(&mut self, contiguous: u64, credit: u32, now: Instant) -> Result<(), PutError> {
        if contiguous > self.content.length {
            return Err(PutError::Protocol { what: "more bytes are held than there are" });
        }
        if contiguous > self.held {
            self.progressed_at = Some(now);
        }
        self.held = contiguous;
        self.sent = self.sent.max(contiguous);
        self.credit = credit.into();
        self.deadline = Some(now + self.settings.answer_timeout);
        if self.held == self.content.length {
            self.go_commit();
        }
        Ok(())
    }

    fn go_commit(&mut self) {
        self.state = State::Committing;
        self.deadline = None;
    }

    fn on_done(&mut self, hash: Hash, length: u64, body: &[u8]) -> Result<(), PutError> {
        if hash != self.content.hash || length != self.content.length {
            return Err(PutError::Protocol { what: "another file was stored" });
        }
        let receipts = Reader::new(body).slice::<Receipt>(body.len() / size_of::<Receipt>());
        self.receipts = receipts.map_err(|_| PutError::Protocol { what: "its receipts are cut" })?.to_vec();
        self.state = State::Done;
        self.deadline = None;
        Ok(())
    }

    fn on_error(&mut self, code: u16, regarding: u8, detail: &[u8], now: Instant) -> Result<(), PutError> {
        self.is_heard = true;
        let Some(code) = ErrorCode::from_number(code) else {
            return Err(PutError::Protocol { what: "its error code is unknown" });
        };
        match code {
            ErrorCode::Busy | ErrorCode::NotReady => {
                let pause = match self.state {
                    State::Committing if code == ErrorCode::Busy && regarding == Kind::PutCommit as u8 => {
                        // Its disk is at work, however long that takes, and the receipt comes by itself.
                        self.progressed_at = Some(now);
                        self.settings.answer_timeout
                    }
                    // What was in flight may be lost.
                    State::Sending => {
                        self.state = State::Beginning;
                        self.settings.busy_pause
                    }
                    State::Beginning | State::Committing | State::Done => self.settings.busy_pause,
                };
                self.deadline = Some(now + pause);
                Ok(())
            }
            // The receiver was started again, or gave the upload up: it says so for every block in flight.
            ErrorCode::UploadUnknown => {
                if self.state != State::Beginning {
                    self.state = State::Beginning;
                    self.deadline = None;
                }
                Ok(())
            }
            // A commit can meet a receiver that was started again and has begun the upload, but does not have all of it. That
            // ended the upload. The second time it is the content that changes.
            ErrorCode::HashMismatch if regarding == Kind::PutCommit as u8 && !self.is_begun_anew => {
                self.is_begun_anew = true;
                self.state = State::Beginning;
                self.deadline = None;
                Ok(())
            }
            ErrorCode::Malformed
            | ErrorCode::UnknownType
            | ErrorCode::NotAllowed
            | ErrorCode::NotLeader
            | ErrorCode::UnknownJob
            | ErrorCode::FileUnknown
            | ErrorCode::ExistsDifferent
            | ErrorCode::InvalidRequest
            | ErrorCode::Impossible
            | ErrorCode::TooLarge
            | ErrorCode::HashMismatch
            | ErrorCode::DiskFull
            | ErrorCode::StaleEpoch
            | ErrorCode::ReceiptInvalid
            | ErrorCode::UnknownNode => Err(PutError::Refused { code, detail: wire::bytes_text(detail) }),
        }
    }

    fn blocks(&mut self, now: Instant) -> Vec<PutAction> {
        let mut actions = Vec::new();
        let window_end = self.held.saturating_add(self.credit.saturating_mul(BLOCK_SIZE as u64));
        while self.sent < self.content.length {
            let length = (self.content.length - self.sent).min(BLOCK_SIZE as u64);
            if self.sent + length > window_end {
                break;
            }
            let fixed = PutBlock { upload: U64::new(self.upload), offset: U64::new(self.sent), ..PutBlock::DEFAULT };
            let frame = fixed.frame(self.sender, &[]);
            actions.push(PutAction::SendBlock { frame, offset: self.sent, length: length as usize });
            self.sent += length;
        }
        if !actions.is_empty() {
            self.deadline = Some(now + self.settings.answer_timeout);
        }
        actions
    }

    fn begin(&self) -> Vec<u8> {
        let fixed = PutBegin {
            request: U64::new(self.upload),
            upload: U64::new(self.upload),
            file_length: U64::new(self.content.length),
            hash: self.content.hash,
            class: U16::new(self.content.class),
            flags: U16::new(if self.content.is_checked && !self.is_heard { wire::PUT_CHECKED } else { 0 }),
            ..PutBegin::DEFAULT
        };
        fixed.frame(self.sender, &[])
    }

    fn commit(&self) -> Vec<u8> {
        let fixed = PutCommit {
            request: U64::new(self.upload),
            upload: U64::new(self.upload),
            file_length: U64::new(self.content.length),
            hash: self.content.hash,
            ..PutCommit::DEFAULT
        };
        fixed.frame(self.sender, &[])
    }
}

/// The number of the upload of a content: always the same, so that another try goes on where the last one ended instead of
/// leaving it behind with its room reserved.
pub fn upload_number(hash: Hash) -> u64 {
    u64::from_le_bytes(*hash.0.first_chunk().expect("a hash has 32 bytes"))
}

/// Errors about a put carry the upload's number as their request: it is the only number that all of its messages have.
fn is_about_a_put(kind: u8) -> bool {
    [Kind::PutBegin, Kind::PutBlock, Kind::PutCommit].iter().any(|put| *put as u8 == kind)
}
