//! What is checked before a request may enter the log.
//!
//! The log is for ever, so what can be refused is refused here: rules, files that nobody has, receipts that nobody
//! gave, resources that no worker has, losses of workers that are alive. Whatever decides about two requests at once
//! is decided again at apply; here it only saves entries.

use planted::Bug;
use wire::job::JobSpec;
use wire::record::StoredFile;
use wire::{BootNonce, ErrorCode, Instant, JobId, Kind, LOST_NEWER_BOOT, Message, NodeId, PeerId, Role, bytes_text};

use super::entry::{CANCEL_RUNNING_MAX, Cancel, LostWorker, Request, Results, Submit, stamped_cancel};
use super::leader::{Form, Key, Waiter, code_of};
use super::state::{Epoch, Outcome};
use super::{Action, Core, Decision, request_of};

/// Why a request does not get into the log.
struct Refusal {
    code: ErrorCode,
    detail: String,
}

/// What is to be done with a request.
enum Verdict {
    Propose,
    /// It is in the log already, or would change nothing.
    Answer(Outcome),
    Refuse(Refusal),
}

fn refuse(code: ErrorCode, detail: impl Into<String>) -> Verdict {
    Verdict::Refuse(Refusal { code, detail: detail.into() })
}

impl Core {
    /// A message that asks for an entry. `is_current`: what the state says was still true after the message came.
    #[expect(clippy::too_many_arguments, reason = "what came, and when")]
    pub(super) fn on_request(
        &mut self,
        from: PeerId,
        role: Option<Role>,
        message: &Message<'_>,
        frame: &[u8],
        is_current: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (kind, request) = (message.kind(), request_of(message));
        let key = Key::Numbered { from, kind, request };
        let (job, form) = (JobId::NIL, Form::Committed);
        let mut waiter = Waiter { to: Some(from), kind, request, job, form, key, size: frame.len() };
        let parsed = match Request::decode(frame) {
            Ok(parsed) => parsed,
            Err(error) => return self.answer_refused(&waiter, code_of(&error), &error.to_string(), actions),
        };
        let verdict = match &parsed {
            Request::Submit(submit) => {
                waiter.job = submit.job;
                self.judge_submit(submit, now)
            }
            Request::Cancel(cancel) => {
                waiter.job = cancel.job;
                self.judge_cancel(cancel)
            }
            Request::RecordFile(file) => self.judge_file(file),
            Request::Results(results) => {
                (waiter.job, waiter.form) = (results.job, Form::Confirmed);
                waiter.key = Key::Batch { worker: results.worker, boot: results.boot, batch: results.batch };
                self.presence.hear(&self.state, results.worker, results.boot, now);
                if let Message::WorkerStatus(status, _) = message {
                    self.presence.hear_inputs(&self.state, status);
                }
                let is_over =
                    matches!(message, Message::WorkerStatus(status, _) if status.epoch.get() < self.state.epoch.number);
                if planted::is(Bug::ResultsFencedByEpoch) && is_over {
                    Verdict::Answer(Outcome::Changed { changed: 0 })
                } else if role.is_none_or(|role| role == Role::Worker) {
                    self.judge_results(results)
                } else {
                    refuse(ErrorCode::NotAllowed, "results come from workers only")
                }
            }
            Request::Register(record) => {
                waiter.form = Form::Welcome { node: record.node, boot: record.boot };
                let is_own = record.node == Core::sender(message) && role.is_none_or(|role| role == record.role);
                let verdict = if is_own {
                    self.judge_register(record)
                } else {
                    refuse(
                        ErrorCode::NotAllowed,
                        format!("the sender may not register {} {}", record.role, record.node),
                    )
                };
                self.presence.hear(&self.state, record.node, record.boot, now);
                verdict
            }
            Request::Lost(lost) => self.judge_lost(lost, now),
            Request::GrantEpoch(_) => refuse(ErrorCode::NotAllowed, "epochs are granted by the leader"),
        };
        match verdict {
            // Another master may have been elected and know better; what is proposed here then gets nowhere by itself.
            Verdict::Answer(_) | Verdict::Refuse(_) if !is_current => self.ask(from, role, message, frame, actions),
            Verdict::Answer(outcome) => self.answer(&waiter, &outcome, self.state.index, actions),
            Verdict::Refuse(refusal) => {
                if let Request::Lost(LostWorker { worker, .. }) = &parsed {
                    let (worker, detail) = (*worker, refusal.detail.clone());
                    actions.push(Action::Decided(Decision::LostRefused { worker, detail }));
                }
                self.answer_refused(&waiter, refusal.code, &refusal.detail, actions)
            }
            Verdict::Propose => {
                let frame = match &parsed {
                    Request::Cancel(cancel) => self.stamp_cancel(cancel, frame),
                    Request::Submit(_)
                    | Request::RecordFile(_)
                    | Request::Results(_)
                    | Request::Register(_)
                    | Request::Lost(_)
                    | Request::GrantEpoch(_) => frame.to_vec(),
                };
                waiter.size = frame.len();
                self.propose(waiter, frame, actions);
            }
        }
    }

    /// Adds what runs of it, so that every master can tell what was stopped from what only waited.
    fn stamp_cancel(&self, cancel: &Cancel, frame: &[u8]) -> Vec<u8> {
        let mut running = self.running_of(&self.state.jobs[&cancel.job], cancel.range);
        running.truncate(CANCEL_RUNNING_MAX);
        if running.is_empty() { frame.to_vec() } else { stamped_cancel(frame, &running) }
    }

    /// Puts a request into this turn's entry, unless it is under way already.
    pub(super) fn propose(&mut self, waiter: Waiter, frame: Vec<u8>, actions: &mut Vec<Action>) {
        if self.backlog.has(waiter.key) {
            // It may yet enter the log, so it is not refused; but its sender should not take us for dead.
            if self.is_disk_full && matches!(waiter.key, Key::Numbered { .. }) {
                let detail = "the master's disk is full: the request waits for room";
                self.answer_refused(&waiter, ErrorCode::Busy, detail, actions);
            }
            return;
        }
        let is_new = matches!(waiter.kind, Kind::SubmitJob | Kind::RecordFile);
        // What ends or frees something may be all that makes room again: the reserve is for that.
        if self.is_disk_full || (self.is_disk_low && is_new) {
            return self.answer_refused(&waiter, ErrorCode::DiskFull, "the master's disk is full", actions);
        }
        let limits = &self.config.limits;
        if !self.backlog.has_room(waiter.size, limits.backlog_max, limits.backlog_bytes_max) {
            return self.answer_refused(&waiter, ErrorCode::Busy, "too many requests are under way", actions);
        }
        self.backlog.push(waiter, frame);
    }

    /// The master itself is a node that people see.
    pub(super) fn register_self(&mut self) {
        let record = self.own_record();
        if self.state.nodes.get(&record.node) == Some(&record) {
            return;
        }
        let frame = super::entry::hello_frame(&record);
        self.propose_own(Key::SelfRegistration, Kind::NodeHello, frame);
    }

    /// Puts a request of the leader's own into this turn's entry.
    pub(super) fn propose_own(&mut self, key: Key, kind: Kind, frame: Vec<u8>) {
        if self.backlog.has(key) {
            return;
        }
        let (job, form) = (JobId::NIL, Form::Committed);
        let waiter = Waiter { to: None, kind, request: 0, job, form, key, size: frame.len() };
        self.backlog.push(waiter, frame);
    }

    fn judge_submit(&self, submit: &Submit<'_>, now: Instant) -> Verdict {
        if let Some(outcome) = self.state.known_job(submit.job, submit.frame) {
            return Verdict::Answer(outcome);
        }
        if submit.frame.len() > wire::limit::SUBMIT_SIZE_MAX {
            let (size, max) = (submit.frame.len(), wire::limit::SUBMIT_SIZE_MAX);
            return refuse(ErrorCode::TooLarge, format!("the job takes {size} bytes, the limit is {max}"));
        }
        for (id, input) in submit.body.inputs.iter().zip(&submit.spec.inputs) {
            let is_known = self.state.files.get(id).is_some_and(|file| {
                file.length == input.file_length && (input.hash.is_nil() || file.hash == input.hash)
            });
            if !is_known {
                let path = bytes_text(&input.path);
                let detail = format!("input '{path}': no file {id} of {} bytes is stored", input.file_length);
                return refuse(ErrorCode::FileUnknown, detail);
            }
        }
        match self.never_runs(&submit.spec, now) {
            Some(detail) => refuse(ErrorCode::Impossible, detail),
            None => Verdict::Propose,
        }
    }

    /// Says why no worker that is up can run a chunk of this; `None` also while none is up, since some may come.
    fn never_runs(&self, spec: &JobSpec, now: Instant) -> Option<String> {
        let is_up = |node: NodeId| self.presence.is_heard(node, now, self.config.timings.grace_ms);
        let nodes = self.state.nodes.values();
        spec.misfit(nodes.filter(|node| node.role == Role::Worker && is_up(node.node)))
    }

    fn judge_cancel(&self, cancel: &Cancel) -> Verdict {
        match self.state.jobs.get(&cancel.job) {
            None => Verdict::Answer(Outcome::UnknownJob { job: cancel.job }),
            Some(job) if job.open.count_in(cancel.range) == 0 => Verdict::Answer(Outcome::Changed { changed: 0 }),
            Some(_) => Verdict::Propose,
        }
    }

    fn judge_file(&self, file: &StoredFile) -> Verdict {
        if let Err(refusal) = self.check_receipts(file) {
            return Verdict::Refuse(refusal);
        }
        let is_known = self.state.files.get(&file.file).is_some_and(|known| {
            (known.hash, known.length) == (file.hash, file.length)
                && file.receipts.iter().all(|receipt| known.copies.contains(&receipt.node))
        });
        if is_known { Verdict::Answer(Outcome::Changed { changed: 0 }) } else { Verdict::Propose }
    }

    /// A file counts as stored on the word of storage nodes only.
    fn check_receipts(&self, file: &StoredFile) -> Result<(), Refusal> {
        let is_valid = |receipt: &wire::record::Receipt| {
            let key = &self.config.receipt_key;
            content::verify_receipt(key, receipt.node, file.file, file.hash, file.length, &receipt.mac)
        };
        if !file.receipts.is_empty() && file.receipts.iter().all(is_valid) {
            return Ok(());
        }
        let detail = format!("file {} of {} bytes has no valid receipt", file.file, file.length);
        Err(Refusal { code: ErrorCode::ReceiptInvalid, detail })
    }

    fn judge_results(&self, results: &Results) -> Verdict {
        let Some(job) = self.state.jobs.get(&results.job) else {
            return Verdict::Answer(Outcome::UnknownJob { job: results.job });
        };
        if !job.has(&results.runs) {
            let detail = format!("a result is beyond the {} chunks of job {}", job.facts.chunk_count, job.number);
            return refuse(ErrorCode::InvalidRequest, detail);
        }
        if results.runs.iter().all(|run| job.open.count_in(run.range()) == 0) {
            return Verdict::Answer(Outcome::Changed { changed: 0 });
        }
        for file in &results.files {
            if let Err(refusal) = self.check_receipts(file) {
                return Verdict::Refuse(refusal);
            }
        }
        Verdict::Propose
    }

    fn judge_register(&self, record: &wire::record::NodeRecord) -> Verdict {
        match self.state.nodes.get(&record.node) {
            // The answer then says whether a newer boot is registered.
            Some(known) if known.boot > record.boot || known == record => {
                Verdict::Answer(Outcome::Changed { changed: 0 })
            }
            None if self.state.nodes.len() >= self.config.limits.nodes_max => {
                refuse(ErrorCode::Busy, format!("{} nodes are registered, no more fit", self.state.nodes.len()))
            }
            Some(_) | None => Verdict::Propose,
        }
    }

    fn judge_lost(&self, lost: &LostWorker, now: Instant) -> Verdict {
        let speaker = Epoch { number: lost.epoch, load_balancer: lost.load_balancer, boot: lost.load_balancer_boot };
        if speaker != self.state.epoch {
            return Verdict::Answer(Outcome::StaleEpoch { current: self.state.epoch.number });
        }
        let registered = self.state.nodes.get(&lost.worker).map_or(BootNonce::NONE, |record| record.boot);
        let heard = self.presence.boot(lost.worker);
        let is_replaced = registered.max(heard) > lost.boot || lost.flags & LOST_NEWER_BOOT != 0;
        if is_replaced {
            return Verdict::Propose;
        }
        let grace = self.config.timings.grace_ms;
        let leading_since = self.leading_since.expect("requests are taken only while leading");
        // A load balancer that is cut off from the workers must not use up every crash limit.
        let heard_at = self.presence.heard_at(lost.worker).filter(|_| heard == lost.boot);
        let silence = now.since(heard_at.unwrap_or(leading_since).max(leading_since));
        if silence < grace && !planted::is(Bug::LossAlwaysBelieved) {
            let detail = format!("it may be alive: nothing heard for {} ms", silence.as_millis());
            return refuse(ErrorCode::Busy, detail);
        }
        Verdict::Propose
    }
}
