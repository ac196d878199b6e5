//! What holders say, and what it is worth.

use super::*;

impl Supply {
    pub(super) fn on_received(
        &mut self,
        from: PeerId,
        message: &Message<'_>,
        payload_length: u64,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) {
        if let Message::Error(error, detail) = message {
            return self.on_refused(from, error.request.get(), error.code.get(), detail, now);
        }
        let Message::FileResponse(response, _) = message else { return };
        let (request, status) = (response.request.get(), response.status.get());
        if status != 0 {
            let code = u16::try_from(status).unwrap_or(u16::MAX);
            return self.on_refused(from, request, code, b"", now);
        }
        let file = response.file_uuid.file();
        let file_length = response.file_length.get();
        let (offset, is_outline) = (response.offset.get(), response.flags.get() & RESPONSE_OUTLINE != 0);
        let Some(asked) = self.asked.get(&request).copied().filter(|asked| asked.file == file && asked.to == from)
        else {
            return self.on_late(from, file, file_length, offset, is_outline, payload_length, now, actions);
        };
        self.asked.remove(&request);
        self.on_heard(from, request, &asked, now);
        let entry = self.files.get_mut(&file).expect("requests for a closed file are forgotten");
        if asked.part != Part::Length && entry.length.known() != Some(file_length) {
            // One of the two is wrong. Whoever told the length first knows nothing better than this one.
            let liar = if let Length::Learned(_, teacher) = entry.length { teacher } else { from };
            self.put_back(file, asked.part);
            return self.on_lie(file, liar, Of::File, "the file has another length", now, actions);
        }
        match asked.part {
            Part::Length => {
                entry.length = Length::Learned(file_length, from);
                self.begin(file, actions);
            }
            Part::Outline(at) => {
                let size = outline_size(file_length);
                if !is_outline || offset != at || payload_length != (size - at).min(BLOCK) {
                    self.put_back(file, asked.part);
                    return self.on_lie(file, from, Of::Outline, "the outline has another size", now, actions);
                }
                actions.push(SupplyAction::Append { file, offset });
                if at + payload_length == size {
                    entry.stage = Stage::Working;
                    let work = self.work(file, Kind::Outline { from });
                    actions.push(SupplyAction::Outline { work, file });
                } else {
                    entry.stage = Stage::Outline { of: Some(from), offset: at + payload_length, is_asked: false };
                    self.seek(file);
                }
            }
            Part::Block(block, _) => {
                if is_outline || offset != block * BLOCK || payload_length != entry.size_of(block) {
                    self.put_back(file, asked.part);
                    return self.on_lie(file, from, Of::Block(block), "a block has another size", now, actions);
                }
                entry.preferred = Some(from);
                self.fill(file, block, from, actions);
            }
        }
    }

    pub(super) fn fill(&mut self, file: FileId, block: u64, from: PeerId, actions: &mut Vec<SupplyAction>) {
        self.files.get_mut(&file).expect("it is here").set(block, Block::Working);
        let work = self.work(file, Kind::Fill { block, from });
        actions.push(SupplyAction::Fill { work, file, block });
    }

    /// Files do not change, so a block that comes after its time is as good as one that came in time, if it is still wanted.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_late(
        &mut self,
        from: PeerId,
        file: FileId,
        file_length: u64,
        offset: u64,
        is_outline: bool,
        payload_length: u64,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) {
        let is_known = self.holders.is_known(from);
        let Some(entry) = self.files.get_mut(&file).filter(|_| is_known && !is_outline) else { return };
        let block = offset / BLOCK;
        let is_wanted = entry.stage == Stage::Ready
            && !entry.doubts.bar(from, Of::Block(block), now)
            && entry.length.known() == Some(file_length)
            && match entry.blocks.get(block as usize) {
                Some(Block::InLine { .. } | Block::Asked) => true,
                // The deadline has passed, but this shows that the file can be had again.
                Some(Block::Absent) => entry.muted.is_some(),
                Some(Block::Claimed | Block::Working | Block::Held) | None => false,
            };
        if !is_wanted || !offset.is_multiple_of(BLOCK) || payload_length != entry.size_of(block) {
            return;
        }
        self.asked.retain(|_, asked| asked.file != file || !matches!(asked.part, Part::Block(at, _) if at == block));
        // If it turns out wrong it has to stand there again.
        self.demand.retain(|in_line| *in_line != (file, block));
        self.ahead.retain(|in_line| *in_line != (file, block));
        if self.flying() < self.settings.blocks_in_flight_max + self.settings.demand_extra {
            self.fill(file, block, from, actions);
        } else {
            self.files.get_mut(&file).expect("it is here").set(block, Block::Absent);
            self.ask_again(file, block, Class::Whole);
        }
    }

    /// The line of a holder has moved.
    pub(super) fn on_heard(&mut self, from: PeerId, request: u64, answered: &Asked, now: Instant) {
        self.holders.heard(from, now);
        for (_, earlier) in self.asked.range_mut(..request).filter(|(_, asked)| asked.to == from) {
            earlier.overtaken_at.get_or_insert(now);
        }
        let took = now.since(answered.at);
        if took < ANSWER_SOON {
            self.room = (self.room + 1).min(self.settings.blocks_in_flight_max);
        } else if took > ANSWER_LATE && request >= self.room_halved_before {
            self.room = (self.room / 2).max(ROOM_MIN).min(self.settings.blocks_in_flight_max);
            self.room_halved_before = self.next_request;
        }
    }

    pub(super) fn on_refused(&mut self, from: PeerId, request: u64, code: u16, detail: &[u8], now: Instant) {
        let Some(asked) = self.asked.get(&request).copied().filter(|asked| asked.to == from) else { return };
        self.asked.remove(&request);
        self.holders.heard(from, now);
        let (file, address) = (asked.file, FileAddress { file: asked.file, piece: None });
        self.put_back(file, asked.part);
        let (soon, later) = (now + self.settings.busy_pause, now + self.settings.doubt);
        let (why, until) = match ErrorCode::from_number(code) {
            Some(ErrorCode::Busy) => return self.holders.pause(from, soon),
            Some(ErrorCode::NotReady) => {
                self.holders.not_ready(from, file, soon);
                (Why::NotReady, soon)
            }
            Some(ErrorCode::FileUnknown) => (Why::Refused(FetchError::FileUnknown(address)), later),
            Some(code) => (Why::Refused(FetchError::Refused { code, detail: wire::bytes_text(detail) }), later),
            None => {
                let what = "its error code is unknown";
                (Why::Refused(FetchError::Protocol { address, what }), later)
            }
        };
        let entry = self.files.get_mut(&file).expect("requests for a closed file are forgotten");
        entry.doubts.add(from, Of::File, why, until);
    }
}
