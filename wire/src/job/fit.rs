//! Whether some worker can ever run a chunk: asked by the client before it stores inputs, by the masters because clients err.

use super::JobSpec;
use crate::record::NodeRecord;

impl JobSpec {
    /// Says why none of `workers` can run a chunk of this; `None` also when there are none, since some may come.
    pub fn misfit<'a>(&self, workers: impl DoubleEndedIterator<Item = &'a NodeRecord> + Clone) -> Option<String> {
        if workers.clone().any(|worker| worker.cpus_milli >= self.cpus_milli && worker.memory >= self.memory) {
            return None;
        }
        // The first of the largest, so that the text does not depend on chance.
        let largest = workers.clone().rev().max_by_key(|worker| worker.cpus_milli)?;
        if largest.cpus_milli < self.cpus_milli {
            let (asked, has) = (cpus_text(self.cpus_milli), cpus_text(largest.cpus_milli));
            return Some(format!("no worker has {asked} cpus (largest: {}, {has})", largest.name));
        }
        let largest = workers.rev().max_by_key(|worker| worker.memory)?;
        let (asked, has) = (size_text(self.memory), size_text(largest.memory));
        if largest.memory < self.memory {
            return Some(format!("no worker has {asked} of memory (largest: {}, {has})", largest.name));
        }
        Some(format!("no worker has both {} cpus and {asked} of memory", cpus_text(self.cpus_milli)))
    }
}

/// 64000 thousandths are `64`, 1500 are `1.5`.
fn cpus_text(cpus_milli: u32) -> String {
    let text = format!("{}.{:03}", cpus_milli / 1_000, cpus_milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes in the largest unit that divides them.
fn size_text(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut amount, mut unit) = (bytes, 0);
    while amount >= 1024 && amount.is_multiple_of(1024) && unit + 1 < units.len() {
        (amount, unit) = (amount / 1024, unit + 1);
    }
    format!("{amount} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootNonce, ClientKey, NodeId, NodeState, Role};

    fn a_worker(name: &str, cpus: u32, memory: u64) -> NodeRecord {
        NodeRecord {
            node: NodeId([1; 16]),
            role: Role::Worker,
            state: NodeState::Up,
            boot: BootNonce(1),
            public_key: ClientKey([0; 32]),
            pid: 1,
            cpus_milli: cpus * 1_000,
            memory,
            is_leader: false,
            is_primary: false,
            name: name.into(),
            endpoint: String::new(),
            bulk_endpoint: String::new(),
        }
    }

    #[test]
    fn what_no_worker_can_run_is_told_with_the_largest() {
        let workers = [a_worker("w1", 2, 4 << 30), a_worker("w2", 8, 1 << 30), a_worker("w3", 8, 1 << 30)];
        let told = |cpus_milli, memory| JobSpec { cpus_milli, memory, ..JobSpec::default() }.misfit(workers.iter());
        assert_eq!(told(8_000, 1 << 30), None);
        assert_eq!(told(64_000, 0).as_deref(), Some("no worker has 64 cpus (largest: w2, 8)"));
        assert_eq!(told(1_500, 1 << 40).as_deref(), Some("no worker has 1 TiB of memory (largest: w1, 4 GiB)"));
        assert_eq!(told(8_000, 2 << 30).as_deref(), Some("no worker has both 8 cpus and 2 GiB of memory"));
        assert_eq!(JobSpec { cpus_milli: 64_000, ..JobSpec::default() }.misfit([].iter()), None);
    }

    #[test]
    fn amounts_read_as_people_wrote_them() {
        assert_eq!((cpus_text(64_000), cpus_text(1_500), cpus_text(10)), ("64".into(), "1.5".into(), "0.01".into()));
        assert_eq!((size_text(3 << 40), size_text(1025)), ("3 TiB".into(), "1025 bytes".into()));
    }
}
