//! What is asked for next, and of whom.

use super::*;

impl Supply {
    /// Puts what was asked for in line again.
    pub(super) fn put_back(&mut self, file: FileId, part: Part) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        match part {
            Part::Length => entry.stage = Stage::Length { is_asked: false },
            // From the start: the next holder's need not be the same.
            Part::Outline(_) => entry.stage = Stage::Outline { of: None, offset: 0, is_asked: false },
            Part::Block(block, class) => {
                entry.set(block, Block::Absent);
                return self.ask_again(file, block, class);
            }
        }
        self.seek(file);
    }

    /// Has holders asked for what has to be known before blocks, if somebody wants the file.
    pub(super) fn seek(&mut self, file: FileId) {
        let Some(entry) = self.files.get(&file) else { return };
        let is_errand =
            matches!(entry.stage, Stage::Length { is_asked: false } | Stage::Outline { is_asked: false, .. });
        let is_wanted = !entry.tickets.is_empty() || entry.how == Fetching::Whole;
        if is_errand && is_wanted && !self.errands.contains(&file) {
            self.errands.push_back(file);
        }
    }

    /// Puts an absent block in line again if somebody wants it, in the class that it has for whoever wants it most.
    pub(super) fn ask_again(&mut self, file: FileId, block: u64, class: Class) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        if entry.is_awaited(block) {
            if entry.put_in_line(block, Class::Demand) {
                self.demand.push_front((file, block));
            }
        } else if class == Class::Ahead && entry.put_in_line(block, Class::Ahead) {
            self.ahead.push_front((file, block));
        } else if entry.how == Fetching::Whole
            && let Some(length) = entry.length.known()
        {
            entry.cursor = entry.cursor.min(block);
            self.whole.insert((length, file));
        }
    }

    /// Puts all in line again that a holder was asked for.
    pub(super) fn ask_again_all(&mut self, holder: PeerId) {
        let of_holder = |asked: &&Asked| asked.to == holder;
        let asked: Vec<Asked> = self.asked.values().filter(of_holder).copied().collect();
        self.asked.retain(|_, asked| asked.to != holder);
        // Backwards, because each goes to the front of its line.
        for asked in asked.into_iter().rev() {
            self.put_back(asked.file, asked.part);
        }
    }

    pub(super) fn want_outline(&mut self, file: FileId) {
        let entry = self.files.get_mut(&file).expect("it is here");
        entry.stage = Stage::Outline { of: None, offset: 0, is_asked: false };
        self.seek(file);
    }

    /// Blocks that are under way: asked for, or here and not yet checked.
    pub(super) fn flying(&self) -> usize {
        let is_block = |working: &&Working| matches!(working.kind, Kind::Fill { .. } | Kind::Check { .. });
        self.asked.len() + self.works.values().filter(is_block).count()
    }

    pub(super) fn pump(&mut self, now: Instant, actions: &mut Vec<SupplyAction>) {
        self.holders.wake(now);
        for _ in 0..self.errands.len() {
            let Some(file) = self.errands.pop_front() else { break };
            if matches!(self.run_errand(file, now, actions), Begun::Later) {
                self.errands.push_back(file);
            }
        }
        let demand_max = self.room + self.settings.demand_extra;
        self.pump_line(Class::Demand, demand_max, now, actions);
        self.pump_line(Class::Ahead, self.room, now, actions);
        let mut next = self.whole.first().copied();
        while let Some(file) = next.filter(|_| self.flying() < self.room) {
            let is_begun = self.pump_whole(file.1, now, actions);
            next = self.whole.range((Bound::Excluded(file), Bound::Unbounded)).next().copied();
            if is_begun {
                self.whole.remove(&file);
            }
        }
    }

    pub(super) fn pump_line(&mut self, class: Class, flying_max: usize, now: Instant, actions: &mut Vec<SupplyAction>) {
        let line = |this: &mut Self| match class {
            Class::Demand => std::mem::take(&mut this.demand),
            Class::Ahead | Class::Whole => std::mem::take(&mut this.ahead),
        };
        let mut waiting = line(self);
        let mut kept = VecDeque::new();
        while self.flying() < flying_max
            && let Some((file, block)) = waiting.pop_front()
        {
            if matches!(self.start(file, block, class, now, actions), Begun::Later) {
                kept.push_back((file, block));
            }
        }
        kept.append(&mut waiting);
        match class {
            Class::Demand => self.demand = kept,
            Class::Ahead | Class::Whole => self.ahead = kept,
        }
    }

    /// Begins blocks of a file that is fetched whole; true when all of it has been begun.
    pub(super) fn pump_whole(&mut self, file: FileId, now: Instant, actions: &mut Vec<SupplyAction>) -> bool {
        loop {
            if self.flying() >= self.room {
                return false;
            }
            let is_wanted = |entry: &&mut Entry| entry.stage == Stage::Ready && entry.how == Fetching::Whole;
            let Some(entry) = self.files.get_mut(&file).filter(is_wanted) else { return true };
            let Some(block) = entry.next_for_whole() else { return true };
            if matches!(self.start(file, block, Class::Whole, now, actions), Begun::Later) {
                return false;
            }
        }
    }

    pub(super) fn run_errand(&mut self, file: FileId, now: Instant, actions: &mut Vec<SupplyAction>) -> Begun {
        let Some(entry) = self.files.get_mut(&file) else { return Begun::Stale };
        let (part, begun_by, of) = match entry.stage {
            Stage::Length { is_asked: false } => (Part::Length, None, Of::File),
            Stage::Outline { of, offset, is_asked: false } => (Part::Outline(offset), of, Of::Outline),
            Stage::Length { is_asked: true }
            | Stage::Outline { is_asked: true, .. }
            | Stage::Working
            | Stage::Ready
            | Stage::Sealing
            | Stage::Sealed => return Begun::Stale,
        };
        let Some(to) = self.holders.choose(begun_by.or(entry.preferred), &entry.doubts, of, now) else {
            let Some(why) = self.hopeless(file, of, now) else { return Begun::Later };
            self.fail_all(file, &why, actions);
            return Begun::Stale;
        };
        let part = if begun_by.is_some_and(|begun_by| begun_by != to) { Part::Outline(0) } else { part };
        entry.stage = match part {
            Part::Length => Stage::Length { is_asked: true },
            Part::Outline(offset) => Stage::Outline { of: Some(to), offset, is_asked: true },
            Part::Block(..) => unreachable!("a block is no errand"),
        };
        self.ask(file, part, to, now, actions);
        Begun::Yes
    }

    /// Begins with one block: looks at it if it is claimed, else asks for it.
    pub(super) fn start(
        &mut self,
        file: FileId,
        block: u64,
        class: Class,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) -> Begun {
        let Some(entry) = self.files.get_mut(&file) else { return Begun::Stale };
        let is_claimed = match entry.blocks.get(block as usize) {
            Some(Block::InLine { class: of, is_claimed }) if *of == class => *is_claimed,
            Some(Block::Absent) if class == Class::Whole => false,
            Some(Block::Claimed) if class == Class::Whole => true,
            Some(_) | None => return Begun::Stale,
        };
        if is_claimed {
            entry.set(block, Block::Working);
            let work = self.work(file, Kind::Check { block });
            actions.push(SupplyAction::Check { work, file, block });
            return Begun::Yes;
        }
        let Some(to) = self.holders.choose(entry.preferred, &entry.doubts, Of::Block(block), now) else {
            let Some(why) = self.hopeless(file, Of::Block(block), now) else { return Begun::Later };
            self.give_up(file, block, &why, actions);
            return Begun::Stale;
        };
        entry.set(block, Block::Asked);
        self.ask(file, Part::Block(block, class), to, now, actions);
        Begun::Yes
    }

    pub(super) fn ask(&mut self, file: FileId, part: Part, to: PeerId, now: Instant, actions: &mut Vec<SupplyAction>) {
        let request = self.next_request;
        self.next_request += 1;
        self.asked.insert(request, Asked { file, part, to, at: now, overtaken_at: None });
        let length = self.files[&file].length.known().unwrap_or(0);
        let (offset, length, what) = match part {
            Part::Length => (0, 0, 0),
            Part::Outline(offset) => (offset, (outline_size(length) - offset).min(BLOCK), PART_OUTLINE),
            Part::Block(block, _) => (block * BLOCK, self.files[&file].size_of(block), 0),
        };
        let fixed = FileRequest {
            file_uuid: file.into(),
            offset: U64::new(offset),
            length: U64::new(length),
            request: U64::new(request),
            part: U32::new(what),
            ..FileRequest::DEFAULT
        };
        actions.push(SupplyAction::Send { to, frame: fixed.frame(self.node, &[]) });
    }

    pub(super) fn work(&mut self, file: FileId, kind: Kind) -> Work {
        self.next_work += 1;
        let work = Work(self.next_work);
        if kind == Kind::Open {
            self.files.get_mut(&file).expect("it is here").is_open = true;
        }
        self.works.insert(work, Working { file: Some(file), kind });
        work
    }
}
