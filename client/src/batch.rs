//! Many files to storage at once.
//!
//! A small file costs three rounds, to ask whether the masters know it, to bring it, to have it recorded, and hardly any bytes;
//! so those of many files overlap. Large ones go one at a time: they fill the line by themselves.
//!
//! That the masters know a file is no proof that storage still has it: storage is asked too, and what it misses is brought
//! again.

use content::{Put, PutAction, PutContent, PutSettings, Source, upload_number};
use node::Frames;
use wire::record::StoredFile;
use wire::tree::CLASS_TREE;
use wire::{Duration, ErrorCode, FileId, FixedPart, HaveRequest, Message, RecordFile, U32, U64, Writer};

use crate::file::{Staged, put_failed};
use crate::{ClientError, Connection};

/// The class of what a client puts and is no tree.
const CLASS_INPUT: u8 = 0;
/// Files asked about, brought and recorded before the next are begun.
const FILES_PER_BATCH_MAX: usize = 256;
/// Puts that are open at once, unless fewer have so many bytes. Storage makes those durable together that end together, and
/// what a peer may ask at once is as many.
const PUTS_MAX: usize = 64;
const OPEN_BYTES_MAX: u64 = 16 << 20;

/// How long storage may take to say what it has before it is asked again.
const HAVE_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Whose word counts for a file that is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The masters know it and storage has it, as far as it has noticed.
    Known,
    /// Nobody's before storage has read it again.
    Nothing,
}

/// One file on its way.
struct Sending {
    at: usize,
    content: Source,
    put: Put,
}

impl Connection {
    /// Whether the masters know each of the contents already.
    pub(crate) fn are_recorded(&mut self, files: &[Staged]) -> Result<Vec<bool>, ClientError> {
        let ids: Vec<_> = files.iter().map(|staged| staged.file).collect();
        let records = self.each_file(&ids)?;
        let is_recorded = |(staged, record): (&Staged, Option<wire::record::FileRecord>)| match record {
            Some(record) if record.hash == staged.hash => Ok(true),
            Some(_) => {
                let detail = format!("{} is the name of another content in this cluster", staged.file);
                Err(ClientError::Refused { code: ErrorCode::ExistsDifferent, detail })
            }
            None => Ok(false),
        };
        files.iter().zip(records).map(is_recorded).collect()
    }

    /// Stores those of `files` that are not there, and says which the masters did not know; `content` gives the bytes of each.
    pub(crate) fn store_each(
        &mut self,
        files: &[Staged],
        trust: Trust,
        mut content: impl FnMut(usize) -> Result<Source, ClientError>,
    ) -> Result<Vec<bool>, ClientError> {
        let mut is_new = Vec::with_capacity(files.len());
        for batch in files.chunks(FILES_PER_BATCH_MAX) {
            let begin = is_new.len();
            is_new.extend(self.are_recorded(batch)?.iter().map(|is_known| !is_known));
            let (mut missing, known): (Vec<usize>, Vec<usize>) =
                (begin..is_new.len()).partition(|at| is_new[*at] || trust == Trust::Nothing);
            let ids: Vec<FileId> = known.iter().map(|at| files[*at].file).collect();
            for (at, is_there) in known.into_iter().zip(self.have_each(&ids)?) {
                if is_there {
                    self.have_moved(files[at].length);
                } else {
                    missing.push(at);
                }
            }
            let stored = self.put_each(files, &missing, trust, &mut content)?;
            self.record_each(&stored)?;
        }
        Ok(is_new)
    }

    /// Which of `files` storage has.
    fn have_each(&mut self, files: &[FileId]) -> Result<Vec<bool>, ClientError> {
        let Some(first) = files.first() else { return Ok(Vec::new()) };
        let (storage, request) = (self.storage()?, self.next_request());
        let body: Vec<u8> = files.iter().flat_map(|file| file.0).collect();
        let num_files = U32::new(files.len() as u32);
        let frame = HaveRequest { request: U64::new(request), num_files, ..HaveRequest::DEFAULT }
            .frame(self.cluster.node, &body);
        let deadline = self.clock.now() + self.timeout;
        let mut again = self.clock.now();
        loop {
            self.check_signals()?;
            let now = self.clock.now();
            if now >= deadline {
                return Err(self.silent_storage("put", *first));
            }
            if now >= again {
                // As in `put_each`.
                let _ = self.endpoint.send(storage, frame.clone());
                again = now + HAVE_TIMEOUT;
            }
            self.endpoint.wait(Some(again.min(deadline)));
            for frames in self.messages_from(storage) {
                match Message::decode(&frames[0]) {
                    Ok(Message::HaveResponse(response, bits))
                        if response.request.get() == request && bits.len() * 8 >= files.len() =>
                    {
                        return Ok((0..files.len()).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect());
                    }
                    Ok(Message::Error(error, detail)) if error.request.get() == request => {
                        match ErrorCode::from_number(error.code.get()) {
                            Some(ErrorCode::Busy | ErrorCode::NotReady) => again = self.clock.now() + BUSY_PAUSE,
                            Some(code) => {
                                return Err(ClientError::Refused { code, detail: wire::bytes_text(detail) });
                            }
                            None => return Err(ClientError::Protocol("unknown error code".into())),
                        }
                    }
                    // It is of another conversation.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }

    /// Moves the bytes to storage and returns the receipts.
    fn put_each(
        &mut self,
        files: &[Staged],
        wanted: &[usize],
        trust: Trust,
        content: &mut impl FnMut(usize) -> Result<Source, ClientError>,
    ) -> Result<Vec<StoredFile>, ClientError> {
        let mut stored = Vec::with_capacity(wanted.len());
        if wanted.is_empty() {
            return Ok(stored);
        }
        let storage = self.storage()?;
        let mut wanted = wanted.iter().copied().peekable();
        let mut open: Vec<Sending> = Vec::new();
        let mut heard_at = self.clock.now();
        loop {
            self.check_signals()?;
            while let Some(at) = wanted.peek().copied()
                && has_room(&open, files, at)
            {
                wanted.next();
                let (staged, content) = (&files[at], content(at)?);
                let class = class_of(staged);
                let what = PutContent {
                    hash: staged.hash,
                    length: staged.length,
                    class: class.into(),
                    is_checked: trust == Trust::Nothing,
                };
                // What an earlier process of ours has brought there is not sent again.
                let put = Put::new(self.cluster.node, upload_number(staged.hash), what, PutSettings::default());
                open.push(Sending { at, content, put });
            }
            let Some(first) = open.first() else { return Ok(stored) };
            let now = self.clock.now();
            let mut deadline = heard_at + self.timeout;
            if now >= deadline {
                return Err(self.silent_storage("put", files[first.at].file));
            }
            for sending in &mut open {
                for action in sending.put.actions(now) {
                    let frames = match action {
                        PutAction::Send { frame } => Frames::from(frame),
                        PutAction::SendBlock { frame, offset, length } => {
                            [frame, sending.content.read(offset, length).map_err(put_failed)?].into()
                        }
                    };
                    // What the endpoint does not take is as good as lost, and is repeated.
                    let _ = self.endpoint.send(storage, frames);
                }
                deadline = sending.put.next_deadline().map_or(deadline, |at| at.min(deadline));
            }
            self.endpoint.wait(Some(deadline));
            for frames in self.messages_from(storage) {
                heard_at = self.clock.now();
                let Ok(message) = Message::decode(&frames[0]) else { continue };
                // Each takes what has the number of its upload.
                for sending in &mut open {
                    sending.put.receive(&message, heard_at).map_err(put_failed)?;
                }
            }
            let held = open.iter().map(|sending| sending.put.held()).sum();
            self.tell_progress(held, Some(open.iter().map(|sending| files[sending.at].length).sum()));
            let is_done = |sending: &mut Sending| sending.put.receipts().is_some();
            for sending in open.extract_if(.., is_done) {
                let staged = &files[sending.at];
                let receipts = sending.put.receipts().unwrap_or_default().to_vec();
                let (file, hash, length, class) = (staged.file, staged.hash, staged.length, class_of(staged));
                stored.push(StoredFile { file, hash, length, class, receipts });
                self.have_moved(length);
            }
        }
    }

    /// Has the masters know what storage has.
    fn record_each(&mut self, stored: &[StoredFile]) -> Result<(), ClientError> {
        let bodies: Vec<Writer> = stored
            .iter()
            .map(|file| {
                let mut body = Writer::new();
                file.encode(&mut body);
                body
            })
            .collect();
        let sender = self.cluster.node;
        let build = |at: usize, request| {
            RecordFile { request: U64::new(request), ..RecordFile::DEFAULT }.frame(sender, &bodies[at].bytes)
        };
        for (at, answer) in self.ask_each(stored.len(), build).into_iter().enumerate() {
            let mut answer = answer;
            if !answer.as_ref().is_some_and(|frame| matches!(Message::decode(frame), Ok(Message::Committed(..)))) {
                answer = Some(self.ask(|request| build(at, request))?);
            }
            match Message::decode(answer.as_ref().expect("it was asked for"))? {
                Message::Committed(committed, _) => self.index = self.index.max(committed.index.get()),
                _ => return Err(ClientError::Protocol("a file's record is answered by another message".into())),
            }
        }
        Ok(())
    }
}

fn class_of(staged: &Staged) -> u8 {
    if staged.is_tree { CLASS_TREE } else { CLASS_INPUT }
}

/// Whether the file at `at` may be begun beside those that are open. Equal contents have one upload: one after the other.
fn has_room(open: &[Sending], files: &[Staged], at: usize) -> bool {
    let bytes: u64 = open.iter().map(|sending| files[sending.at].length).sum();
    let is_open = open.iter().any(|sending| files[sending.at].file == files[at].file);
    open.is_empty() || (open.len() < PUTS_MAX && bytes + files[at].length <= OPEN_BYTES_MAX && !is_open)
}
