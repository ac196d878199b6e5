//! What of one file which holder is not asked for now, and why.
//!
//! A wrong page does not make a wrong book, and a wrong book no wrong library: what turned out wrong is asked of somebody
//! else, and everything else goes on. What all have sent wrong, or do not give, nobody waits for; a little later it may have
//! been put right, and is asked for again.

use std::collections::BTreeMap;

use wire::{FileAddress, Instant, PeerId};

use super::holders::FILES_MAX;
use super::*;

/// How much of a file is in doubt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Of {
    File,
    /// Its blocks may be right all the same.
    Outline,
    Block(u64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Why {
    Wrong(&'static str),
    Refused(FetchError),
    /// The holder will have it soon.
    NotReady,
}

/// The doubts about one file.
#[derive(Default, Debug)]
pub(super) struct Doubts {
    /// Until when, and why.
    doubts: BTreeMap<(PeerId, Of), (Instant, Why)>,
    /// Until when something counts as wrong of what a holder has.
    wrong: BTreeMap<PeerId, Instant>,
}

impl Doubts {
    pub(super) fn add(&mut self, holder: PeerId, of: Of, why: Why, until: Instant) {
        if let Why::Wrong(_) = why {
            self.wrong.insert(holder, until);
        }
        self.doubts.insert((holder, of), (until, why));
    }

    pub(super) fn forget(&mut self, holder: PeerId) {
        self.doubts.retain(|(of, _), _| *of != holder);
        self.wrong.remove(&holder);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the holder is not to be asked for it.
    pub(super) fn bar(&self, holder: PeerId, of: Of, now: Instant) -> bool {
        self.about(holder, of, now).next().is_some()
    }

    /// Whether the holder has sent something wrong of the file.
    pub(super) fn has_wrong(&self, holder: PeerId, now: Instant) -> bool {
        self.wrong.get(&holder).is_some_and(|until| now < *until)
    }

    /// What there is against asking the holder for it.
    fn about(&self, holder: PeerId, of: Of, now: Instant) -> impl Iterator<Item = &Why> {
        let whole = (of != Of::File).then_some(Of::File);
        let found = whole.into_iter().chain([of]).filter_map(move |of| self.doubts.get(&(holder, of)));
        found.filter(move |(until, _)| now < *until).map(|(_, why)| why)
    }
}

impl Supply {
    /// Notes that a holder has sent something wrong.
    pub(super) fn doubt(
        &mut self,
        file: FileId,
        holder: PeerId,
        of: Of,
        what: &'static str,
        now: Instant,
        actions: &mut Vec<SupplyAction>,
    ) {
        let Some(entry) = self.files.get_mut(&file).filter(|_| self.holders.is_known(holder)) else { return };
        let is_first = !entry.doubts.has_wrong(holder, now);
        entry.doubts.add(holder, of, Why::Wrong(what), now + self.settings.doubt);
        if !is_first {
            return;
        }
        actions.push(SupplyAction::Distrust { holder, file, what });
        let doubted = self.files.values().filter(|entry| entry.doubts.has_wrong(holder, now)).count();
        if doubted >= FILES_MAX && self.holders.rest(holder, now + self.settings.rest) {
            actions.push(SupplyAction::Rest { holder });
        }
    }

    /// Why nobody can be asked for it, if every holder has sent it wrong or refused it.
    pub(super) fn hopeless(&self, file: FileId, of: Of, now: Instant) -> Option<FetchError> {
        let doubts = &self.files.get(&file)?.doubts;
        let has_none = |holder| doubts.about(holder, of, now).any(|why| *why != Why::NotReady);
        if !self.holders.all(has_none) {
            return None;
        }
        let address = FileAddress { file, piece: None };
        let against =
            || self.holders.iter().flat_map(|holder| doubts.about(holder, of, now).map(move |why| (holder, why)));
        let wrong = against().find_map(|(_, why)| match why {
            Why::Wrong(what) => Some(*what),
            Why::Refused(_) | Why::NotReady => None,
        });
        if let Some(what) = wrong {
            let is_wrong = |holder: &PeerId| doubts.about(*holder, of, now).any(|why| matches!(why, Why::Wrong(_)));
            let holders = self.holders.iter().filter(is_wrong).map(|holder| self.holders.name(holder).to_owned());
            return Some(FetchError::Wrong { address, what, holders: holders.collect() });
        }
        // That one does not have it says less than that another does not give it.
        let unknown = FetchError::FileUnknown(address);
        let refused = against().find_map(|(_, why)| match why {
            Why::Refused(why) if *why != unknown => Some(why.clone()),
            Why::Refused(_) | Why::Wrong(_) | Why::NotReady => None,
        });
        Some(refused.unwrap_or(unknown))
    }

    /// Fails whoever waits for a block that nobody can be asked for. All else of the file is as good as before, but that it
    /// will be whole is not to be expected now.
    pub(super) fn give_up(&mut self, file: FileId, block: u64, why: &FetchError, actions: &mut Vec<SupplyAction>) {
        let entry = self.files.get_mut(&file).expect("it is here");
        entry.lose(block);
        let tickets = entry.who_awaits(block);
        self.fetch_lazily(file);
        tickets.into_iter().for_each(|ticket| self.fail(ticket, why.clone(), actions));
    }
}
