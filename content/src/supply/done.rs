//! What becomes of orders to the driver.

use super::*;

impl Supply {
    pub(super) fn on_done(&mut self, work: Work, outcome: Outcome<'_>, now: Instant, actions: &mut Vec<SupplyAction>) {
        let working = self.works.remove(&work).expect("only what was ordered is done");
        let Some(file) = working.file else { return };
        let entry = self.files.get_mut(&file).expect("what is under way for a closed file is void");
        match (working.kind, outcome) {
            (Kind::Open, Outcome::Opened { blocks, has_outline }) => {
                let length = entry.length.known().expect("it was opened with a length");
                assert_eq!(blocks.len() as u64, crate::blocks(length), "every block of {file}");
                entry.opened(blocks);
                if has_outline || outline_size(length) == 0 {
                    self.on_ready(file, actions);
                } else {
                    self.want_outline(file);
                }
            }
            (Kind::Open, Outcome::Sealed) | (Kind::Seal, Outcome::Right) => self.on_sealed(file, actions),
            (Kind::Outline { .. }, Outcome::Right) => self.on_ready(file, actions),
            (Kind::Outline { from }, Outcome::Wrong) => {
                self.want_outline(file);
                self.on_lie(file, from, Of::Outline, "the outline is not the file's", now, actions);
            }
            (Kind::Fill { block, .. } | Kind::Check { block }, Outcome::Right) => {
                entry.hold(block);
                entry.muted = None;
                self.settle_all(file, actions);
                self.seal_if_complete(file, actions);
            }
            (Kind::Fill { block, from }, Outcome::Wrong) => {
                entry.lose(block);
                self.ask_again(file, block, Class::Whole);
                self.on_lie(file, from, Of::Block(block), "a block is not the file's", now, actions);
            }
            (Kind::Seal, Outcome::Wrong) => self.restart(file, actions),
            (Kind::Check { block }, Outcome::Wrong) => {
                entry.lose(block);
                self.ask_again(file, block, Class::Whole);
            }
            (Kind::Fill { block, .. } | Kind::Check { block }, Outcome::Failed(why)) => {
                entry.lose(block);
                self.on_local_failure(file, &why, now, actions);
            }
            (Kind::Open | Kind::Outline { .. }, Outcome::Failed(why)) => {
                self.on_local_failure(file, &why, now, actions);
                self.close(file, actions);
            }
            (Kind::Seal, Outcome::Failed(why)) => {
                entry.stage = Stage::Ready;
                entry.is_unsealable = true;
                self.on_local_failure(file, &why, now, actions);
            }
            (kind, outcome @ (Outcome::Opened { .. } | Outcome::Sealed | Outcome::Right | Outcome::Wrong)) => {
                unreachable!("{kind:?} came back with {outcome:?}")
            }
        }
    }

    /// Blocks can be checked now.
    pub(super) fn on_ready(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        let entry = self.files.get_mut(&file).expect("it is here");
        entry.stage = Stage::Ready;
        // What only has to be looked at costs no network, and the file is better off sealed.
        let how = if entry.is_all_here() { Fetching::Whole } else { entry.how };
        self.raise(file, how, actions);
        self.settle_all(file, actions);
        self.seal_if_complete(file, actions);
    }

    pub(super) fn seal_if_complete(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        if entry.stage == Stage::Ready && entry.is_complete() && !entry.is_unsealable {
            entry.stage = Stage::Sealing;
            let work = self.work(file, Kind::Seal);
            actions.push(SupplyAction::Seal { work, file });
        }
    }

    pub(super) fn on_sealed(&mut self, file: FileId, actions: &mut Vec<SupplyAction>) {
        let entry = self.files.get_mut(&file).expect("it is here");
        entry.stage = Stage::Sealed;
        self.settle_all(file, actions);
        self.close(file, actions);
    }

    pub(super) fn on_local_failure(&mut self, file: FileId, why: &str, now: Instant, actions: &mut Vec<SupplyAction>) {
        let why = local(file, why);
        self.fail_all(file, &why, actions);
        self.mute(file, why, now);
    }

    pub(super) fn mute(&mut self, file: FileId, why: FetchError, now: Instant) {
        if let Some(entry) = self.files.get_mut(&file) {
            entry.muted = Some((now + self.settings.mute, why));
        }
    }

    /// Something is not as the holder should have sent it.
    pub(super) fn on_lie(
        &mut self,
        file: FileId,
        holder: PeerId,
        of: Of,
        what: &'static str,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) {
        self.doubt(file, holder, of, what, now, actions);
        let Some(entry) = self.files.get(&file) else { return };
        let Length::Learned(_, teacher) = entry.length else { return };
        // The outline is right, and has a value for each block: only the last can be of another size.
        let is_length_right = matches!(of, Of::Block(block) if block + 1 < entry.blocks.len() as u64);
        if !is_length_right {
            // If it is the length that is wrong, no holder can be right.
            self.doubt(file, teacher, Of::File, "the length may be wrong", now, actions);
            self.restart(file, actions);
        }
    }
}
