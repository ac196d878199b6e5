//! Many seeds at once: each is a world of its own, so every cpu takes the next one that nobody has.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What `each` makes of all `items`, in their order, with as many threads as there are cpus.
pub fn on_all_cpus<I: Sync, T: Send>(items: &[I], each: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let position = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(item) = items.get(position)
                {
                    let made = each(item);
                    done.lock().expect("a seed's panic is caught").push((position, made));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("a seed's panic is caught");
    done.sort_by_key(|(position, _)| *position);
    done.into_iter().map(|(_, made)| made).collect()
}
