//! Removes what is left over, beside the loop: a run may leave a million files, and the loop must not wait for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io, thread};

use node::channel::{self, Orders};

use super::directory::remove_tree;

/// Trees that wait to be removed. One more is removed at once.
const WAITING_MAX: usize = 1024;

/// Takes trees out of the way by renaming them, and has a thread remove them.
#[derive(Debug)]
pub(super) struct Sweeper {
    trash: PathBuf,
    number: u64,
    orders: Orders<PathBuf>,
    /// Trees that wait or are being removed.
    unswept: Arc<AtomicUsize>,
}

impl Sweeper {
    pub(super) fn start(trash: PathBuf) -> io::Result<Self> {
        let (orders, waiting) = channel::to_helper::<PathBuf>(WAITING_MAX);
        let unswept = Arc::new(AtomicUsize::new(0));
        let count = unswept.clone();
        thread::Builder::new().name("sweeper".into()).spawn(move || {
            while let Ok(path) = waiting.recv() {
                remove(&path);
                count.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { trash, number: 0, orders, unswept })
    }

    /// True while there is room on the disk still to come.
    pub(super) fn is_busy(&self) -> bool {
        self.unswept.load(Ordering::Relaxed) > 0
    }

    /// Takes a file or tree away from `path`; it is removed soon.
    pub(super) fn discard(&mut self, path: &Path) -> io::Result<()> {
        self.number += 1;
        let to = self.trash.join(self.number.to_string());
        match fs::rename(path, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        self.unswept.fetch_add(1, Ordering::Relaxed);
        if let Err(full) = self.orders.try_send(to) {
            self.unswept.fetch_sub(1, Ordering::Relaxed);
            remove(&full.into_inner());
        }
        Ok(())
    }

    /// Removes at once what waits to be removed: on a full disk it may be what is in the way.
    pub(super) fn empty_trash(&self) -> io::Result<()> {
        remove_tree(&self.trash)?;
        fs::create_dir_all(&self.trash)
    }
}

fn remove(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!(path = %path.display(), %error, "left over until the next start");
    }
}
