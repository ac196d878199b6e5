//! Who waits for what of which file, and who is answered.

use super::*;

impl Supply {
    pub(super) fn on_asked(
        &mut self,
        ticket: Ticket,
        wanted: Wanted,
        need: Need,
        deadline: Instant,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) {
        let file = wanted.file;
        assert!(!self.tickets.contains_key(&ticket), "{ticket:?} waits already");
        let known = if self.tickets.len() < self.settings.tickets_max {
            self.entry(wanted, true, now, actions)
        } else {
            Err(local(file, "too many wait already"))
        };
        if let Err(why) = known {
            return actions.push(SupplyAction::Fail { ticket, why });
        }
        self.tickets.insert(ticket, Waiting { file, need, deadline });
        self.deadlines.insert((deadline, ticket));
        let entry = self.files.get_mut(&file).expect("it was found above");
        entry.tickets.insert(ticket, need);
        // The kernel makes a read that failed again at once. Whoever asks for anything else begins something, perhaps because
        // what was wrong has been put right.
        if !matches!(need, Need::Range { .. }) {
            entry.doubts.clear();
        }
        match need {
            Need::Range { offset, length } => self.on_touched(file, offset, length),
            Need::Whole => self.raise(file, Fetching::Whole, actions),
            Need::Length => {}
        }
        self.seek(file);
        self.settle(file, ticket, actions);
        // Whoever asked for the whole has patience of its own: a storage node may be starting again.
        let entry = self.files.get(&file);
        let muted = entry.and_then(|entry| entry.muted.as_ref()).filter(|(until, _)| now < *until);
        if let Some((_, why)) = muted
            && need != Need::Whole
            && self.tickets.contains_key(&ticket)
        {
            let why = why.clone();
            self.fail(ticket, why, actions);
        }
    }

    /// Sees to it that the file is known here, with all that is known of it.
    pub(super) fn entry(
        &mut self,
        wanted: Wanted,
        is_awaited: bool,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) -> Result<(), FetchError> {
        let file = wanted.file;
        let mismatch = FetchError::Mismatch { address: FileAddress { file, piece: None } };
        if wanted.hash.is_some_and(|hash| !file.names(hash)) {
            return Err(mismatch);
        }
        let Some(entry) = self.files.get_mut(&file) else {
            if self.files.len() >= self.settings.files_max && !self.make_room(is_awaited, now, actions) {
                return Err(local(file, "too many files are on their way already"));
            }
            self.files.insert(file, Entry::new(wanted));
            self.begin(file, actions);
            return Ok(());
        };
        let news_hash = wanted.hash.filter(|_| entry.wanted.hash.is_none());
        if news_hash.is_none() && wanted.hash.is_some() && wanted.hash != entry.wanted.hash {
            return Err(mismatch);
        }
        let news_length = wanted.length.filter(|_| !matches!(entry.length, Length::Told(_)));
        if news_length.is_none() && wanted.length.is_some() && wanted.length != entry.length.known() {
            return Err(mismatch);
        }
        if news_hash.is_some() || news_length.is_some() {
            // What was begun was begun knowing less.
            entry.wanted.hash = entry.wanted.hash.or(wanted.hash);
            entry.wanted.length = entry.wanted.length.or(wanted.length);
            self.restart(file, actions);
        }
        Ok(())
    }

    /// Begins with what has to be known first.
    pub(super) fn begin(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        let entry = self.files.get_mut(&file).expect("whoever begins a file has it");
        match entry.length.known() {
            None => {
                entry.stage = Stage::Length { is_asked: false };
                self.seek(file);
            }
            Some(length) => {
                entry.stage = Stage::Working;
                let wanted = Wanted { length: Some(length), ..entry.wanted };
                let work = self.work(file, Kind::Open);
                actions.push(SupplyAction::Open { work, wanted });
            }
        }
    }

    /// Gives up all that was done for the file but not who waits for it, and begins again.
    pub(super) fn restart(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        self.let_go(file, actions);
        let entry = self.files.get_mut(&file).expect("whoever begins a file has it");
        entry.reset();
        self.begin(file, actions);
    }

    /// Forgets a file that nobody waits for.
    pub(super) fn close(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        self.let_go(file, actions);
        if let Some(entry) = self.files.remove(&file) {
            assert!(entry.tickets.is_empty(), "somebody waits for {file}");
        }
    }

    /// Takes the file out of all lines; what is under way for it counts for nothing.
    pub(super) fn let_go(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        if entry.is_open {
            actions.push(SupplyAction::Close { file });
        }
        entry.is_open = false;
        if let Some(length) = entry.length.known() {
            self.whole.remove(&(length, file));
        }
        self.asked.retain(|_, asked| asked.file != file);
        self.errands.retain(|in_line| *in_line != file);
        self.demand.retain(|(in_line, _)| *in_line != file);
        self.ahead.retain(|(in_line, _)| *in_line != file);
        for working in self.works.values_mut().filter(|working| working.file == Some(file)) {
            working.file = None;
        }
    }

    /// Makes room for a file by forgetting others: those that nobody waits for and that are not to be fetched whole, first
    /// such as would be tried again; for somebody who waits also one that is only fetched for later.
    pub(super) fn make_room(&mut self, is_awaited: bool, now: Instant, actions: &mut Vec<SupplyAction>) -> bool {
        let is_muted = |entry: &Entry| entry.muted.as_ref().is_some_and(|(until, _)| now < *until);
        let is_idle = |entry: &Entry| entry.tickets.is_empty() && entry.how == Fetching::Lazily;
        for with_muted in [false, true] {
            let found = self.files.iter().filter(|(_, entry)| is_idle(entry) && is_muted(entry) == with_muted);
            let idle: Vec<FileId> = found.map(|(file, _)| *file).collect();
            if !idle.is_empty() {
                idle.iter().for_each(|file| self.close(*file, actions));
                return true;
            }
        }
        let stocked = self.files.iter().filter(|(_, entry)| is_awaited && entry.tickets.is_empty());
        let Some(file) = stocked.map(|(file, _)| *file).next() else { return false };
        self.close(file, actions);
        true
    }

    /// Answers the ticket if what it waits for is here, else sees to it that it comes.
    pub(super) fn settle(&mut self, file: FileId, ticket: Ticket, actions: &mut Vec<SupplyAction>) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        let Some(need) = entry.tickets.get(&ticket).copied() else { return };
        if entry.is_met(need) {
            let length = entry.length.known().expect("what is met is known");
            self.take(ticket);
            return actions.push(SupplyAction::Answer { ticket, length });
        }
        for block in entry.missing(need) {
            if entry.put_in_line(block, Class::Demand) {
                // If it stood there: it may have to stand there again.
                self.ahead.retain(|in_line| *in_line != (file, block));
                self.demand.push_back((file, block));
            }
        }
    }

    pub(super) fn settle_all(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        let Some(entry) = self.files.get(&file) else { return };
        let tickets: Vec<Ticket> = entry.tickets.keys().copied().collect();
        tickets.into_iter().for_each(|ticket| self.settle(file, ticket, actions));
    }

    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.tickets.remove(&ticket)?;
        self.deadlines.remove(&(waiting.deadline, ticket));
        if let Some(entry) = self.files.get_mut(&waiting.file) {
            entry.tickets.remove(&ticket);
        }
        Some(waiting)
    }

    pub(super) fn fail(&mut self, ticket: Ticket, why: FetchError, actions: &mut Vec<SupplyAction>) {
        if self.take(ticket).is_some() {
            actions.push(SupplyAction::Fail { ticket, why });
        }
    }

    /// Fails everybody who waits for the file, and stops fetching what nobody waits for.
    pub(super) fn fail_all(&mut self, file: FileId, why: &FetchError, actions: &mut Vec<SupplyAction>) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        let tickets: Vec<Ticket> = entry.tickets.keys().copied().collect();
        self.fetch_lazily(file);
        tickets.into_iter().for_each(|ticket| self.fail(ticket, why.clone(), actions));
        let Some(entry) = self.files.get_mut(&file) else { return };
        entry.leave_lines();
        self.errands.retain(|in_line| *in_line != file);
        self.demand.retain(|(in_line, _)| *in_line != file);
        self.ahead.retain(|(in_line, _)| *in_line != file);
    }

    /// Fetches no more of the file than is read.
    pub(super) fn fetch_lazily(&mut self, file: FileId) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        entry.how = Fetching::Lazily;
        if let Some(length) = entry.length.known() {
            self.whole.remove(&(length, file));
        }
    }

    /// Somebody reads there: what comes next is wanted soon.
    pub(super) fn on_touched(&mut self, file: FileId, offset: u64, length: u64) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        for block in entry.touched(offset, length, self.settings.window_max) {
            if entry.put_in_line(block, Class::Ahead) {
                self.ahead.push_back((file, block));
            }
        }
    }

    pub(super) fn raise(&mut self, file: FileId, how: Fetching, actions: &mut Vec<SupplyAction>) {
        let entry = self.files.get_mut(&file).expect("it was found before");
        entry.how = entry.how.max(how);
        entry.cursor = 0;
        // What could not be done then may be possible now.
        entry.is_unsealable &= how == Fetching::Lazily;
        if entry.how == Fetching::Whole
            && entry.stage == Stage::Ready
            && let Some(length) = entry.length.known()
        {
            self.whole.insert((length, file));
        }
        self.seek(file);
        self.seal_if_complete(file, actions);
    }
}
