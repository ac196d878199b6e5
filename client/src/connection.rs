//! A conversation with the masters: one request at a time, sent again until it is answered.
//!
//! Requests are numbered and idempotent, so a lost one, or a lost answer, costs one repetition. A master that does not
//! lead says who does; one that is busy or starting is asked again, ever more slowly, until the deadline; instead of one
//! that is silent, or whose connection has broken, another is asked.

use std::collections::BTreeMap;
use std::path::Path;

use node::signal::Stop;
use node::{Clock, Endpoint, EndpointConfig, Frame, PeerClass};
use wire::{BootNonce, Duration, ErrorCode, Instant, Message, NodeId, PeerId, Role};

use crate::{ClientError, Cluster};

/// How long a request is repeated until we give up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A question changes nothing, so giving up early costs nothing.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The first repetition of a request comes after this, later ones after ever longer.
const RESEND_INTERVAL: Duration = Duration::from_secs(1);
const RESEND_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Masters of which none leads, and one that is busy or starting, are asked again this soon at first.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// An election is over in about half a second, so nobody waits much longer than this for its end.
const ELECTION_PAUSE_MAX: Duration = Duration::from_millis(200);
/// A connection that does not stand by then is not waited for, if one to another master stands.
const CONNECT_PATIENCE: Duration = Duration::from_millis(100);
/// Questions that are open at once.
const QUESTIONS_PER_TURN_MAX: usize = 64;
/// Messages taken in one turn.
const MESSAGES_PER_TURN_MAX: usize = 64;

/// Takes how many bytes of a transfer have gone, and of how many if that is known.
pub type OnProgress = Box<dyn FnMut(u64, Option<u64>)>;

/// Is told why a request waits, once for each that takes long.
pub type OnWaiting = Box<dyn FnMut(&str)>;

/// When in the life of the masters' log an answer was given, and what it reflects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Of the leader that answered.
    pub term: u64,
    /// That of the request's own entry, or the newest that the answer takes into account.
    pub index: u64,
}

/// A client's connection to its cluster.
pub struct Connection {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    /// How long a request is repeated before it fails; 30 s unless the caller says otherwise.
    pub timeout: Duration,
    /// The same for a question; 10 s unless the caller says otherwise, and never longer than `timeout`.
    pub query_timeout: Duration,
    /// Is told when an answer is long in coming.
    pub on_waiting: Option<OnWaiting>,
    /// Is told how transfers go.
    pub on_progress: Option<OnProgress>,
    /// Of a transfer of several files: bytes of those that have gone, and of all.
    pub(crate) moved_of: Option<(u64, u64)>,
    pub(crate) endpoint: Endpoint,
    /// In the order of the cluster's masters.
    masters: Vec<PeerId>,
    /// Which of the masters we ask.
    leader: usize,
    /// The storage node that we have chosen, once one was needed.
    storage: Option<PeerId>,
    last_request: u64,
    /// Spreads repetitions of many clients.
    jitter: u64,
    /// The highest log index that an answer has named; later answers must not be older.
    pub(crate) index: u64,
    /// Of the newest answer.
    position: Position,
    stop: Option<Stop>,
}

/// When to repeat a request, and how the last repetition fares.
struct Resend {
    at: Instant,
    interval: Duration,
    sent_at: Instant,
    /// The connection has stood since.
    was_connected: bool,
    /// The master that was asked has said something.
    is_answered: bool,
}

impl Connection {
    /// Opens connections to all masters of `cluster`. Nothing is said yet, so a cluster that is down is no error here.
    pub fn open(cluster: Cluster) -> Result<Self, ClientError> {
        let failed =
            |error: node::EndpointError| ClientError::Cluster { path: cluster.dir.clone(), why: error.to_string() };
        // Several clients may use one certificate at once: what they choose must differ.
        let (upper, lower) = NodeId::random().halves();
        let boot = BootNonce::new(1, upper as u32);
        let config = EndpointConfig::new(cluster.node, boot, cluster.certificate.clone());
        let mut endpoint = Endpoint::open(config).map_err(failed)?;
        let mut masters = Vec::new();
        for master in &cluster.masters {
            let peer = endpoint.connect(&master.endpoint, Some(master.key), Role::Master, PeerClass::Control);
            masters.push(peer.map_err(failed)?);
        }
        Ok(Self {
            cluster,
            clock: Clock::new(),
            timeout: TIMEOUT,
            query_timeout: QUERY_TIMEOUT,
            on_waiting: None,
            on_progress: None,
            moved_of: None,
            endpoint,
            masters,
            leader: 0,
            storage: None,
            last_request: lower >> 1,
            jitter: upper | 1,
            index: 0,
            position: Position::default(),
            stop: None,
        })
    }

    /// The clock by which the deadlines of this connection are told.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The cluster that this connection is for.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where in the log the newest answer of a master stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// From now on SIGINT and SIGTERM end what waits with `ClientError::Interrupted`, instead of the process.
    pub fn catch_signals(&mut self) {
        self.stop = Some(Stop::install(&self.endpoint.bell()));
    }

    /// Lets signals end the process's waits no more: for what has to be done after one.
    pub fn ignore_signals(&mut self) {
        self.stop = None;
    }

    /// Fails when a signal has come since `catch_signals`.
    pub fn check_signals(&self) -> Result<(), ClientError> {
        match self.stop {
            Some(stop) if stop.requested() => Err(ClientError::Interrupted),
            Some(_) | None => Ok(()),
        }
    }

    /// Sends the frame that `build` makes for a fresh request number until it is answered, and returns the answer: any
    /// message but an `error`, which becomes an error here.
    pub(crate) fn ask(&mut self, build: impl FnOnce(u64) -> Vec<u8>) -> Result<Frame, ClientError> {
        self.ask_within(self.timeout, build)
    }

    /// As `ask`, for `timeout` at most.
    pub(crate) fn ask_within(
        &mut self,
        timeout: Duration,
        build: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Frame, ClientError> {
        let answer = self.ask_until(None, RESEND_INTERVAL, timeout, build)?;
        Ok(answer.expect("without an end there is an answer or an error"))
    }

    /// As `ask_within`, with the first repetition after `interval`, and `None` when `end` comes before an answer.
    pub(crate) fn ask_until(
        &mut self,
        end: Option<Instant>,
        interval: Duration,
        timeout: Duration,
        build: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Option<Frame>, ClientError> {
        let request = self.next_request();
        let frame = build(request);
        let begun = self.clock.now();
        let deadline = begun + timeout;
        // One repetition may be bad luck.
        let mut tell_at = Some(begun + interval * 3 / 2);
        let mut refused = None;
        let mut refusals = 0;
        let mut pause = REFUSED_PAUSE;
        let mut resend = Resend { at: begun, interval, sent_at: begun, was_connected: false, is_answered: false };
        loop {
            self.check_signals()?;
            let now = self.clock.now();
            if end.is_some_and(|end| now >= end) {
                return Ok(None);
            }
            if now >= deadline {
                let (endpoints, waited, dir) = (self.endpoints(), now.since(begun), self.cluster.dir.clone());
                return Err(refused.unwrap_or(ClientError::NoMaster { endpoints, waited, dir }));
            }
            if now >= resend.at {
                // A full queue is as good as a lost message: it is repeated.
                let _ = self.endpoint.send(self.masters[self.leader], frame.clone());
                self.schedule(&mut resend, now);
                (resend.sent_at, resend.is_answered) = (now, false);
                resend.was_connected = self.endpoint.is_connected(self.masters[self.leader]);
            }
            if tell_at.is_some_and(|at| now >= at) {
                tell_at = None;
                self.tell_waiting(refused.as_ref());
            }
            let mut wake_at = tell_at.unwrap_or(deadline).min(resend.at).min(deadline);
            if !self.endpoint.is_connected(self.masters[self.leader]) && now < resend.sent_at + CONNECT_PATIENCE {
                wake_at = wake_at.min(resend.sent_at + CONNECT_PATIENCE);
            }
            self.endpoint.wait(Some(end.map_or(wake_at, |end| end.min(wake_at))));
            for frame in self.answers_to(request) {
                match Message::decode(&frame)? {
                    Message::Error(error, detail) => {
                        let code = ErrorCode::from_number(error.code.get());
                        let detail = wire::bytes_text(detail);
                        refused = Some(self.on_refusal(code, detail)?);
                        resend.is_answered = true;
                        // Only silence is a reason to ask ever more rarely.
                        resend.interval = interval;
                        resend.at = self.clock.now();
                        refusals += 1;
                        let is_short = matches!(code, Some(ErrorCode::NotLeader | ErrorCode::NotReady));
                        // Who does not lead knows of another, or that one is being elected: all are asked, then again.
                        if code != Some(ErrorCode::NotLeader) || refusals % self.masters.len() == 0 {
                            resend.at = resend.at + pause;
                            pause = (pause * 2).min(if is_short { ELECTION_PAUSE_MAX } else { RESEND_INTERVAL });
                        }
                    }
                    answer => {
                        self.position = position_of(&answer).unwrap_or(self.position);
                        return Ok(Some(frame));
                    }
                }
            }
            self.look_elsewhere(&mut resend);
        }
    }

    /// Asks several questions at once, each built for a number of its own. What is not answered soon or is refused for a reason
    /// that may pass comes back as `None`, to be asked by itself.
    pub(crate) fn ask_each(&mut self, count: usize, build: impl Fn(usize, u64) -> Vec<u8>) -> Vec<Option<Frame>> {
        let mut answers: Vec<Option<Frame>> = (0..count).map(|_| None).collect();
        for begin in (0..count).step_by(QUESTIONS_PER_TURN_MAX) {
            let end = count.min(begin + QUESTIONS_PER_TURN_MAX);
            let mut waiting: BTreeMap<u64, usize> = BTreeMap::new();
            for at in begin..end {
                let request = self.next_request();
                waiting.insert(request, at);
                // What is not taken is not answered.
                let _ = self.endpoint.send(self.masters[self.leader], build(at, request));
            }
            let mut deadline = self.clock.now() + RESEND_INTERVAL;
            while !waiting.is_empty() && self.clock.now() < deadline {
                self.endpoint.wait(Some(deadline));
                self.endpoint.drain(MESSAGES_PER_TURN_MAX, &mut |_, _, frames| {
                    let Some(frame) = frames.into_iter().next() else { return };
                    let request = Message::decode(&frame).ok().as_ref().and_then(request_of);
                    if let Some(at) = request.and_then(|request| waiting.remove(&request)) {
                        answers[at] = Some(frame);
                        deadline = self.clock.now() + RESEND_INTERVAL;
                    }
                });
            }
            if waiting.len() == end - begin {
                // Nobody is there: whoever asks by itself looks for another.
                break;
            }
        }
        answers
    }

    /// Another master may lead when ours is silent or gone.
    fn look_elsewhere(&mut self, resend: &mut Resend) {
        if resend.is_answered {
            return;
        }
        let now = self.clock.now();
        let stands = self.endpoint.is_connected(self.masters[self.leader]);
        let count = self.masters.len();
        let mut others = (1..count).map(|step| (self.leader + step) % count);
        let connected = others.find(|other| self.endpoint.is_connected(self.masters[*other]));
        let is_late = resend.was_connected || now >= resend.sent_at + CONNECT_PATIENCE;
        resend.was_connected |= stands;
        if let Some(other) = connected.filter(|_| !stands && is_late) {
            self.leader = other;
            resend.at = now;
        } else if now >= resend.at {
            self.leader = (self.leader + 1) % count;
        }
    }

    fn tell_waiting(&mut self, refused: Option<&ClientError>) {
        let why = match refused {
            Some(refusal) => format!("waiting for the cluster: {refusal}"),
            None => format!("waiting for a master at {}", self.endpoints()),
        };
        if let Some(on_waiting) = &mut self.on_waiting {
            on_waiting(&why);
        }
    }

    /// Sets when to repeat next: the interval and up to a quarter more, then half as long again the next time.
    fn schedule(&mut self, resend: &mut Resend, now: Instant) {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        resend.at = now + resend.interval + resend.interval / 4 * (self.jitter % 1024) as u32 / 1024;
        resend.interval = (resend.interval * 3 / 2).min(RESEND_INTERVAL_MAX);
    }

    /// A number that no request of this connection has had.
    pub(crate) fn next_request(&mut self) -> u64 {
        // Ranges of a file are numbered on from here, one by one.
        self.last_request += 1 << 24;
        self.last_request
    }

    /// The connection to a storage node: over its local bulk socket where this machine has it, else its control socket.
    pub(crate) fn storage(&mut self) -> Result<PeerId, ClientError> {
        if let Some(storage) = self.storage {
            return Ok(storage);
        }
        let mut nodes = self.nodes()?;
        nodes.retain(|node| node.role == Role::Storage);
        // One that is lost may be on its way back.
        nodes.sort_by_key(|node| node.state);
        let Some(node) = nodes.first() else {
            return Err(ClientError::NoStorage { what: "the cluster has no storage node".into() });
        };
        let local = node.bulk_endpoint.strip_prefix("ipc://").filter(|path| Path::new(path).exists());
        let peer = match local {
            Some(_) => self.endpoint.connect(&node.bulk_endpoint, None, Role::Storage, PeerClass::Bulk),
            None => self.endpoint.connect(&node.endpoint, Some(node.public_key), Role::Storage, PeerClass::Control),
        };
        let peer = peer.map_err(|error| ClientError::NoStorage { what: error.to_string() })?;
        self.storage = Some(peer);
        Ok(peer)
    }

    /// The messages of this turn that `peer` has sent, each with all its frames.
    pub(crate) fn messages_from(&mut self, peer: PeerId) -> Vec<Vec<Frame>> {
        let mut messages = Vec::new();
        self.endpoint.drain(MESSAGES_PER_TURN_MAX, &mut |from, _, frames| {
            if from == peer && !frames.is_empty() {
                messages.push(frames);
            }
        });
        messages
    }

    /// The messages of this turn that answer `request`.
    fn answers_to(&mut self, request: u64) -> Vec<Frame> {
        let mut answers = Vec::new();
        self.endpoint.drain(MESSAGES_PER_TURN_MAX, &mut |_, _, frames| {
            let Some(frame) = frames.into_iter().next() else { return };
            if Message::decode(&frame).is_ok_and(|message| request_of(&message) == Some(request)) {
                answers.push(frame);
            }
        });
        answers
    }

    /// What a refusal means: an error at once, or the one to give if the deadline comes first.
    fn on_refusal(&mut self, code: Option<ErrorCode>, detail: String) -> Result<ClientError, ClientError> {
        let Some(code) = code else { return Err(ClientError::Protocol(format!("unknown error code: {detail}"))) };
        match code {
            ErrorCode::NotLeader => {
                // The detail names the leader's endpoint, if there is a leader.
                let named = self.cluster.masters.iter().position(|master| detail.contains(&master.endpoint));
                self.leader = named.unwrap_or((self.leader + 1) % self.masters.len());
                Ok(ClientError::Refused { code, detail })
            }
            ErrorCode::Busy | ErrorCode::NotReady => Ok(ClientError::Refused { code, detail }),
            ErrorCode::Malformed
            | ErrorCode::UnknownType
            | ErrorCode::NotAllowed
            | ErrorCode::UnknownJob
            | ErrorCode::FileUnknown
            | ErrorCode::ExistsDifferent
            | ErrorCode::InvalidRequest
            | ErrorCode::Impossible
            | ErrorCode::TooLarge
            | ErrorCode::HashMismatch
            | ErrorCode::UploadUnknown
            | ErrorCode::DiskFull
            | ErrorCode::StaleEpoch
            | ErrorCode::ReceiptInvalid
            | ErrorCode::UnknownNode => Err(ClientError::Refused { code, detail }),
        }
    }

    fn endpoints(&self) -> String {
        self.cluster.masters.iter().map(|master| master.endpoint.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// The request that a master's message answers.
fn request_of(message: &Message<'_>) -> Option<u64> {
    match message {
        Message::Error(fixed, _) => Some(fixed.request.get()),
        Message::JobAccepted(fixed, _) => Some(fixed.request.get()),
        Message::Committed(fixed, _) => Some(fixed.request.get()),
        Message::Answer(fixed, _) => Some(fixed.request.get()),
        Message::WatchBatch(fixed, _) => Some(fixed.request.get()),
        _ => None,
    }
}

/// Where in the log an answer stands.
fn position_of(answer: &Message<'_>) -> Option<Position> {
    let (term, index) = match answer {
        Message::JobAccepted(fixed, _) => (fixed.term.get(), fixed.index),
        Message::Committed(fixed, _) => (fixed.term.get(), fixed.index),
        Message::Answer(fixed, _) => (fixed.term.get().into(), fixed.index),
        Message::WatchBatch(fixed, _) => (fixed.term.get(), fixed.index),
        _ => return None,
    };
    Some(Position { term, index: index.get() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::Certificate;
    use node::settings::Server;

    #[test]
    fn a_silent_cluster_is_told_with_its_endpoint() {
        // A port that nobody listens on: bound and closed again.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = format!("tcp://127.0.0.1:{port}");
        let cluster = Cluster {
            dir: "/nowhere".into(),
            masters: vec![Server { endpoint: endpoint.clone(), key: Certificate::new().public }],
            certificate: Certificate::new(),
            node: NodeId([7; 16]),
        };
        let mut connection = Connection::open(cluster).unwrap();
        connection.timeout = Duration::from_millis(100);
        let error = connection.status().unwrap_err();
        assert!(matches!(error, ClientError::NoMaster { .. }), "{error}");
        assert!(error.to_string().contains(&endpoint), "{error}");
    }
}
