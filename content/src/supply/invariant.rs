//! What holds of a supply between two steps.

use std::collections::BTreeSet;

use super::entry::{Block, Class, Stage};
use super::{Fetching, Kind, Need, Part, Supply};

impl Supply {
    /// Panics if the state contradicts itself.
    pub fn check_invariants(&self) {
        assert!(self.tickets.len() <= self.settings.tickets_max, "more tickets than may be");
        assert!(self.files.len() <= self.settings.files_max, "more files than may be");
        let deadlines: BTreeSet<_> = self.tickets.iter().map(|(ticket, waiting)| (waiting.deadline, *ticket)).collect();
        assert_eq!(deadlines, self.deadlines, "a deadline for each ticket");
        for (ticket, waiting) in &self.tickets {
            assert_eq!(self.files[&waiting.file].tickets.get(ticket), Some(&waiting.need), "{ticket:?} is lost");
        }
        let of_files: usize = self.files.values().map(|entry| entry.tickets.len()).sum();
        assert_eq!(of_files, self.tickets.len(), "a ticket without an owner");
        for asked in self.asked.values() {
            let entry = &self.files[&asked.file];
            match asked.part {
                Part::Length => assert_eq!(entry.stage, Stage::Length { is_asked: true }),
                Part::Outline(offset) => {
                    assert_eq!(entry.stage, Stage::Outline { of: Some(asked.to), offset, is_asked: true });
                }
                Part::Block(block, _) => assert_eq!(entry.blocks[block as usize], Block::Asked),
            }
        }
        for (file, entry) in &self.files {
            let asked = self.asked.values().filter(|asked| asked.file == *file).count();
            let works: Vec<Kind> =
                self.works.values().filter(|working| working.file == Some(*file)).map(|working| working.kind).collect();
            let errands = self.errands.iter().filter(|in_line| *in_line == file).count();
            let count = |is: fn(&Block) -> bool| entry.blocks.iter().filter(|block| is(block)).count();
            assert_eq!(entry.held, count(|block| *block == Block::Held) as u64, "held blocks of {file}");
            match entry.stage {
                Stage::Length { is_asked } | Stage::Outline { is_asked, .. } => {
                    assert_eq!((asked, works.len()), (usize::from(is_asked), 0), "the errand of {file}");
                    let is_wanted = !entry.tickets.is_empty() || entry.how == Fetching::Whole;
                    assert!(is_asked || errands == 1 || !is_wanted && errands == 0, "the errand of {file} is lost");
                }
                Stage::Working => assert_eq!((asked, works.len()), (0, 1), "what is done for {file}"),
                Stage::Sealing => assert_eq!((asked, &works[..]), (0, &[Kind::Seal][..]), "the sealing of {file}"),
                Stage::Sealed => panic!("{file} is sealed, and still here"),
                Stage::Ready => {
                    assert_eq!(asked, count(|block| *block == Block::Asked), "blocks of {file} that were asked for");
                    assert_eq!(works.len(), count(|block| *block == Block::Working), "blocks of {file} at the driver");
                    assert!(entry.is_unsealable || !entry.is_complete(), "{file} is complete and not sealed");
                    for need in entry.tickets.values() {
                        assert!(!entry.is_met(*need), "somebody waits for what is here of {file}");
                    }
                }
            }
            for (block, state) in entry.blocks.iter().enumerate() {
                let block = block as u64;
                match state {
                    Block::InLine { class: Class::Demand, .. } => {
                        assert_eq!(self.demand.iter().filter(|at| **at == (*file, block)).count(), 1);
                    }
                    Block::InLine { class: Class::Ahead, .. } => {
                        assert_eq!(self.ahead.iter().filter(|at| **at == (*file, block)).count(), 1);
                    }
                    Block::InLine { class: Class::Whole, .. } => panic!("what is fetched whole has no line"),
                    Block::Absent | Block::Claimed if entry.stage != Stage::Ready => {}
                    Block::Absent | Block::Claimed => {
                        assert!(!entry.is_awaited(block), "block {block} of {file} is awaited and not asked for");
                        let is_seen_to =
                            entry.how == Fetching::Lazily || entry.cursor <= block && self.is_in_whole(*file);
                        assert!(is_seen_to, "block {block} of {file} is forgotten");
                    }
                    Block::Asked | Block::Working | Block::Held => {}
                }
            }
            let waits_for_whole = entry.tickets.values().any(|need| *need == Need::Whole);
            assert!(!waits_for_whole || entry.how == Fetching::Whole, "somebody waits for all of {file}");
        }
        let flying_max = self.settings.blocks_in_flight_max + self.settings.demand_extra;
        let errands = self.asked.values().filter(|asked| !matches!(asked.part, Part::Block(..))).count();
        assert!(self.flying() <= flying_max + errands, "{} blocks in flight", self.flying());
    }

    fn is_in_whole(&self, file: wire::FileId) -> bool {
        self.files[&file].length.known().is_some_and(|length| self.whole.contains(&(length, file)))
    }
}
