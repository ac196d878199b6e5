//! Several masters agree, whatever the network and the disks do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::support::frames::*;
use crate::support::{CLIENT_PEER, WALL, said};
use master::CoreConfig;
use master::core::{Action, Core, Event, Recovered};
use proptest::prelude::*;
use wire::{BootNonce, Duration, FixedPart, Instant, JobId, NodeId, WallTime};

fn master(n: usize) -> NodeId {
    NodeId::from_halves(0xA0A0, 1 + n as u64)
}

struct Member {
    core: Option<Core>,
    config: CoreConfig,
    /// What would survive a crash.
    disk: Recovered,
    unwritten: VecDeque<Action>,
    halted: Option<String>,
}

struct Letter {
    from: usize,
    to: usize,
    frame: Vec<u8>,
    payload: Vec<u8>,
}

/// Masters over a network that a test delays, cuts and plunders.
struct Group {
    members: Vec<Member>,
    now: Instant,
    letters: VecDeque<Letter>,
    /// Who hears nobody and is heard by nobody.
    cut: BTreeSet<usize>,
    /// What clients were told, by the master that said so.
    said: Vec<(usize, String)>,
}

impl Group {
    fn new(size: usize) -> Self {
        Self::with(size, |_| {})
    }

    fn with(size: usize, change: impl Fn(&mut CoreConfig)) -> Self {
        let mut members = Vec::new();
        for n in 0..size {
            let mut config = CoreConfig::new(master(n), boot(1), RECEIPT_KEY);
            config.members = (0..size).map(master).collect();
            (config.name, config.endpoint) = (format!("m{n}"), format!("tcp://m{n}"));
            config.seed = n as u64;
            change(&mut config);
            let unwritten = VecDeque::new();
            members.push(Member { core: None, config, disk: Recovered::default(), unwritten, halted: None });
        }
        let now = Instant(1_000_000);
        let mut group = Self { members, now, letters: VecDeque::new(), cut: BTreeSet::new(), said: Vec::new() };
        (0..size).for_each(|n| group.start(n));
        group
    }

    fn start(&mut self, n: usize) {
        let member = &mut self.members[n];
        let core = Core::new(member.config.clone(), member.disk.clone(), self.now).expect("the disk is whole");
        member.core = Some(core);
        self.step(n, Event::Tick);
    }

    fn crash(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.core = None;
        member.unwritten.clear();
        member.config.boot = BootNonce(member.config.boot.0 + (1 << 32));
        self.letters.retain(|letter| letter.to != n);
    }

    fn core(&self, n: usize) -> &Core {
        self.members[n].core.as_ref().expect("it runs")
    }

    fn step(&mut self, n: usize, event: Event<'_>) {
        let member = &mut self.members[n];
        let Some(core) = &mut member.core else { return };
        let mut actions = Vec::new();
        core.step(event, self.now, WallTime(WALL + self.now.0), &mut actions);
        core.check_invariants();
        for action in actions {
            match action {
                Action::Send { to, frame } => self.said.push((n, said(to, &frame))),
                Action::ToMaster { to, frame, payload } => {
                    let to = (0..).find(|n| master(*n) == to).expect("a member");
                    self.letters.push_back(Letter { from: n, to, frame, payload });
                }
                Action::Persist(_) | Action::SaveSnapshot { .. } => member.unwritten.push_back(action),
                Action::Compact { index } => member.disk.compact(index),
                Action::Halt { why } => member.halted = Some(why),
                Action::Decided(_) => {}
            }
        }
        if self.members[n].halted.is_some() {
            self.crash(n);
        }
    }

    /// The disk of a member finishes the oldest thing that it was given.
    fn write_one(&mut self, n: usize) {
        match self.members[n].unwritten.pop_front() {
            Some(Action::Persist(persist)) => {
                self.members[n].disk.persist(&persist);
                self.step(n, Event::Persisted { ticket: persist.ticket });
            }
            Some(Action::SaveSnapshot { ticket, bytes, .. }) => {
                self.members[n].disk.snapshot = Some(bytes);
                self.step(n, Event::SnapshotSaved { ticket });
            }
            Some(_) | None => {}
        }
    }

    fn deliver(&mut self, letter: &Letter) {
        if self.cut.contains(&letter.from) || self.cut.contains(&letter.to) {
            return;
        }
        let from = master(letter.from);
        self.step(letter.to, Event::FromMaster { from, frame: &letter.frame, payload: &letter.payload });
    }

    /// Everything arrives and is written, and time passes.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            while let Some(letter) = self.letters.pop_front() {
                self.deliver(&letter);
            }
            (0..self.members.len()).for_each(|n| self.write_one(n));
            let is_busy = !self.letters.is_empty() || self.members.iter().any(|member| !member.unwritten.is_empty());
            if is_busy {
                continue;
            }
            let deadlines = self.members.iter().filter_map(|member| member.core.as_ref()?.next_deadline());
            let Some(next) = deadlines.min().filter(|next| *next <= end) else { break };
            self.now = next.max(self.now);
            for n in 0..self.members.len() {
                if self.members[n].core.as_ref().is_some_and(|core| core.next_deadline() <= Some(self.now)) {
                    self.step(n, Event::Tick);
                }
            }
        }
        self.now = end;
    }

    fn ask(&mut self, n: usize, frame: &[u8]) {
        self.step(n, Event::Received { from: CLIENT_PEER, role: None, frame });
        self.step(n, Event::Tick);
    }

    /// What clients were told since the last time.
    fn told(&mut self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.said)
    }

    /// The one that leads, when one does.
    fn leader(&self) -> usize {
        let leads = |n: &usize| self.members[*n].core.as_ref().is_some_and(Core::is_ready) && !self.cut.contains(n);
        let leaders: Vec<usize> = (0..self.members.len()).filter(leads).collect();
        assert_eq!(leaders.len(), 1, "one leads");
        leaders[0]
    }

    fn follower(&self) -> usize {
        let leader = self.leader();
        (0..self.members.len()).find(|n| *n != leader).expect("there are several")
    }

    /// All members that run have the same state.
    fn check_equal(&self) {
        let states: Vec<_> = self.members.iter().filter_map(|member| Some(member.core.as_ref()?.state())).collect();
        for pair in states.windows(2) {
            assert_eq!(pair[0].index, pair[1].index);
            assert!(pair[0].encode() == pair[1].encode(), "states differ at index {}", pair[0].index);
        }
    }
}

const SECONDS: Duration = Duration::from_secs(3);

fn job(n: u64) -> JobId {
    JobId((0x0190_0000_0000_0000_0000_0000_0000_0000u128 | u128::from(n)).to_be_bytes())
}

#[test]
fn three_masters_elect_one_and_agree() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let leader = group.leader();
    group.ask(leader, &submit(1, J1, &a_spec(3)));
    assert_eq!(group.told(), [], "nothing is acknowledged before others have it");
    group.run(Duration::from_millis(1));
    assert_eq!(group.told(), [(leader, "1: job_accepted #1 number 1".into())]);
    group.run(SECONDS);
    group.check_equal();
    assert!(group.core(group.follower()).state().jobs.contains_key(&J1));
}

#[test]
fn a_leader_alone_acknowledges_nothing() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let leader = group.leader();
    (0..3).filter(|n| *n != leader).for_each(|n| group.crash(n));
    group.ask(leader, &submit(1, J1, &a_spec(3)));
    group.run(Duration::from_millis(100));
    assert_eq!(group.told(), []);
    group.run(SECONDS);
    // It has noticed that nobody follows it: whoever waits is to ask again, and whoever asks now as well.
    assert_eq!(group.told(), [(leader, "1: error not_leader #1: ".into())]);
    group.ask(leader, &submit(2, J1, &a_spec(3)));
    assert_eq!(group.told(), [(leader, "1: error not_leader #2: ".into())]);
}

#[test]
fn a_follower_names_the_leader() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let (leader, follower) = (group.leader(), group.follower());
    for frame in [submit(1, J1, &a_spec(3)), query(1, wire::Subject::Jobs).frame(CLIENT, b""), watch(1, 0, None, 0)] {
        group.ask(follower, &frame);
        assert_eq!(group.told(), [(follower, format!("1: error not_leader #1: tcp://m{leader}"))]);
    }
}

#[test]
fn a_leader_that_was_replaced_answers_nothing_from_its_old_state() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let old = group.leader();
    group.cut.insert(old);
    // The others elect another within a second; the old one does not know yet, if it is asked early enough.
    group.ask(old, &query(1, wire::Subject::Jobs).frame(CLIENT, b""));
    group.ask(old, &cancel(2, J1, 0, u32::MAX));
    group.run(Duration::from_millis(50));
    assert_eq!(group.told(), [], "it cannot know what was accepted elsewhere");
    group.run(SECONDS);
    let refused: Vec<String> = group.told().into_iter().map(|(_, said)| said).collect();
    assert_eq!(refused, ["1: error not_leader #1: ", "1: error not_leader #2: "]);

    let new = group.leader();
    group.ask(new, &submit(3, J1, &a_spec(3)));
    group.run(SECONDS);
    assert_eq!(group.told(), [(new, "1: job_accepted #3 number 1".into())]);
    group.cut.clear();
    group.run(SECONDS);
    assert_ne!(group.leader(), old, "it comes back as a follower");
    group.check_equal();
}

#[test]
fn a_leader_that_was_replaced_tells_no_watcher_what_is_older_than_it_knows() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let old = group.leader();
    group.cut.insert(old);
    // Its successor has told the watcher of more.
    let ahead = group.core(old).state().index + 1;
    group.ask(old, &watch(1, ahead, None, 0));
    group.ask(old, &watch(2, ahead, None, wire::WATCH_FRESH));
    group.run(Duration::from_millis(50));
    assert_eq!(group.told(), [], "it cannot know what has happened elsewhere");
    group.run(SECONDS);
    let refused: Vec<String> = group.told().into_iter().map(|(_, said)| said).collect();
    assert_eq!(refused, ["1: error not_leader #1: ", "1: error not_leader #2: "]);
}

#[test]
fn what_only_a_dead_leader_had_is_replaced_and_never_acknowledged() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let old = group.leader();
    group.cut.insert(old);
    group.ask(old, &submit(1, J1, &a_spec(3)));
    group.write_one(old);
    group.crash(old);
    group.run(SECONDS);
    let new = group.leader();
    group.ask(new, &submit(2, J2, &a_spec(3)));
    group.run(SECONDS);
    assert_eq!(group.told(), [(new, "1: job_accepted #2 number 1".into())]);
    group.cut.clear();
    group.start(old);
    group.run(SECONDS);
    group.check_equal();
    assert_eq!(group.core(old).state().jobs.keys().collect::<Vec<_>>(), [&J2]);
    // The same request again is the same job, now accepted for the first time.
    let leader = group.leader();
    group.ask(leader, &submit(1, J1, &a_spec(3)));
    group.run(SECONDS);
    assert_eq!(group.told(), [(leader, "1: job_accepted #1 number 2".into())]);
}

#[test]
fn when_all_die_at_once_everything_acknowledged_is_there() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let leader = group.leader();
    for n in 1..=20 {
        group.ask(leader, &submit(n, job(n), &a_spec(2)));
        group.run(Duration::from_millis(1));
    }
    assert_eq!(group.told().len(), 20);
    (0..3).for_each(|n| group.crash(n));
    (0..3).for_each(|n| group.start(n));
    group.run(SECONDS);
    let leader = group.leader();
    assert_eq!(group.core(leader).state().jobs.len(), 20);
    group.check_equal();
}

#[test]
fn a_follower_that_is_too_late_for_the_log_gets_a_snapshot() {
    let mut group = Group::with(3, |config| {
        config.timings.snapshot_entries = 20;
        config.limits.log_entries_kept = 2;
    });
    group.run(SECONDS);
    let (leader, late) = (group.leader(), group.follower());
    group.crash(late);
    for n in 1..=100 {
        group.ask(leader, &submit(n, job(n), &a_spec(2)));
        group.run(Duration::from_millis(30));
    }
    assert_eq!(group.told().len(), 100);
    group.start(late);
    group.run(SECONDS);
    group.check_equal();
    assert_eq!(group.core(late).state().jobs.len(), 100);
    // And it is a member like any other: it keeps what it was given, and counts for a majority.
    group.crash(late);
    group.start(late);
    let third = (0..3).find(|n| *n != leader && *n != late).expect("three");
    group.crash(third);
    group.run(SECONDS);
    let leader = group.leader();
    group.ask(leader, &submit(101, job(101), &a_spec(2)));
    group.run(SECONDS);
    assert_eq!(group.told(), [(leader, "1: job_accepted #101 number 101".into())]);
    group.check_equal();
}

#[test]
fn a_master_that_forgot_what_it_acknowledged_ends() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let (leader, wiped) = (group.leader(), group.follower());
    group.ask(leader, &submit(1, J1, &a_spec(2)));
    group.run(SECONDS);
    group.crash(wiped);
    // The leader must not have noticed: it would probe the newcomer carefully.
    group.members[wiped].disk = Recovered::default();
    group.start(wiped);
    group.run(SECONDS);
    let why = group.members[wiped].halted.clone().expect("it ends");
    assert!(why.contains("forgotten what it acknowledged"), "{why}");
}

#[test]
fn a_leader_that_ends_hands_over_at_once() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let old = group.leader();
    group.step(old, Event::Stop);
    group.run(Duration::from_millis(5));
    assert_ne!(group.leader(), old);
}

#[test]
fn a_master_whose_state_is_another_than_that_of_most_ends() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let (leader, odd) = (group.leader(), group.follower());
    for n in 1..=5 {
        group.ask(leader, &submit(n, job(n), &a_spec(2)));
        group.run(Duration::from_millis(1));
    }
    group.crash(odd);
    // A byte of an entry that it acknowledged is another: the name of a program.
    let entries = &mut group.members[odd].disk.entries;
    let spoiled = entries.iter_mut().find_map(|entry| {
        let at = entry.data.windows(4).position(|word| word == b"true")?;
        Some((entry, at))
    });
    let (entry, at) = spoiled.expect("a job was submitted");
    let mut data = entry.data.to_vec();
    data[at] = b'T';
    entry.data = data.into();
    group.start(odd);
    for n in 6..=1_100 {
        group.ask(leader, &submit(n, job(n), &a_spec(2)));
        group.run(Duration::from_millis(1));
    }
    group.run(SECONDS);
    let why = group.members[odd].halted.clone().expect("it ends");
    assert!(why.contains("at entry 1024"), "{why}");
    assert!((0..3).filter(|n| *n != odd).all(|n| group.members[n].halted.is_none()), "the others go on");
}

#[test]
fn a_leader_whose_disk_is_full_has_another_lead_and_comes_back_when_there_is_room() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let full = group.leader();
    group.step(full, Event::DiskFull);
    group.run(Duration::from_millis(100));
    let leader = group.leader();
    assert_ne!(leader, full);
    group.ask(leader, &submit(1, J1, &a_spec(2)));
    group.run(SECONDS);
    assert_eq!(group.told(), [(leader, "1: job_accepted #1 number 1".into())]);
    group.check_equal();
    group.crash(leader);
    group.run(SECONDS);
    let third = (0..3).find(|n| *n != leader && *n != full).expect("three");
    assert!([full, third].contains(&group.leader()), "one of the two others leads");
}

#[test]
fn strangers_are_not_heard() {
    let mut group = Group::new(3);
    group.run(SECONDS);
    let (leader, stranger) = (group.leader(), Group::new(4));
    let mut votes = stranger;
    votes.run(SECONDS);
    let index = group.core(leader).state().index;
    for letter in votes.letters.drain(..) {
        group.step(leader, Event::FromMaster { from: NodeId([9; 16]), frame: &letter.frame, payload: b"" });
    }
    for bytes in [&b""[..], &[40; 3], &[40; 200]] {
        group.step(leader, Event::FromMaster { from: master(1), frame: bytes, payload: b"" });
    }
    group.run(SECONDS);
    assert_eq!((group.leader(), group.core(leader).state().index), (leader, index));
}

/// One thing that goes wrong, or on.
#[derive(Clone, Copy, Debug)]
enum Chance {
    /// A message of those under way arrives, out of its turn.
    Deliver(usize),
    Lose(usize),
    Repeat(usize),
    Write(usize),
    Wait(u64),
    Crash(usize),
    Start(usize),
    Cut(usize),
    Mend,
    Submit(usize),
}

fn a_chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        40 => (0..16usize).prop_map(Chance::Deliver),
        4 => (0..16usize).prop_map(Chance::Lose),
        4 => (0..16usize).prop_map(Chance::Repeat),
        30 => (0..3usize).prop_map(Chance::Write),
        30 => (1..60u64).prop_map(Chance::Wait),
        2 => (0..3usize).prop_map(Chance::Crash),
        4 => (0..3usize).prop_map(Chance::Start),
        1 => (0..3usize).prop_map(Chance::Cut),
        2 => Just(Chance::Mend),
        12 => (0..3usize).prop_map(Chance::Submit),
    ]
}

/// Lets it all happen, then a calm; all that was ever acknowledged must be there, once, and the same on all.
fn live_through(chances: &[Chance]) {
    let mut group = Group::with(3, |config| {
        config.timings.snapshot_entries = 7;
        config.limits.log_entries_kept = 1;
    });
    group.run(SECONDS);
    let mut submitted = 0;
    // The number that was told for a job; it is told only once, whoever is asked.
    let mut numbers: BTreeMap<u64, String> = BTreeMap::new();
    for chance in chances {
        match *chance {
            Chance::Deliver(at) | Chance::Lose(at) | Chance::Repeat(at) if group.letters.is_empty() => {
                let _ = at;
            }
            Chance::Deliver(at) => {
                let letter = group.letters.remove(at % group.letters.len()).expect("it is one of them");
                group.deliver(&letter);
            }
            Chance::Lose(at) => drop(group.letters.remove(at % group.letters.len())),
            Chance::Repeat(at) => {
                let letter = group.letters.remove(at % group.letters.len()).expect("it is one of them");
                group.deliver(&letter);
                group.letters.push_back(letter);
            }
            Chance::Write(n) => group.write_one(n),
            Chance::Wait(ms) => {
                group.now = group.now + Duration::from_millis(ms);
                (0..3).for_each(|n| group.step(n, Event::Tick));
            }
            Chance::Crash(n) => group.crash(n),
            Chance::Start(n) if group.members[n].core.is_none() => group.start(n),
            Chance::Start(_) => {}
            Chance::Cut(n) => drop(group.cut.insert(n)),
            Chance::Mend => group.cut.clear(),
            Chance::Submit(n) => {
                submitted += 1;
                group.ask(n, &submit(submitted, job(submitted), &a_spec(2)));
            }
        }
        note(&mut group, &mut numbers);
    }
    group.cut.clear();
    (0..3).filter(|n| group.members[*n].core.is_none()).collect::<Vec<_>>().into_iter().for_each(|n| group.start(n));
    group.run(Duration::from_secs(20));
    note(&mut group, &mut numbers);
    for member in &group.members {
        assert_eq!(member.halted, None);
    }
    group.check_equal();
    let leader = group.leader();
    for (n, number) in numbers {
        let known = group.core(leader).state().jobs.get(&job(n)).expect("what was acknowledged is there");
        assert_eq!(format!("number {}", known.number), number);
    }
}

fn note(group: &mut Group, numbers: &mut BTreeMap<u64, String>) {
    for (_, said) in group.told() {
        if let Some((_, accepted)) = said.split_once("job_accepted #") {
            let (n, number) = accepted.split_once(' ').expect("a number");
            let before = numbers.insert(n.parse().expect("a number"), number.to_owned());
            assert!(before.is_none_or(|before| before == number), "{said}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn nothing_acknowledged_is_lost_whatever_happens(chances in proptest::collection::vec(a_chance(), 1..400)) {
        live_through(&chances);
    }
}
